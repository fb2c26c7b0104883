//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"
)

// podmanUnit makes a unit with podman, which is watched.
func (u user) podmanUnit(s service) unit {
	u.t.Helper()
	s.more += "TimeoutStartSec=20\nTimeoutStopSec=5\n"
	n := u.unit(s)
	if s.template {
		// It is watched for all instances.
		n.watched()
		n = n.instance("one")
	} else {
		n.watched()
	}
	n.systemctl("daemon-reload")
	return n
}

// poststart has the user's podman run a script as its only poststart hook.
func (u user) poststart(script string) {
	u.t.Helper()
	u.useHooks()
	hook := map[string]any{
		"version": "1.0.0",
		"hook":    map[string]any{"path": "/bin/sh", "args": []string{"sh", "-c", script}},
		"when":    map[string]any{"always": true},
		"stages":  []string{"poststart"},
	}
	text, err := json.Marshal(hook)
	if err != nil {
		u.t.Fatal(err)
	}
	u.writeHome("hooks.d/00-attack.json", string(text))
}

// notOwn says what is wrong with a unit with podman whose start may have failed,
// and stops it: with a main process that is not its conmon.
func (o outcome) notOwn() []string {
	wrong := o.excess()
	if len(o.said) > 1 {
		wrong = append(wrong, fmt.Sprintf("notify-mainpid said %q", o.said))
	}
	if o.state == "active" {
		o.claimed = o.stored(o.container).conmon
		return append(wrong, o.notTaken()...)
	}
	return append(wrong, o.notifications(`MAINPID=`, o.helper.pid)...)
}

// notifications returns those that systemd got for the unit that match, from a
// process if its PID is given.
func (o outcome) notifications(pattern, pid string) []string {
	if pid == "" {
		pid = `\d+`
	}
	return regexp.MustCompile(`.*Got notification message from PID `+pid+`\b.*`+pattern+`.*`).FindAllString(o.log, -1)
}

// hooks: what the user does to the hook, or in its place.
func (b battle) hooks() {
	daemon := b.victim("root")
	const runsAsRoot = `refused: process \d+: runs as UID 0`

	b.fight("the hook killed", func(f fight) {
		for _, mode := range []string{"mixed", "user"} {
			u := f.user()
			n := u.podmanUnit(service{mode: mode})
			for _, after := range []string{"0", "0.001", "0.003", "0.01"} {
				u.poststart(`exec 3<&0; ` + hookProgram + ` <&3 & sleep ` + after + `; kill -9 $!; wait`)
				f.judge(n.observe(nil).notOwn()...)
			}
		}
	})
	b.fight("the hook stopped", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "user"})
		u.poststart(`exec 3<&0; ` + hookProgram + ` <&3 & kill -STOP $!; wait`)
		f.judge(n.observe(nil).notRefused(3, `no PID in the mainpid file .*nothing came within 3s`)...)
	})
	b.fight("the hook traced, so that it writes another PID", func(f fight) {
		for _, mode := range []string{"mixed", "user"} {
			u := f.user()
			n := u.podmanUnit(service{mode: mode})
			u.poststart(`exec ` + attacker + ` rewrite ` + daemon.pid + ` ` + hookProgram)
			f.judge(append(n.observe(nil).notRefused(1, runsAsRoot), daemon.harmed()...)...)
		}
	})
	b.fight("the mainpid file by pidfd_getfd from the user's podman", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "mixed"})
		u.must(u.try(u.as("mkfifo", u.home()+"/gate")...))
		u.poststart(`cat ` + u.home() + `/gate`)
		o := n.observe(func() {
			f.await("the user has the descriptor", soon, func() bool {
				return f.try(u.as("sh", "-c", `
					for p in $(pgrep -u "$1"); do
						for fd in /proc/$p/fd/*; do
							if [ "$(readlink "$fd")" = "$2" ] && "$3" put $p "${fd##*/}" "$4"; then exit 0; fi
						done
					done 2>/dev/null
					exit 1`, "sh", u.uid, n.mainPIDFile(), attacker, daemon.pid)...).status == 0
			})
			// As soon as the hook reads.
			f.shell(`timeout 15 sh -c ': >"$1"' sh "$1"`, u.home()+"/gate")
		})
		f.judge(append(o.notRefused(1, runsAsRoot), daemon.harmed()...)...)
	})
	b.fight("the mainpid file by its name, in place of the hook", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "mixed", template: true})
		u.poststart(fmt.Sprintf(`cat >/dev/null; echo %s >%s`, daemon.pid, n.mainPIDFile()))
		f.judge(append(n.observe(nil).notRefused(1, runsAsRoot), daemon.harmed()...)...)
	})
	b.fight("a second hook run for the same unit", func(f fight) {
		for _, template := range []bool{false, true} {
			u := f.user()
			n := u.podmanUnit(service{mode: "mixed", template: template})
			n.start()
			before := n.assertMainPIDIsConmon()
			second := u.as("env", "OCI_MAINPID_FILE="+n.mainPIDFile(), "PODMAN_SYSTEMD_UNIT="+n.name, "INVOCATION_ID="+n.property("InvocationID"),
				"podman", "run", "--detach", "--rm", "--name=second", imageName, "sh", "-c", `trap "exit 0" TERM; sleep 1000 & wait`)
			state := fmt.Sprintf(`{"ociVersion": "1.0.0", "id": "x", "status": "running", "bundle": "/", "pid": %s}`, before.payload)
			for _, again := range []func(){
				func() { f.try(second...) },
				func() { f.feed(state, u.as(hookProgram)...) },
				func() { f.try(u.as("sh", "-c", `: >"$1"`, "sh", n.mainPIDFile())...) },
				func() { f.feed(state, u.as(hookProgram)...) },
				func() { f.try(second...) },
			} {
				again()
				var wrong []string
				if got := n.property("MainPID"); got != before.conmon {
					wrong = append(wrong, fmt.Sprintf("main PID %s, not %s", got, before.conmon))
				}
				f.judge(wrong...)
			}
			f.try(u.as("podman", "rm", "--force", "--time=0", "second")...)
		}
	})
}

