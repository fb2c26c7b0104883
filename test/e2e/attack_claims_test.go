//go:build e2e

package e2e

import (
	"fmt"
	"strings"

	"oci-mainpid-hook/test/sandbox"
)

// attack is a script of the unit's user's, run as the unit's program, that must
// make the start fail, with what notify-mainpid says of it.
type attack struct {
	name   string
	script string
	reason string
	status int // of notify-mainpid, 1 if 0
}

// fightOn fights on each of the stages.
func (b battle) fightOn(stages []unit, attacks []attack, victims ...victim) {
	b.t.Helper()
	for _, a := range attacks {
		b.fight(a.name, func(f fight) {
			for _, n := range stages {
				wrong := n.in(f.machine).attempt(a.script, nil).notRefused(max(a.status, 1), a.reason)
				for _, v := range victims {
					wrong = append(wrong, v.harmed()...)
				}
				f.judge(wrong...)
			}
		})
	}
}

// claims: a process is claimed that is not this unit's conmon.
func (b battle) claims() {
	u := b.user()
	neighbour := u.unit(service{mode: "mixed", container: "neighbour"})
	neighbour.start()
	before := neighbour.assertMainPIDIsConmon()
	daemon := b.victim("root")
	other := b.userWithoutImage()
	stranger := b.victim(other.uid)
	// systemd opens the file for the one, the user opens it for the other.
	opened, named := u.stage("mixed", false), u.stage("user", true)
	stages := []unit{opened, named}

	// What some administrators allow: root's processes may use a file system of
	// the user's.
	b.shell(`echo user_allow_other >>/etc/fuse.conf`)

	b.fightOn(stages, []attack{
		{name: "PID 1", script: `claim 1`, reason: `refused: process 1: runs as UID 0, not as the unit's user`},
		{name: "a root daemon", script: `claim ` + daemon.pid, reason: `refused: process \d+: runs as UID 0, not as the unit's user`},
		{name: "another user's process", script: `claim ` + stranger.pid, reason: `refused: process \d+: runs as UID ` + other.uid},
		{name: "another unit's conmon of the same user", script: `claim ` + before.conmon, reason: `refused: process \d+: belongs to another start or another unit`},
		{name: "a process named conmon that is not", script: `
			mkdir -p fake; cp $attacker fake/conmon; : >log
			fake/conmon signals log & claim $!`, reason: `refused: process \d+: does not execute conmon`},
		{name: "a copy of conmon's binary in the user's home", script: `
			cp /usr/bin/conmon copy; conmon ./copy; claim $pid`, reason: `refused: process \d+: does not execute conmon`},
		{name: "conmon's binary started by hand without a container", script: `
			rm -f never; mkfifo never
			_OCI_STARTPIPE=4 /usr/bin/conmon --api-version 1 --sync -c x -u x -n x -r /bin/false -b bundle -l k8s-file:log </dev/null >/dev/null 4<>never &
			until [ "$(readlink /proc/$!/exe)" = /usr/bin/conmon ]; do sleep 0.01; done
			claim $!`, reason: `refused: process \d+: has no container`},
		{name: "an environment forged to carry the right INVOCATION_ID", script: `claim $$`, reason: `refused: process \d+: does not execute conmon`},
		{name: "root's conmon with another INVOCATION_ID", script: `
			conmon env INVOCATION_ID=00000000000000000000000000000000 /usr/bin/conmon
			claim $pid`, reason: `refused: process \d+: belongs to another start or another unit`},
		{name: "the PID of a thread", script: `claim $($attacker thread & )`, reason: `refused: process \d+: is a thread`},
		{name: "a zombie", script: `
			sh -c 'sleep 0.1 & echo $! >zombie; exec sleep 1000' &
			until [ -s zombie ] && grep -q '^State:.Z' /proc/$(cat zombie)/status; do sleep 0.01; done
			claim $(cat zombie); rm zombie`, reason: `refused: process \d+: has ended`},
		{name: "a set-user-ID program that the user runs", script: `
			rm -f never; mkfifo never
			su root <>never >/dev/null 2>&1 &
			sleep 0.3; claim $!`, reason: `refused: process \d+: runs as UID 0`},
		{name: "no process", script: `claim 4194303`, reason: `refused: process 4194303: no such process`},
		{name: "a process in another PID namespace", script: `
			conmon unshare --user --map-root-user --pid --fork /usr/bin/conmon
			claim $(cat /proc/$pid/task/$pid/children)`, reason: `refused: process \d+: is in another PID namespace`},
		{name: "a program of the user's, mounted over conmon's path", script: `
			cp $attacker mine; : >log
			unshare --user --map-root-user --mount sh -c 'mount --bind mine /usr/bin/conmon; exec /usr/bin/conmon signals log' &
			until [ "$(readlink /proc/$!/exe)" = /usr/bin/conmon ]; do sleep 0.01; done
			claim $!`, reason: `refused: process \d+: does not execute conmon`},
		{name: "an environment of 6 MiB", script: big + `conmon env INVOCATION_ID=0 /usr/bin/conmon; claim $pid`,
			reason: `refused: process \d+: belongs to another start`},
		{name: "an executable on a file system that never answers", script: `
			fuse=fuse-$$; mkdir $fuse; cd $fuse; mkdir low up work mnt; cp /bin/sleep low
			fuse-overlayfs -o lowerdir=low,upperdir=up,workdir=work,timeout=0,allow_other ~/$fuse/mnt
			mnt/sleep 1000 & p=$!
			until [ "$(readlink /proc/$p/exe)" = ~/$fuse/mnt/sleep ]; do sleep 0.01; done
			kill -STOP $(pgrep -f "^fuse-overlayfs.*$fuse/mnt"); cd ~
			claim $p`, reason: `refused: process \d+: does not execute conmon`},
	}, daemon, stranger)

	b.fight("an environment of 6 million empty variables", func(f fight) {
		for _, n := range stages {
			n := n.in(f.machine)
			o := n.attempt(big+`conmon /usr/bin/conmon; $attacker blank environ $pid; claim $pid`, nil)
			// It is in the unit's control group, so that it may be taken all the same.
			if o.state == "active" {
				f.judge(o.notTaken()...)
			} else {
				f.judge(o.notRefused(1, `refused: process \d+: belongs to another start`)...)
			}
		}
	})
	b.fight("the conmon of a container of the user's by hand, which knows no INVOCATION_ID", func(f fight) {
		u := u.in(f.machine)
		u.podman("run", "--detach", "--name=byhand", imageName, "sleep", "1000")
		f.t.Cleanup(func() { u.try(u.as("podman", "rm", "--force", "--time=0", "byhand")...) })
		byHand := u.stored("byhand").conmon
		for _, n := range stages {
			f.judge(n.in(f.machine).attempt(`claim `+byHand, nil).notRefused(1, `refused: process \d+: belongs to another start or another unit`)...)
		}
	})
	b.fight("this unit's previous conmon", func(f fight) {
		n := named.in(f.machine)
		// It is the user's to keep a container of an earlier start.
		n.attempt(`
			unset OCI_MAINPID_FILE
			podman run --detach --name=previous --cgroups=no-conmon `+imageName+` sleep 1000 >&2
			podman container inspect --format='{{.State.ConmonPid}}' previous >previous
			claim nothing`, nil)
		f.t.Cleanup(func() { n.try(n.as("podman", "rm", "--force", "--time=0", "previous")...) })
		previous := n.stored("previous").conmon
		if f.startTime(previous) == "" {
			f.t.Fatalf("conmon %s is gone", previous)
		}
		f.judge(n.attempt(`claim `+previous, nil).notRefused(1, `refused: process \d+: belongs to another start or another unit`)...)
		if got := n.inspect("previous", ".State.Status"); got != "running" {
			f.t.Errorf("the container is %s", got)
		}
	})

	b.fight("another unit's conmon, with the unit's EnvironmentFile= forged", func(f fight) {
		n := opened.in(f.machine)
		n.dropin(70, "[Service]\nEnvironmentFile=-"+n.home()+"/environment\n")
		n.systemctl("daemon-reload")
		n.writeHome("environment", "INVOCATION_ID="+neighbour.property("InvocationID")+"\n")
		f.t.Cleanup(func() { n.run("rm", n.home()+"/environment") })
		f.judge(n.attempt(`claim `+before.conmon, nil).notRefused(1, `refused: .*INVOCATION_ID`)...)
	})

	b.fight("another container of the same kube unit", func(f fight) {
		n := opened.in(f.machine)
		n.editDropin(`ExecStartPost=(\S*) --user`, "ExecStartPost=$1 --require=kube --user")
		n.systemctl("daemon-reload")
		for _, a := range []attack{
			{script: `conmon /usr/bin/conmon; claim $pid`, reason: `is of container "x", not of the kube unit's service container`},
			{script: `ulimit -s unlimited; conmon /usr/bin/conmon $(seq -f '--exit-command-arg=%0999g' 4000); $attacker blank cmdline $pid; claim $pid`, reason: `refused: process \d+: `},
			{script: `
				echo '#!/bin/sh
				i=0; while [ $i -lt 1000 ]; do sleep 1000 & i=$((i + 1)); done' >runtime2; chmod +x runtime2
				conmon /usr/bin/conmon -r ~/runtime2; sleep 1; claim $pid`, reason: `refused: process \d+: `},
		} {
			f.judge(n.attempt(a.script, nil).notRefused(1, a.reason)...)
		}
	})

	if after := neighbour.assertMainPIDIsConmon(); after != before {
		b.t.Errorf("the neighbour's processes were %v, are %v", before, after)
	}
}

