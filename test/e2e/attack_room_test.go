//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

// rooms: one user takes what all units share.
func (b battle) rooms() {
	for _, what := range []string{"bytes", "xattrs"} {
		b.fight("room in /run/oci-mainpid, kept by a process outside of the unit: "+what, func(f fight) {
			u, other := f.user(), f.user()
			// To have extended attributes, the file must be the user's own.
			n := map[string]func() unit{
				"bytes":  func() unit { return u.stage("mixed", false) },
				"xattrs": func() unit { return u.stage("user", true) },
			}[what]()
			others := []unit{other.stage("mixed", false), other.stage("user", true)}
			if o := n.attempt(`conmon /usr/bin/conmon; claim $pid`, nil); o.state != "active" {
				f.t.Fatalf("%s is %s; notify-mainpid said %q", n.name, o.state, o.said)
			}
			u.background("hoard", `exec $attacker hoard `+n.mainPIDFile()+` `+what+` hoarded`)
			u.awaitHome("hoarded")
			f.t.Logf("the user took %s", f.run("cat", u.home()+"/hoarded"))
			// While the unit runs, and when it has stopped.
			for range 2 {
				for _, other := range others {
					o := other.attempt(`conmon /usr/bin/conmon; claim $pid`, nil)
					var wrong []string
					if o.state != "active" {
						wrong = append(wrong, fmt.Sprintf("the unit of another user is %s, notify-mainpid said %q", o.state, o.said))
					}
					wrong = append(wrong, o.notTaken()...)
					f.judge(wrong...)
				}
				n.stop()
			}
		})
	}
	b.fight("many units of one user that wait at once", func(f fight) {
		units := 40
		if thorough() {
			units = 300
		}
		f.judgeAll(units, f.user().waitAtOnce(units)...)
	})
}

// waitAtOnce starts that many instances of a unit whose helpers wait for a PID, and
// says what is wrong with how they do.
func (u user) waitAtOnce(units int) (wrong []string) {
	u.t.Helper()
	file := path.Join(unitDir, u.name+"-wait@.service")
	u.writeHome("wait", "read line <gate\n")
	u.must(u.try(u.as("mkfifo", u.home()+"/gate")...))
	u.write(file, fmt.Sprintf("[Service]\nExecStart=/bin/sh -c 'cd %s && exec sh wait'\nTimeoutStartSec=5min\n", u.home()))
	u.run("oci-mainpid", "generate", "--user="+u.name, "--cgroup=user", file)
	u.systemctl("daemon-reload")
	all := u.name + "-wait@*.service"
	u.t.Cleanup(func() {
		u.try("systemctl", "kill", "--signal=KILL", all)
		u.try("systemctl", "stop", all)
		u.shell(`rm -r "$1" "$1.d"`, file)
	})
	for from := 1; from <= units; from += 20 { // a busy systemd needs a second for each
		u.shell(`systemctl start --no-block $(for i in $(seq "$2" "$3"); do echo "$1-wait@$i.service"; done)`, u.name, strconv.Itoa(from), strconv.Itoa(min(from+19, units)))
	}
	helpers := func() (running, watching int) {
		fmt.Sscan(u.shell(`
			p=$(pgrep -f '^/usr/libexec/oci-mainpid/notify-mainpid.*--unit='"$1-wait@") || p=
			[ -n "$p" ] || { echo 0 0; exit; }
			echo $(echo "$p" | wc -l) $(for i in $p; do ls -l /proc/$i/fd 2>/dev/null; done | grep -c anon_inode:inotify)`, u.name), &running, &watching)
		return running, watching
	}
	running, watching := 0, 0
	for deadline := time.Now().Add(4 * time.Minute); running < units && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		running, watching = helpers()
	}
	if running < units {
		u.run("journalctl", "--sync")
		wrong = append(wrong, fmt.Sprintf("%d of %d units wait; notify-mainpid said %q", running, units,
			u.try("journalctl", "--no-pager", "--output=cat", "--lines=2", "--identifier=notify-mainpid", "--unit="+all).stdout))
	}
	// Root has 128 of them by default, fs.inotify.max_user_instances, for all that is
	// root's on the machine.
	if most := 16; watching > most {
		wrong = append(wrong, fmt.Sprintf("%d helpers that wait hold %d inotify instances of root's", running, watching))
	}
	return wrong
}