// notifications: MAINPID= that is not root's.
func (b battle) notifications() {
	daemon := b.victim("root")
	foreign := `MAINPID=(1|` + daemon.pid + `)\b`

	b.fight("a container that sends MAINPID= itself", func(f fight) {
		for _, runtime := range []string{"crun", "runc"} {
			n := f.user().podmanUnit(service{mode: "mixed", runtime: runtime,
				options: "--sdnotify=container --volume=" + attackDir + ":/attack:ro",
				command: `sh -c '/attack/attacker send 1 MAINPID=1 MAINPID=` + daemon.pid + ` MAINPID=` + daemon.pid + `,READY=1 READY=1,MAINPID=1; trap "exit 0" TERM; sleep 1000 & wait'`})
			o := n.observe(nil)
			wrong := o.notifications(foreign, "")
			if o.state != "active" {
				wrong = append(wrong, "the unit is "+o.state)
			}
			wrong = append(wrong, o.notOwn()...)
			f.judge(append(wrong, daemon.harmed()...)...)
		}
	})
	b.fight("a flood of notifications from outside of the unit", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "mixed"})
		flood := "flood-" + u.name
		f.run("systemd-run", "--quiet", "--collect", "--uid="+u.uid, "--unit="+flood, attacker, "send", "5000", "MAINPID=1", "READY=1,MAINPID="+daemon.pid, "STOPPING=1")
		o := n.observe(nil)
		f.try("systemctl", "stop", flood)
		var wrong []string
		if o.state != "active" {
			wrong = append(wrong, "the unit is "+o.state)
		}
		wrong = append(wrong, o.notOwn()...)
		f.judge(append(wrong, daemon.harmed()...)...)
	})
	b.fight("a flood of notifications from the unit, for other processes", func(f fight) {
		n := f.user().stage("mixed", false)
		o := n.attempt(`
			$attacker send 2000 MAINPID=1 MAINPID=`+daemon.pid+` &
			conmon /usr/bin/conmon; claim $pid`, nil)
		f.await("the flood is over", soon, func() bool { return f.try("pgrep", "-u", n.uid, "-f", "attacker send").status != 0 })
		o.mainPID = n.property("MainPID")
		f.judge(append(o.notTaken(), daemon.harmed()...)...)
	})
}