// big makes the environment as large as execve(2) allows, in strings as long as
// it allows.
const big = `
	ulimit -s unlimited
	v=$(head -c 130000 /dev/zero | tr '\0' x)
	for i in $(seq 45); do export "V$i=$v"; done
	unset v
`

// reusedPIDs: the claimed process is the user's own conmon, it ends, and another
// user's process gets its PID while the helper is at work.
func (b battle) reusedPIDs() {
	u := b.user()
	other := b.userWithoutImage()
	n := u.stage("user", true)
	pidMax := b.run("cat", "/proc/sys/kernel/pid_max")
	// The machine's own, since Linux 6.14. So few that they are soon used up.
	if r := b.try("sh", "-c", `echo 2000 >/proc/sys/kernel/pid_max`); r.status != 0 {
		b.t.Skipf("no pid_max of the machine's own: %v", r)
	}
	b.t.Cleanup(func() { b.shell(`echo "$1" >/proc/sys/kernel/pid_max`, pidMax) })
	// The first 300 are not given twice.
	b.shell(`while : & [ $! -lt 300 ]; do wait; done`)

	// A file of the user's may set what tells of systemd's version.
	edited := n
	edited.name = u.name + "-stage@.service"
	edited.dropin(70, "[Service]\nEnvironmentFile=-"+u.home()+"/environment\n")
	n.systemctl("daemon-reload")

	for _, c := range []struct {
		name, hold, reason string
		sent               bool
		environment        string
	}{
		// On a busy machine the helper goes on before the PID is taken.
		{"a PID that is reused between write and check", "before-check", `refused: process \d+: (runs as UID ` + other.uid + `|no such process)`, false, ""},
		{"a PID that is reused between check and notification", "before-send", `process \d+: has ended`, true, ""},
		{"a PID that is reused between check and notification, with MAINPIDFDID=1 in a file of EnvironmentFile=", "before-send", `process \d+: has ended`, true, "MAINPIDFDID=1\n"},
	} {
		b.fight(c.name, func(f fight) {
			n := n.in(f.machine)
			n.writeHome("environment", c.environment)
			repeat(50, func() { f.reuse(n, other, c.hold, c.reason, c.sent) })
			if f.row.tried == 0 {
				f.t.Error("no PID was reused in time")
			}
		})
	}
}