// environments: what a file of EnvironmentFile= tells a helper that root runs.
func (b battle) environments() {
	u := b.user()
	daemon := b.victim("root")
	n := u.stage("user", true)
	n.systemctl("start", "user@"+u.uid)
	u.podman("run", "--detach", "--name=byhand", imageName, "sleep", "1000")
	b.t.Cleanup(func() { u.try(u.as("podman", "rm", "--force", "--time=0", "byhand")...) })
	byHand := u.stored("byhand").conmon
	edited := n
	edited.name = u.name + "-stage@.service"
	edited.dropin(70, "[Service]\nEnvironmentFile=-"+u.home()+"/environment\n")
	n.systemctl("daemon-reload")
	for _, c := range []struct{ name, variables string }{
		{"MAINPIDFDID=", "MAINPIDFDID=1"},
		{"MAINPID= of PID 1", "MAINPID=1"},
		{"MAINPID= of a root daemon", "MAINPID=" + daemon.pid},
		{"NOTIFY_SOCKET=", "NOTIFY_SOCKET=@forged"},
		{"INVOCATION_ID=", "INVOCATION_ID=00000000000000000000000000000000"},
		{"what the Go runtime goes by, and others", "GODEBUG=asyncpreemptoff=1,madvdontneed=1\nGOMEMLIMIT=1\nGOGC=1\nGOTRACEBACK=crash\n" +
			"LISTEN_FDS=100\nLISTEN_PID=1\nWATCHDOG_USEC=1"},
	} {
		b.fight("in a file of EnvironmentFile=: "+c.name, func(f fight) {
			n := n.in(f.machine)
			n.writeHome("environment", c.variables+"\n")
			// Neither is a wrong process taken, nor does a right one fail for a reason that the
			// user could not have brought about otherwise.
			wrong := n.attempt(`claim `+daemon.pid, nil).notRefused(1, `refused: `)
			o := n.attempt(`conmon /usr/bin/conmon; claim $pid`, nil)
			if o.state == "active" {
				wrong = append(wrong, o.notTaken()...)
			} else {
				wrong = append(wrong, o.excess()...)
			}
			f.judge(append(wrong, daemon.harmed()...)...)
		})
	}
	b.fight("in a file of EnvironmentFile=: the conmon of a container by hand as MAINPID=", func(f fight) {
		n := n.in(f.machine)
		n.writeHome("environment", "MAINPID="+byHand+"\n")
		f.judge(n.attempt(`claim `+byHand, nil).notRefused(1, `refused: process \d+: belongs to another start or another unit`)...)
	})
	b.run("rm", u.home()+"/environment")
}

// strangers: containers that are none of ours, which the hook must leave alone.
func (b battle) strangers() {
	b.fight("a stranger's container with annotations of 5 MiB", func(f fight) {
		u := f.user()
		f.systemctl("start", "user@"+u.uid)
		f.podmanAsRoot()
		for _, who := range [][]string{u.as(), {"env"}} {
			r := f.try(append(who, "bash", "-c", `
				ulimit -s unlimited
				v=$(head -c 120000 /dev/zero | tr '\0' x); args=
				for i in $(seq 44); do args="$args --annotation=a$i=$v"; done
				timeout 60 podman run --rm --network=none $args `+imageName+` echo started 2>&1 | tail -c 1000`)...)
			var wrong []string
			if !strings.Contains(r.stdout, "started") {
				wrong = append(wrong, fmt.Sprintf("as %.7s: %s", who[0], r.stdout))
			}
			f.judge(wrong...)
		}
	})
	b.fight("a rootful container whose image names a file of root's as the mainpid file", func(f fight) { f.judge(f.imageNamesFile()...) })
}

// podmanAsRoot gives root the image until the test ends.
func (m machine) podmanAsRoot() {
	m.t.Helper()
	m.run("podman", "import", "--quiet", sandbox.BusyboxTar, imageName)
	m.t.Cleanup(func() { m.try("podman", "rmi", "--force", imageName) })
}

