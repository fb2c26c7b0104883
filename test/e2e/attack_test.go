//go:build e2e

package e2e

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"
)

// TestAttack has a unit's user, and the container, try to make root's helper and
// systemd do what they must not. SECURITY.md points to its cases; at the end it
// prints a table of them.
func TestAttack(t *testing.T) {
	var table tally
	t.Cleanup(table.print)
	onStacks(t, func(m machine) {
		m.installAttacker()
		level := m.systemctl("log-level")
		m.systemctl("log-level", "debug") // PID 1 then logs each notification
		m.t.Cleanup(func() { m.systemctl("log-level", level) })
		for _, group := range []struct {
			name  string
			run   func(battle)
			where place
		}{
			{"claims", battle.claims, everywhere},
			{"reused PIDs", battle.reusedPIDs, everywhere},
			{"contents", battle.contents, onLast},
			{"places", battle.places, onLast},
			{"hooks", battle.hooks, onFirst},
			{"notifications", battle.notifications, onFirst},
			{"readiness", battle.readiness, onLast},
			{"own unit", battle.ownUnit, onFirst},
			{"failing closed", battle.failClosed, everywhere},
			{"names", battle.names, onLast},
			{"environments", battle.environments, onLast},
			{"rooms", battle.rooms, onFirst},
			{"strangers", battle.strangers, onLast},
			{"timeouts", battle.timeouts, everywhere},
			{"tools", battle.tools, onLast},
			{"journals", battle.journals, onLast},
			{"controls", battle.controls, onLast},
		} {
			if group.where.has(m.box.Suite) {
				m.subtest(group.name, func(m machine) { group.run(battle{m, &table, group.where == everywhere}) })
				m.systemctl("reset-failed") // each failed unit costs the reports of the next group time
			}
		}
	})
}

var raceTime = flag.Duration("race-time", 2*time.Second, "how `LONG` TestAttack tries each race, at most")

// thorough reports whether there is time for everything, as in make attack: else at
// least one case of each kind is tried.
func thorough() bool { return *raceTime >= 20*time.Second }

// tally counts, for each stack and case, what was tried and what was held.
type tally struct {
	mutex sync.Mutex
	rows  []*tallyRow
}

type tallyRow struct {
	stack, name string
	tried, held int
	// own: what the unit's user may do to the unit.
	own bool
}