// ownUnit shows what the unit's user may do to the unit.
func (b battle) ownUnit() {
	b.show("root's conmon in the right environment, with a child that is no container, becomes the main process", func(f fight) {
		u := f.user()
		for _, n := range []unit{u.stage("mixed", false), u.stage("user", true)} {
			f.judge(n.attempt(`conmon /usr/bin/conmon; claim $pid`, nil).notTaken()...)
		}
	})
	b.show("another unit's conmon, whose environment its user rewrites, becomes the main process", func(f fight) {
		u := f.user()
		neighbour := u.unit(service{mode: "mixed", container: "neighbour"})
		neighbour.systemctl("daemon-reload")
		neighbour.start()
		p := neighbour.assertMainPIDIsConmon()
		n := u.stage("user", true)
		f.judge(n.attempt(`
			$attacker replace environ `+p.conmon+` `+neighbour.property("InvocationID")+` "$INVOCATION_ID"
			claim `+p.conmon, nil).notTaken()...)
	})
	b.show("with NotifyAccess=all, another process of the unit's becomes the main process later", func(f fight) {
		n := f.user().stage("mixed", false)
		o := n.attempt(`
			conmon /usr/bin/conmon; claim $pid; sleep 0.5
			sleep 1000 & echo $! >claimed
			$attacker send 1 MAINPID=$!`, nil)
		n.await("it is", soon, func() bool {
			o.mainPID, o.claimed = n.property("MainPID"), n.run("cat", n.home()+"/claimed")
			return o.mainPID == o.claimed
		})
		f.judge(o.notTaken()...)
	})
	b.show("NOTIFYACCESS=none, so that systemd hears nothing of root's: the main process stays another one of the unit's", func(f fight) {
		// With NotifyAccess=all, as units with Type=notify have it, any process of
		// the unit may say so.
		own := func(n unit, o outcome) []string {
			wrong := o.excess()
			if o.state == "active" {
				if uid := f.run("ps", "--no-headers", "-o", "uid:1", "-p", o.mainPID); uid != n.uid {
					wrong = append(wrong, "the main process is of UID "+uid)
				}
				if group := f.run("cat", "/proc/"+o.mainPID+"/cgroup"); !strings.Contains(group, "/"+n.name) {
					wrong = append(wrong, "the main process is in "+group)
				}
			}
			n.stop()
			return wrong
		}
		for _, access := range []string{"none", "main"} {
			n := f.user().stage("mixed", false)
			f.judge(own(n, n.attempt(`$attacker send 1 NOTIFYACCESS=`+access+`; conmon /usr/bin/conmon; claim $pid`, nil))...)
		}
		// The drop-in as it is: root's helper comes when READY=1 has.
		u := f.user()
		n := u.unit(service{mode: "mixed"})
		n.systemctl("daemon-reload")
		u.poststart(`sleep 1000 </dev/null >/dev/null 2>&1 & ` + attacker + ` send 1 READY=1,MAINPID=$! NOTIFYACCESS=none; exec ` + hookProgram)
		o := n.observe(nil)
		status := f.try("oci-mainpid", "status", "--format=json", n.name).stdout
		wrong := own(n, o)
		if o.state == "active" && !strings.Contains(status, `"agrees": false`) {
			wrong = append(wrong, "oci-mainpid status does not tell: "+status)
		}
		f.judge(wrong...)
	})
	b.show("notify-mainpid frozen or killed in a control group of the user's: the start fails in TimeoutStartSec=", func(f fight) {
		n := f.user().stage("mixed", false)
		n.dropin(70, "[Service]\nTimeoutStartSec=4\n")
		n.systemctl("daemon-reload")
		for _, what := range []string{"freeze", "kill"} {
			begin := time.Now()
			o := n.attempt(`
				unit=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
				mkdir $unit/mine
				until [ -s $unit/.control/cgroup.procs ]; do sleep 0.01; done
				sleep 0.5
				for p in $(cat $unit/.control/cgroup.procs); do echo $p >$unit/mine/cgroup.procs; done
				echo 1 >$unit/mine/cgroup.`+what+`
				claim 1`, nil)
			var wrong []string
			if took := time.Since(begin); o.state != "failed" || took > 20*time.Second {
				wrong = append(wrong, fmt.Sprintf("after %v the unit is %s", took, o.state))
			}
			wrong = append(wrong, o.notifications("MAINPID=", "")...)
			if got := f.shell(`find "/sys/fs/cgroup/system.slice/$1" -name cgroup.procs -exec cat {} + 2>/dev/null || :`, n.name); got != "" {
				wrong = append(wrong, "processes are left: "+got)
			}
			f.judge(wrong...)
		}
	})
	for _, c := range []struct{ name, script string }{
		{"conmon stopped: the unit stops in TimeoutStopSec=", `kill -STOP $1`},
		{"conmon traced: the unit stops in TimeoutStopSec=", attacker + ` seize $1 >/dev/null 2>&1 &`},
	} {
		b.show(c.name, func(f fight) {
			u := f.user()
			n := u.podmanUnit(service{mode: "mixed"})
			n.start()
			p := n.assertMainPIDIsConmon()
			f.must(f.try(u.as("sh", "-c", c.script, "sh", p.conmon)...))
			begin := time.Now()
			n.stop()
			var wrong []string
			if took := time.Since(begin); took > 40*time.Second {
				wrong = append(wrong, fmt.Sprintf("stopping took %v", took))
			}
			if got := n.property("ActiveState"); got == "active" {
				wrong = append(wrong, "the unit is "+got)
			}
			if r := f.try("test", "-e", n.dir()); r.status == 0 {
				wrong = append(wrong, n.dir()+" is left")
			}
			f.judge(wrong...)
		})
	}
	b.show("the user's runtime directory full: the unit starts well or fails", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "mixed"})
		f.systemctl("start", "user@"+u.uid)
		f.run("mount", "-o", "remount,size=16m", u.runtimeDir())
		f.try(u.as("sh", "-c", `cat /dev/zero >"$XDG_RUNTIME_DIR/full" 2>/dev/null`)...)
		f.judge(n.observe(nil).notOwn()...)
		f.run("rm", path.Join(u.runtimeDir(), "full"))
		o := n.observe(nil)
		wrong := o.notOwn()
		if o.state != "active" {
			wrong = append(wrong, "with room again, the unit is "+o.state+"\n"+strings.Join(o.said, "\n"))
		}
		f.judge(wrong...)
	})
}