// reuse holds the helper while the PID changes hands.
func (f fight) reuse(n unit, other user, at, reason string, sent bool) {
	hold, held := fmt.Sprintf("%s/%s.hold", attackRun, n.name), fmt.Sprintf("%s/%s.held", attackRun, n.name)
	f.shell(`rm -f "$2"; echo "$3" >"$1"`, hold, held, at)
	var v victim
	kept, free := false, false
	o := n.attempt(`conmon /usr/bin/conmon; claim $pid`, func() {
		defer f.run("rm", hold)
		f.await("the helper is held", soon, func() bool { return f.try("test", "-e", held).status == 0 })
		pid := f.run("cat", n.home()+"/claimed")
		f.run("kill", "-9", pid)
		kept = f.isKept(pid)
		// Before systemd 257 nothing else stands in the way of the next process.
		if free = !kept && sent && f.box.Suite == sandbox.Bookworm; !kept && !free {
			v = other.takePID(pid)
		}
	})
	if free {
		f.judge(fmt.Sprintf("the PID of %s was free while systemd was told of it", n.name))
		return
	}
	if v.pid == "" && !kept {
		return // somebody else was faster
	}
	var wrong []string
	if sent {
		// Root's notification was under way: systemd must refuse it.
		if got := o.sentByHelper(); len(got) == 0 {
			wrong = append(wrong, "nothing was sent, so this tried nothing")
		}
		refused := "mismatches with received MAINPIDFDID="
		if kept {
			refused = "New main PID " + o.claimed + " does not exist or is a zombie"
		}
		if !strings.Contains(o.log, refused) {
			wrong = append(wrong, "systemd did not refuse it:\n"+o.log)
		}
		o.log = ""
		if o.mainPID == o.claimed {
			wrong = append(wrong, "systemd took it")
		}
	}
	o.helper.took = 0 // the case held it
	wrong = append(wrong, o.notRefused(1, reason)...)
	if !kept {
		wrong = append(wrong, v.harmed()...)
	}
	f.judge(wrong...)
}

