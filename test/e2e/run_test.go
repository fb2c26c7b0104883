//go:build e2e

package e2e

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/test/sandbox"
)

// running is an oci-mainpid run in the background.
type running struct {
	user
	dir, pid string
}

// supervised starts a command as the user, as a supervisor would. Its name must be
// oci-mainpid.
func (u user) supervised(args ...string) running {
	u.t.Helper()
	r := running{user: u, dir: u.run("mktemp", "--directory", "/run/run.XXXXXX")}
	u.shell(`
		dir=$1; shift
		(set +e; "$@" >$dir/out 2>$dir/err 3>$dir/ready & echo $! >$dir/pid; wait $!; echo $? >$dir/new; mv $dir/new $dir/status) </dev/null >/dev/null 2>&1 &
		until [ -s $dir/pid ]; do sleep 0.01; done`, append([]string{r.dir}, u.as(args...)...)...)
	r.pid = u.run("cat", r.dir+"/pid") // setpriv and env execute what follows
	return r
}

// awaitReady waits until a line has come by descriptor 3.
func (r running) awaitReady() {
	r.t.Helper()
	r.await("ready", soon, func() bool { return r.try("grep", "-q", "ready", r.dir+"/ready").status == 0 || r.ended() })
	if r.ended() {
		r.t.Fatalf("it has ended: %s\n%s", r.run("cat", r.dir+"/status"), r.run("cat", r.dir+"/err"))
	}
}

func (r running) ended() bool { return r.try("test", "-e", r.dir+"/status").status == 0 }

// end waits for the end, and returns the exit status and what was said.
func (r running) end() (status, said string) {
	r.t.Helper()
	r.await("it has ended", time.Minute, r.ended)
	return r.run("cat", r.dir+"/status"), r.run("cat", r.dir+"/err")
}

func (r running) kill(signal string) { r.t.Helper(); r.run("kill", "-"+signal, r.pid) }

// awaitHandler waits until the first process of a container handles a signal, which it
// ignores before, being PID 1.
func (u user) awaitHandler(container string, signal unix.Signal) {
	u.t.Helper()
	pid := u.stored(container).payload
	u.await("it handles the signal", soon, func() bool {
		caught, err := strconv.ParseUint(u.try("sed", "-n", `s/^SigCgt:\t//p`, "/proc/"+pid+"/status").stdout, 16, 64)
		return err == nil && caught>>(signal-1)&1 == 1
	})
}

// assertNothingLeft checks that neither a container nor a file is left.
func (u user) assertNothingLeft() {
	u.t.Helper()
	u.await("nothing is left", soon, func() bool {
		return u.try("pgrep", "-U", u.uid, "conmon").status != 0 && u.podman("ps", "--all", "--quiet") == "" && u.try("sh", "-c", `ls -A "$1" 2>/dev/null`, "sh", u.runtimeDir()+"/oci-mainpid/run").stdout == ""
	})
}