func (t *tally) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, own := range []bool{false, true} {
		verdict := "refused"
		if own {
			verdict = "as documented"
		}
		fmt.Fprintf(w, "stack\tcase\ttried\t%s\n", verdict)
		// Each case of all stacks, in the order of the first one.
		printed := map[string]bool{}
		for _, first := range t.rows {
			if first.own != own || printed[first.name] {
				continue
			}
			printed[first.name] = true
			for _, r := range t.rows {
				if r.name == first.name {
					fmt.Fprintf(w, "%s\t%s\t%d\t%d\n", r.stack, r.name, r.tried, r.held)
				}
			}
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

// battle is a machine under attack.
type battle struct {
	machine
	table  *tally
	shared bool // the cases are dealt out to the stacks
}

// fight runs a case, which calls try for each attempt; that returns what went
// wrong.
func (b battle) fight(name string, run func(f fight)) {
	b.t.Helper()
	b.record(name, false, run)
}

// show is fight for what the unit's own user may do.
func (b battle) show(name string, run func(f fight)) {
	b.t.Helper()
	b.record(name, true, run)
}

func (b battle) record(name string, own bool, try func(f fight)) {
	b.t.Helper()
	run := b.subtest
	if b.shared {
		run = b.share
	}
	run(name, func(m machine) {
		row := &tallyRow{stack: string(b.box.Suite), name: name, own: own}
		b.table.mutex.Lock()
		b.table.rows = append(b.table.rows, row)
		b.table.mutex.Unlock()
		try(fight{m, row})
	})
}

// fight is a case of a battle.
type fight struct {
	machine
	row *tallyRow
}

// judge counts an attempt; the errors are what it must not have achieved.
func (f fight) judge(errors ...string) {
	f.t.Helper()
	f.judgeAll(1, errors...)
}

// judgeAll is judge for that many attempts, which hold together or not at all.
func (f fight) judgeAll(attempts int, errors ...string) {
	f.t.Helper()
	f.row.tried += attempts
	for _, e := range errors {
		f.t.Error(e)
	}
	if len(errors) == 0 {
		f.row.held += attempts
	}
}

// attackDir has the attacker program; as notify-mainpid it stands for the
// helper. In attackRun it writes down what it saw.
const (
	attackDir = "/usr/local/lib/attack"
	attacker  = attackDir + "/attacker"
	attackRun = "/run/attack"
)

func (m machine) installAttacker() {
	m.t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(m.box.Root(), attacker), "./attacker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("build attacker: %v\n%s", err, out)
	}
	m.shell(`ln -sf attacker "$1/notify-mainpid"; mkdir -p "$2"`, attackDir, attackRun)
}

// victim is a process that must get no signal.
type victim struct {
	machine
	pid, start, log string
}

var victimNumber atomic.Int32

// victim starts a process of the user with that UID, in a unit of its own.
func (m machine) victim(uid string) victim {
	m.t.Helper()
	name := fmt.Sprintf("victim%03d", victimNumber.Add(1))
	v := victim{machine: m, log: path.Join(attackRun, name)}
	m.shell(`: >"$1"; chmod 666 "$1"`, v.log)
	m.run("systemd-run", "--quiet", "--uid="+uid, "--unit="+name, attacker, "signals", v.log)
	m.t.Cleanup(func() { m.try("systemctl", "kill", "--signal=KILL", name) })
	v.pid = m.property(name, "MainPID")
	v.start = m.startTime(v.pid)
	return v
}

// harmed says what happened to the victim.
func (v victim) harmed() []string {
	if got := v.startTime(v.pid); got != v.start {
		return []string{fmt.Sprintf("process %s has ended", v.pid)}
	}
	if got := v.run("cat", v.log); got != "" {
		return []string{fmt.Sprintf("process %s got signals: %s", v.pid, got)}
	}
	return nil
}

// startTime tells processes with one PID from each other; it is empty if there
// is none.
func (m machine) startTime(pid string) string {
	m.t.Helper()
	// Field 22 of proc_pid_stat(5).
	return m.try("sh", "-c", `sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20`, "sh", pid).stdout
}

// watched has the attacker program stand for the unit's helper, which gets less
// time than it usually has.
func (n unit) watched() unit {
	n.t.Helper()
	n.editDropin(`ExecStartPost=\+/\S*/notify-mainpid (--user=\d+)( --timeout=infinity)?`,
		"ExecStartPost=+"+attackDir+"/notify-mainpid $1 --timeout="+helperTimeout.String())
	// The helper is a child of systemd's.
	n.dropin(60, "[Service]\nNotifyAccess=all\n")
	return n
}

// What the helper may use: its own time-out, which the attack may make it wait
// for, and what a busy machine needs on top; and memory, in KiB.
const (
	helperTimeout = 3 * time.Second
	helperTime    = helperTimeout + 10*time.Second
	helperMemory  = 64 << 10
)

// stage is a unit with a script of its user's, the attacker's, where podman
// would be: it starts many times in little time.
func (u user) stage(mode string, template bool) unit {
	u.t.Helper()
	n := unit{user: u, name: u.name + "-stage.service"}
	file := n.name
	if template {
		file = u.name + "-stage@.service"
		n.name = u.name + "-stage@" + mode + ".service"
	}
	u.write(path.Join(unitDir, file), fmt.Sprintf("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sh %s/attack\nTimeoutStartSec=60\nTimeoutStopSec=2\n", u.home()))
	u.run("oci-mainpid", "generate", "--user="+u.name, "--cgroup="+mode, path.Join(unitDir, file))
	edited := n
	edited.name = file
	edited.watched()
	u.systemctl("daemon-reload")
	n.cleanUp()
	u.writeHome("runtime", "#!/bin/sh\nexec sleep 1000\n")
	u.shell(`chmod +x "$1"/runtime`, u.home())
	return n
}

// prelude is what the attackers' scripts have in common. Descriptor 3 is the
// mainpid file: systemd opened it for the unit, or it belongs to the user.
//
// claim writes a PID into it. conmon starts a program with conmon's arguments,
// and waits for its child, which is no container.
const prelude = `
cd ~ || exit
rm -rf bundle claimed succeeded refused; mkdir bundle
attacker=` + attacker + `
[ ! -w "$OCI_MAINPID_FILE" ] || exec 3>"$OCI_MAINPID_FILE"
claim() { echo "$1" >claimed; echo "$1" >&3; }
conmon() {
	"$@" --api-version 1 --full-attach --sync -c x -u x -n x -r ~/runtime -b ~/bundle -p ~/bundle/pid -l k8s-file:log \
		</dev/null >/dev/null 2>&1 3>&- &
	pid=$!
	until [ -n "$(cat /proc/$pid/task/$pid/children)" ]; do sleep 0.01; done
}
`

// outcome is what came of an attempt.
type outcome struct {
	unit
	claimed string // PID, if any
	state   string // ActiveState
	mainPID string
	// helper is what it took; its PID is empty if it was killed.
	helper struct {
		pid                  string
		status, memory, took int
	}
	said []string // by the helper
	log  string
}

// attempt starts the stage, whose user runs the script in it. Meanwhile, that is
// before the start comes to its end, may be nil.
func (n unit) attempt(script string, meanwhile func()) outcome {
	n.t.Helper()
	n.writeHome("attack", prelude+script+"\nwait\nexec sleep 1000\n")
	return n.observe(meanwhile)
}

// observe starts a unit that is watched.
func (n unit) observe(meanwhile func()) outcome {
	n.t.Helper()
	report := path.Join(attackRun, n.name+".report")
	cursor := path.Join(attackRun, n.name+".cursor")
	n.shell(`rm -f "$1" "$2"; journalctl --sync; journalctl --quiet --lines=1 --cursor-file="$2" >/dev/null`, report, cursor)
	o := outcome{unit: n}
	if meanwhile == nil {
		n.try("systemctl", "start", n.name)
	} else {
		n.systemctl("start", "--no-block", n.name)
		meanwhile()
	}
	n.await("the start has come to its end", commandTimeout, func() bool {
		o.state = n.property("ActiveState")
		return o.state == "active" || o.state == "failed" || o.state == "inactive"
	})
	o.mainPID = n.property("MainPID")
	o.claimed = n.try("cat", n.home()+"/claimed").stdout
	fmt.Sscan(n.try("cat", report).stdout, &o.helper.pid, &o.helper.status, &o.helper.memory, &o.helper.took)
	n.run("journalctl", "--sync")
	o.log = n.run("journalctl", "--quiet", "--no-pager", "--unit="+n.name, "--cursor-file="+cursor)
	// With --forget it may have something to say, too.
	for _, line := range regexp.MustCompile(`notify-mainpid\[`+cmp.Or(o.helper.pid, `\d+`)+`\]: (.*)`).FindAllStringSubmatch(o.log, -1) {
		o.said = append(o.said, line[1])
	}
	return o
}

// sentByHelper returns the notifications that systemd got from the helper.
func (o outcome) sentByHelper() []string {
	return regexp.MustCompile(`.*Got notification message from PID `+o.helper.pid+`\b.*`).FindAllString(o.log, -1)
}

// excess says where the helper took more than it may.
func (o outcome) excess() (wrong []string) {
	if o.helper.memory > helperMemory {
		wrong = append(wrong, fmt.Sprintf("notify-mainpid took %d KiB of memory", o.helper.memory))
	}
	if took := time.Duration(o.helper.took) * time.Millisecond; took > helperTime {
		wrong = append(wrong, fmt.Sprintf("notify-mainpid took %v", took))
	}
	return wrong
}

// notRefused says what is wrong with an attempt that must have failed, with that
// exit status and for that reason.
func (o outcome) notRefused(status int, reason string) []string {
	wrong := o.excess()
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if o.state == "active" {
		say("%s started, with main PID %s; claimed was %s", o.name, o.mainPID, o.claimed)
		o.try("systemctl", "stop", o.name)
	}
	switch {
	case o.helper.pid == "":
		say("notify-mainpid did not come to its end; it said %q", o.said)
	case o.helper.status != status:
		say("notify-mainpid ended with %d, not %d; it said %q", o.helper.status, status, o.said)
	default:
		for _, line := range o.sentByHelper() {
			say("notify-mainpid told systemd: %s", line)
		}
	}
	pattern := "^" + regexp.QuoteMeta(o.name) + ": .*(" + reason + ")"
	if len(o.said) != 1 || !regexp.MustCompile(pattern).MatchString(o.said[0]) {
		say("notify-mainpid said %q, not one line that matches %q", o.said, pattern)
	}
	// systemd logs this where it takes a main process that is no child of its own.
	if o.claimed != "" && regexp.MustCompile(`(?i)supervising process `+o.claimed+`\b`).MatchString(o.log) {
		say("systemd took %s for the main process:\n%s", o.claimed, o.log)
	}
	return wrong
}

// notTaken says what is wrong with an attempt after which the claimed process must
// be the main process, and stops the unit.
func (o outcome) notTaken() []string {
	wrong := o.excess()
	if o.state != "active" || o.mainPID != o.claimed || o.claimed == "" {
		wrong = append(wrong, fmt.Sprintf("%s is %s with main PID %s; claimed was %q; notify-mainpid said %q", o.name, o.state, o.mainPID, o.claimed, o.said))
	}
	o.stop()
	return wrong
}

// storm starts and stops the stage as often as it can, for a race. It returns
// the PIDs that were claimed, and where the main process was another one.
func (n unit) storm(script string) (claimed map[string]bool, wrong []string) {
	n.t.Helper()
	n.writeHome("attack", prelude+script+"\nwait\nexec sleep 1000\n")
	out := n.shell(`
		cd "$2"
		end=$(($(date +%s) + $3))
		for i in $(seq 200); do
			[ $(date +%s) -lt $end ] || break
			systemctl start "$1" 2>/dev/null || :
			echo "$(systemctl show --property=ActiveState "$1") $(systemctl show --property=MainPID "$1") $(cat claimed)"
			systemctl stop "$1"
		done`, n.name, n.home(), fmt.Sprint(int(max((*raceTime).Seconds(), 1))))
	claimed = map[string]bool{}
	for line := range strings.Lines(out) {
		var state, mainPID, pid string
		fmt.Sscanf(line, "ActiveState=%s MainPID=%s %s", &state, &mainPID, &pid)
		claimed[pid] = true
		if state == "active" && mainPID != pid {
			wrong = append(wrong, fmt.Sprintf("main PID %s, but %s was claimed", mainPID, pid))
		}
	}
	return claimed, wrong
}

// repeat calls for an attempt, as often as asked unless that takes too long.
func repeat(times int, attempt func()) {
	for deadline := time.Now().Add(*raceTime); times > 0 && time.Now().Before(deadline); times-- {
		attempt()
	}
}