// isKept tells of a process that has been killed whether the helper keeps its PID
// from being reused, see conmonbridge.Claim.Hold: it stays a zombie.
func (f fight) isKept(pid string) bool {
	f.t.Helper()
	return f.try("sh", "-c", `
		for i in $(seq 30); do
			grep -Eq "^TracerPid:.*[1-9]" "/proc/$1/status" || exit 1
			sleep 0.01
		done
		grep -q "^State:.*zombie" "/proc/$1/status"`, "sh", pid).status == 0
}

// takePID starts a process of the user's with the PID of one that has been killed.
func (u user) takePID(pid string) victim {
	u.t.Helper()
	v := victim{machine: u.machine, pid: pid, log: fmt.Sprintf("%s/victim%03d", attackRun, victimNumber.Add(1))}
	v.shell(`: >"$1"; chmod 666 "$1"`, v.log)
	r := v.try(u.as("sh", "-c", `
		while [ -e /proc/$1 ]; do sleep 0.01; done
		for i in $(seq 10000); do
			: & wait $!
			# The kernel counts up, and skips what is in use.
			below=$(($1 - 1))
			while [ -e /proc/$below ]; do below=$((below - 1)); done
			[ $! -eq $below ] || continue
			`+attacker+` signals "$2" </dev/null >/dev/null 2>&1 &
			[ $! -ne $1 ] || exit 0
			kill -9 $!; wait $!
		done
		exit 1`, "sh", pid, v.log)...)
	if r.status != 0 {
		return victim{}
	}
	v.t.Cleanup(func() { v.try("kill", "-9", pid) })
	v.start = v.startTime(pid)
	return v
}
