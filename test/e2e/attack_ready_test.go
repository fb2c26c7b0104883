//go:build e2e

package e2e

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// readyUnit makes a unit with Ready=, whose container is the attacker: it sends the
// messages, then says that multi-user.target is active, then floods.
func (u user) readyUnit(flood int, messages ...string) unit {
	u.t.Helper()
	n := u.unitWithoutDropin(service{
		mode: "mixed", options: "--volume=" + attackDir + ":/attack:ro",
		command: "/attack/attacker inside " + strconv.Itoa(flood) + " " + strings.Join(messages, " "),
		more:    "FileDescriptorStoreMax=9\nTimeoutStartSec=30\nTimeoutStopSec=20\n",
	})
	n.run("oci-mainpid", "generate", "--user="+u.name, "--ready=multi-user.target", path.Join(unitDir, n.name))
	n.watched()
	n.systemctl("daemon-reload")
	return n
}

// readiness: what a container says to oci-mainpid run.
func (b battle) readiness() {
	daemon := b.victim("root")
	foreign := `(MAINPID=(1|` + daemon.pid + `)\b|NOTIFYACCESS=|FDSTORE|FDNAME|WATCHDOG_USEC|evil)`

	// judgeUnit says what the container has achieved that it must not.
	judgeUnit := func(f fight, o outcome) (wrong []string) {
		o.journalAgain()
		wrong = o.notifications(foreign, "")
		if got := o.property("NFileDescriptorStore"); got != "0" {
			wrong = append(wrong, got+" descriptors are stored")
		}
		if got := o.property("NotifyAccess"); got != "all" {
			wrong = append(wrong, "NotifyAccess="+got)
		}
		if inside := f.run("oci-mainpid", "status", "--format=json", o.name); strings.Contains(inside, "evil") || !strings.Contains(inside, "multi-user.target") {
			wrong = append(wrong, "status says "+inside)
		}
		wrong = append(wrong, o.notOwn()...)
		return append(wrong, daemon.harmed()...)
	}

	b.fight("a container with Ready= that sends MAINPID=, NOTIFYACCESS=, FDSTORE=, descriptors and 200,000 bytes", func(f fight) {
		n := f.user().readyUnit(0, "MAINPID=1", "MAINPID="+daemon.pid+",READY=1", "NOTIFYACCESS=none", "FDSTORE=1,FDNAME=evil",
			"MAINPIDFD=1", "WATCHDOG_USEC=1", "BARRIER=1,MAINPID=1", "STATUS=x^MAINPID="+daemon.pid)
		f.judge(judgeUnit(f, n.observe(nil))...)
	})
	b.fight("a process outside of the container that writes to its socket", func(f fight) {
		n := f.user().readyUnit(0)
		o := n.observe(nil)
		socket := n.runtimeDir() + "/oci-mainpid/run/" + n.container + "/notify/notify"
		f.must(f.try(n.as("env", "NOTIFY_SOCKET="+socket, attacker, "send", "3", "X_SYSTEMD_UNIT_ACTIVE=evil.target", "STATUS=evil", "MAINPID=1")...))
		// root, too
		f.run("env", "NOTIFY_SOCKET="+socket, attacker, "send", "3", "X_SYSTEMD_UNIT_ACTIVE=evil.target", "STATUS=evil")
		f.judge(judgeUnit(f, o)...)
	})
	b.fight("100,000 messages of a container, as fast as it can", func(f fight) {
		n := f.user().readyUnit(100_000)
		o := n.observe(nil)
		began := time.Now()
		time.Sleep(4 * time.Second)
		o.journalAgain()
		got, most := len(o.notifications("STATUS=", "")), 400+int(time.Since(began).Seconds())*60
		var wrong []string
		if got > most {
			wrong = append(wrong, fmt.Sprintf("systemd got %d messages, more than %d", got, most))
		}
		if got < 10 {
			wrong = append(wrong, fmt.Sprintf("systemd got %d messages only: was there a flood?", got))
		}
		// In ticks of 10 ms.
		run := f.run("pgrep", "-U", n.uid, "-x", "oci-mainpid")
		ticks := f.shell(`sed 's/.*) //' /proc/$1/stat | awk '{print $12 + $13}'`, run)
		if n, err := strconv.Atoi(ticks); err != nil || n > 500 {
			wrong = append(wrong, "oci-mainpid run took "+ticks+" ticks")
		}
		f.judge(append(wrong, judgeUnit(f, o)...)...)
	})
}

// journalAgain reads what is in the unit's journal by now.
func (o *outcome) journalAgain() {
	o.t.Helper()
	o.run("journalctl", "--sync")
	o.log = o.run("journalctl", "--quiet", "--no-pager", "--boot", "--unit="+o.name)
}