// TestRun: oci-mainpid run for whatever starts it.
func TestRun(t *testing.T) {
	onOneStack(t, onFirst, func(m machine) {
		u := m.user()
		m.systemctl("start", "user@"+u.uid)
		podman := func(command ...string) []string {
			return append([]string{"podman", "run", "-d", "--rm", "--name=a", imageName}, command...)
		}
		run := func(flags string, podman []string) []string {
			return append(append(append([]string{"oci-mainpid", "run"}, strings.Fields(flags)...), "--"), podman...)
		}
		sleep := podman("sh", "-c", `trap "exit 5" TERM; trap "echo usr1; exit 6" USR1; sleep 1000 & while :; do wait; done`)
		m.subtest("bad input", func(m machine) {
			u := u
			u.machine = m
			for _, c := range []struct {
				env    string
				args   []string
				status int
				said   string
			}{
				{"", []string{"oci-mainpid", "run"}, 2, "no command given"},
				{"", run("", []string{"ls", "/"}), 2, "ls is no podman"},
				{"", run("", []string{"podman", "run", "--rm", "--name=a", imageName}), 2, "add -d"},
				{"", run("", []string{"podman", "run", "-d", "--name=a", imageName}), 2, "add --rm"},
				{"", run("", []string{"podman", "run", "-d", "--rm", imageName}), 2, "add --name=NAME"},
				{"", run("--notify=fd:9", podman()), 2, "descriptor 9 is not open"},
				{"", run("--notify=fd:0", podman()), 2, "descriptor 0 is not open for writing"},
				{"", run("--notify=smoke", podman()), 2, "is none of"},
				{"", run("--notify=systemd", podman()), 2, "NOTIFY_SOCKET is not set"},
				{"NOTIFY_SOCKET=/run/nobody", run("", podman()), 1, "/run/nobody: nobody listens there"},
				{"", run("--ready=multi-user", podman()), 2, `"multi-user" is no target`},
				{"", run("--ready=multi-user.target --listen=/run/a", podman()), 2, "--listen=/run/a is no address such as vsock::1234"},
				{"", run("--listen=vsock::1234", podman()), 2, "add --ready=multi-user.target"},
				{"", run("--pid-file=/nonexistent/a.pid", podman()), 2, "--pid-file"},
				{"", run("", []string{"podman", "run", "-d", "--rm", "--name=a", "--pull=never", "localhost/nosuch"}), 125, "nosuch"},
				{"", run("", []string{"podman", "--hooks-dir=/nonexistent", "run", "-d", "--rm", "--name=a", imageName, "sleep", "1000"}), 1, "is oci-mainpid-hook installed"},
			} {
				began := time.Now()
				r := m.try(u.as(append([]string{"env", c.env + "X=Y"}, c.args...)...)...)
				if c.env != "" {
					r = m.try(u.as(append([]string{"env", c.env}, c.args...)...)...)
				}
				lines := regexp.MustCompile(`(?m)^(oci-mainpid|Error): .*`).FindAllString(r.stderr, -1)
				if r.status != c.status || len(lines) != 1 || !strings.Contains(r.stderr, c.said) || time.Since(began) > soon {
					m.t.Errorf("want status %d, one line with %q, soon: %v", c.status, c.said, r)
				}
			}
			u.assertNothingLeft()
		})
		m.subtest("exit statuses", func(m machine) {
			u := u
			u.machine = m
			for command, status := range map[string]string{"true": "0", "false": "1", "sleep 1; exit 7": "7"} {
				if got, said := u.supervised(run("", podman("sh", "-c", command))...).end(); got != status {
					m.t.Errorf("%s: status %s, not %s; %s", command, got, status, said)
				}
			}
			u.assertNothingLeft()
		})
		m.subtest("signals, descriptor and PID file", func(m machine) {
			u := u
			u.machine = m
			pidFile := u.home() + "/a.pid"
			for signal, status := range map[string]string{"TERM": "5", "INT": "5", "USR1": "6"} {
				u.must(u.try(u.as("ln", "-sf", "/etc/passwd", pidFile)...))
				r := u.supervised(run("--notify=fd:3 --pid-file="+pidFile, sleep)...)
				r.awaitReady()
				r.awaitHandler("a", unix.SIGUSR1)
				if got, want := m.run("cat", pidFile), u.stored("a").conmon; got != want || m.run("ps", "-o", "ppid=", want) == "" {
					m.t.Errorf("the PID file has %s, conmon is %s", got, want)
				}
				if got := strings.TrimSpace(m.run("ps", "-o", "ppid=", m.run("cat", pidFile))); got != r.pid {
					m.t.Errorf("conmon's parent is %s, not %s", got, r.pid)
				}
				r.kill(signal)
				if got, said := r.end(); got != status {
					m.t.Errorf("after %s the status is %s, not %s; %s", signal, got, status, said)
				}
				m.run("test", "!", "-e", pidFile)
			}
			u.assertNothingLeft()
		})
		m.subtest("killed", func(m machine) {
			u := u
			u.machine = m
			for _, victim := range []string{".State.ConmonPid", ".State.Pid"} {
				r := u.supervised(run("--notify=fd:3", sleep)...)
				r.awaitReady()
				m.run("kill", "-9", u.inspect("a", victim))
				if got, said := r.end(); got != "137" {
					m.t.Errorf("%s killed: status %s; %s", victim, got, said)
				}
				u.assertNothingLeft()
			}
			second := func(after time.Duration) {
				m.t.Helper()
				r := u.supervised(run("--notify=fd:3", sleep)...)
				r.awaitReady()
				if got := u.run("pgrep", "-U", u.uid, "-c", "conmon"); got != "1" {
					m.t.Errorf("killed after %v, then started: %s conmons", after, got)
				}
				if got := m.try(u.as(run("", podman("true"))...)...); got.status != 1 || !strings.Contains(got.stderr, "another oci-mainpid run has it") {
					m.t.Errorf("a second one beside it: %v", got)
				}
				r.kill("TERM")
				r.end()
				u.assertNothingLeft()
			}
			moments := []time.Duration{100 * time.Millisecond, 300 * time.Millisecond}
			if *runEverywhere {
				moments = append(moments, 0, time.Second)
			}
			for _, after := range moments {
				r := u.supervised(run("--notify=fd:3", sleep)...)
				time.Sleep(after)
				r.kill("KILL")
				r.end()
				second(after)
			}
			// When it has just started podman.
			step := 8 * time.Millisecond
			if *runEverywhere {
				step /= 4
			}
			for after := 6 * time.Millisecond; after < 30*time.Millisecond; after += step {
				m.try(append([]string{"sh", "-c", `"$@" >/dev/null 2>&1`, "sh", "timeout", "--signal=KILL", fmt.Sprint(after.Seconds())}, u.as(run("", sleep)...)...)...)
				second(after)
			}
		})
		m.subtest("stopped while it starts", func(m machine) {
			u := u
			u.machine = m
			for _, after := range []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
				r := u.supervised(run("", sleep)...)
				time.Sleep(after)
				r.kill("TERM")
				// 137 if podman had to kill it.
				if got, said := r.end(); got != "143" && got != "5" && got != "137" {
					m.t.Errorf("stopped after %v: status %s; %s", after, got, said)
				}
				u.assertNothingLeft()
			}
		})
		m.subtest("a stop for upstart", func(m machine) {
			u := u
			u.machine = m
			r := u.supervised(run("--notify=stop", sleep)...)
			m.await("it has stopped itself", soon, func() bool { return strings.TrimSpace(m.run("ps", "-o", "state=", r.pid)) == "T" })
			if got := u.inspect("a", ".State.Status"); got != "running" {
				m.t.Errorf("the container is %s", got)
			}
			r.awaitHandler("a", unix.SIGUSR1)
			r.kill("CONT")
			r.kill("TERM")
			if got, said := r.end(); got != "5" {
				m.t.Errorf("status %s; %s", got, said)
			}
		})
		m.subtest("a health check", func(m machine) {
			u := u
			u.machine = m
			command := append([]string{"podman", "run", "-d", "--rm", "--name=a", "--health-cmd=test -e /tmp/healthy", imageName}, sleep[6:]...)
			r := u.supervised(run("--notify=fd:3 --health", command)...)
			m.await("the container runs", soon, func() bool {
				return m.try(u.as("podman", "exec", "a", "true")...).status == 0
			})
			time.Sleep(2 * time.Second)
			if got := m.run("cat", r.dir+"/ready"); got != "" {
				m.t.Errorf("ready before it is healthy: %q", got)
			}
			u.podman("exec", "a", "touch", "/tmp/healthy")
			r.awaitReady()
			r.kill("TERM")
			r.end()
			u.assertNothingLeft()
		})
		m.subtest("ready when the container says so", func(m machine) {
			u := u
			u.machine = m
			m.installAttacker()
			command := []string{"podman", "run", "-d", "--rm", "--name=a", "--sdnotify=container", "--volume=" + attackDir + ":/attack:ro", imageName,
				"sh", "-c", `trap "exit 5" TERM; until [ -e /go ]; do sleep 0.1; done; /attack/attacker send 1 READY=1,STATUS=up; sleep 1000 & wait`}
			r := u.supervised(run("--notify=fd:3", command)...)
			m.await("the container runs", soon, func() bool { return m.try(u.as("podman", "exec", "a", "true")...).status == 0 })
			// podman exec has a conmon of its own.
			u.podman("exec", "--env=NOTIFY_SOCKET=/run/oci-mainpid/notify", "a", "/attack/attacker", "send", "1", "READY=1")
			if got := m.run("cat", r.dir+"/ready"); got != "" {
				m.t.Errorf("ready before it has said so: %q", got)
			}
			u.podman("exec", "a", "touch", "/go")
			r.awaitReady()
			r.kill("TERM")
			r.end()
			u.assertNothingLeft()
		})
		m.subtest("as root, crun and runc", func(m machine) {
			m.run("podman", "import", "--quiet", sandbox.BusyboxTar, imageName)
			for _, runtime := range []string{"crun", "runc"} {
				command := append([]string{"podman", "--runtime=" + runtime, "run", "-d", "--rm", "--name=a", "--network=none", imageName}, "sh", "-c", "sleep 1; exit 7")
				if r := m.try(run("--pid-file=/run/a.pid", command)...); r.status != 7 {
					m.t.Errorf("%s: %v", runtime, r)
				}
				if left := m.run("podman", "ps", "--all", "--quiet") + m.run("ls", "-A", "/run/oci-mainpid/run"); left != "" {
					m.t.Errorf("%s: left: %s", runtime, left)
				}
			}
			m.run("podman", "rmi", imageName)
		})
		m.subtest("systemd, by hand", func(m machine) {
			u := u
			u.machine = m
			n := unit{u, u.name + "-run.service", "a"}
			m.write(path.Join(unitDir, n.name), fmt.Sprintf("[Service]\nType=notify\nNotifyAccess=all\nUser=%s\nEnvironment=XDG_RUNTIME_DIR=%s\nExecStart=oci-mainpid run -- podman run -d --rm --name=a %s %s\n", u.name, u.runtimeDir(), imageName, exiting7))
			n.systemctl("daemon-reload")
			n.cleanUp()
			n.start()
			if got := n.property("StatusText"); got != "Container a runs" {
				m.t.Errorf("the status is %q", got)
			}
			u.awaitHandler("a", unix.SIGUSR1)
			u.podman("kill", "--signal=USR1", "a")
			n.awaitState("failed")
			n.assertEnded("failed", "exit-code", "7")
			u.assertNothingLeft()
		})
	})
}