// imageNamesFile runs a container as root, whose conmon has next to no environment
// and in whose control group the container's process is, and says what was written
// where the image's own environment has a mainpid file.
func (m machine) imageNamesFile() (wrong []string) {
	m.t.Helper()
	const file, image = "/root/named-by-an-image", "localhost/names-file"
	m.shell(`: >"$1"; chmod 600 "$1"`, file)
	m.t.Cleanup(func() { m.run("rm", file) })
	m.run("podman", "import", "--quiet", "--change=ENV OCI_MAINPID_FILE="+file+" PODMAN_SYSTEMD_UNIT=x.service OCI_MAINPID_RESULT="+file, sandbox.BusyboxTar, image)
	m.t.Cleanup(func() { m.try("podman", "rmi", "--force", image) })
	for _, cgroups := range []string{"enabled", "no-conmon", "disabled", "split"} {
		for _, runtime := range []string{"crun", "runc"} {
			r := m.try("systemd-run", "--quiet", "--collect", "--pipe", "--wait", "--property=Delegate=yes", "--",
				"env", "-i", "PATH="+"/usr/bin:/usr/sbin", "timeout", "60", "podman", "--runtime="+runtime,
				"run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--ulimit=memlock=8192:8192", "--cgroups="+cgroups, image, "sh", "-c", "sleep 0.3; echo started")
			if got := m.run("cat", file); got != "" {
				wrong = append(wrong, fmt.Sprintf("%s, --cgroups=%s: %s has %q", runtime, cgroups, file, got))
				m.shell(`: >"$1"`, file)
			}
			// runc has no mode "disabled"; crun 1.8, as root, raises a limit, which root may not
			// on a machine without CAP_SYS_RESOURCE.
			if r.stdout != "started" && cgroups != "disabled" && !strings.Contains(r.stderr, "setrlimit (RLIM_MEMLOCK)") {
				wrong = append(wrong, fmt.Sprintf("%s, --cgroups=%s: %v", runtime, cgroups, r))
			}
		}
	}
	return wrong
}

// timeouts: the user's messages to systemd that are not about the main process.
func (b battle) timeouts() {
	b.show("EXTEND_TIMEOUT_USEC=, so that the unit may take longer to start and to stop", func(f fight) {
		u := f.user()
		file := path.Join(unitDir, u.name+"-slow.service")
		n := unit{user: u, name: u.name + "-slow.service"}
		n.cleanUp()
		f.write(file, fmt.Sprintf("[Service]\nType=notify\nExecStart=/bin/sh %s/attack\nTimeoutStartSec=6\nTimeoutStopSec=4\n", u.home()))
		f.run("oci-mainpid", "generate", "--user="+u.name, "--cgroup=mixed", file)
		f.systemctl("daemon-reload")
		n.writeHome("runtime", "#!/bin/sh\nexec sleep 1000\n")
		n.shell(`chmod +x "$1"/runtime`, n.home())
		text, err := os.ReadFile("../../SECURITY.md")
		if err != nil {
			f.t.Fatal(err)
		}
		documented := strings.Contains(string(text), "EXTEND_TIMEOUT_USEC")
		verdict := func(what string, took time.Duration) []string {
			f.t.Logf("%s took %v", what, took.Round(time.Second/10))
			if took > 20*time.Second && !documented {
				return []string{fmt.Sprintf("%s took %v where a few seconds are given, and SECURITY.md does not say so", what, took)}
			}
			return nil
		}
		n.writeHome("attack", prelude+"\n$attacker send 1 EXTEND_TIMEOUT_USEC=25000000; exec sleep 1000\n")
		begin := time.Now()
		f.try("systemctl", "start", n.name)
		f.judge(verdict("a start", time.Since(begin))...)
		if !thorough() {
			return
		}
		n.writeHome("attack", prelude+`
			trap '$attacker send 1 EXTEND_TIMEOUT_USEC=25000000 STOPPING=1' TERM
			conmon /usr/bin/conmon; claim $pid
			$attacker send 1 READY=1
			while :; do sleep 0.2; done`)
		f.systemctl("start", n.name)
		begin = time.Now()
		f.try("systemctl", "stop", n.name)
		f.judge(verdict("a stop", time.Since(begin))...)
	})
}
