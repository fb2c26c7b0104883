//go:build e2e

package e2e

import (
	"context"
	"flag"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

var allInits = flag.Bool("inits", false, "TestInits: every init with crun and runc, as root and as a user; else some, each once")

// withoutSystemd is the page whose files and commands TestInits takes, word for word.
const withoutSystemd page = "docs/without-systemd.md"

// An initSystem is one that the page has a section of. The section's blocks are files, by
// their paths, and commands: once, to start it first, and to stop it and start it again.
type initSystem struct {
	heading string
	// boot has the init run.
	boot func(n *initService)
	// pid prints the PID of the process that the init takes for the service, if it has one.
	pid string
	// exited fails unless the init has written down that the service ended with 7.
	exited string
	// restarts: it starts a service again that was killed or failed; restartsAll: also one
	// that ended with success.
	restarts, restartsAll bool
	// waits: the command that starts a service waits on when the service is stopped.
	waits bool
	// systemd: it is systemd, which is hidden from the others.
	systemd bool
	// rare: only what has -everywhere tries it, such as make inits.
	rare bool
	// instead is what the section says to write instead, for root on the last stack.
	instead *strings.Replacer
}

// String names the case.
func (i initSystem) String() string {
	if i.instead != nil {
		return i.heading + " that is told"
	}
	return i.heading
}

var initSystems = []initSystem{
	{
		heading: "s6", waits: true, restarts: true, restartsAll: true,
		boot:   func(n *initService) { n.shell("mkdir -p /run/service"); n.background("s6-svscan /run/service") },
		pid:    "s6-svstat -o pid /run/service/web",
		exited: "s6-svdt /run/service/web | grep -q 'exitcode 7$'",
	},
	{
		heading: "runit", waits: true, restarts: true, restartsAll: true, rare: true,
		boot:   func(n *initService) { n.background("runsvdir -P /etc/service") },
		pid:    "cat /etc/service/web/supervise/pid",
		exited: "grep -q 'web has ended, exit status 7$' /var/log/init.log",
	},
	{
		heading: "OpenRC", restarts: true, restartsAll: true,
		boot: bootOpenRC, pid: openRCPID, exited: openRCExited,
	},
	{
		heading: "supervisord", waits: true, restarts: true,
		boot: func(n *initService) {
			n.background("supervisord --nodaemon --configuration=/etc/supervisor/supervisord.conf")
			n.await("supervisord runs", soon, func() bool { return n.outside("supervisorctl", "pid").status == 0 })
		},
		pid:    "supervisorctl pid web",
		exited: "grep -q 'exited: web (exit status 7' /var/log/supervisor/supervisord.log",
	},
	{
		heading: "systemd", restarts: true, systemd: true, rare: true,
		pid:    "systemctl show --property=MainPID --value web",
		exited: "journalctl --sync; journalctl --boot --output=cat --unit=web | grep -q 'Main process exited, code=exited, status=7'",
	},
	{
		heading: "A shell",
		pid:     "cat /run/web.run",
	},
	{
		heading: "Upstart", restarts: true, restartsAll: true, rare: true,
		boot: func(n *initService) {
			n.write("/usr/local/bin/upstart", upstart)
			n.shell(`cd /usr/local/bin; chmod 755 upstart; ln -sf upstart start; ln -sf upstart stop`)
		},
		pid:    "cat /run/upstart.pid",
		exited: "grep -q '^7$' /run/upstart.statuses",
	},
	{
		heading: "Finit", waits: true, restarts: true, restartsAll: true, rare: true,
		boot: bootFinit,
		pid:  "initctl --json status web | sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p'",
	},
	{
		heading: "OpenRC", restarts: true, restartsAll: true, rare: true,
		boot: bootOpenRC, pid: openRCPID, exited: openRCExited,
		instead: strings.NewReplacer("command=run-web\n", "command=run-web\ncommand_args=--notify=socket\nnotify=socket:ready\n",
			"start_post() {\n\tewaitfile 90 /run/web.pid\n}\n", "start_pre() {\n\trm -f /run/openrc/supervise-web.sock\n}\n"),
	},
}

const (
	openRCPID    = "cat /run/openrc/options/web/child_pid"
	openRCExited = "journalctl --sync; journalctl --boot --output=cat --identifier=supervise-daemon | grep -q 'exited with return code 7'"
)

// bootOpenRC does what OpenRC's runlevel sysinit would do.
func bootOpenRC(n *initService) {
	n.shell(`mkdir -p /run/openrc /etc/runlevels/default; cd /run/openrc
		mkdir -p daemons exclusive failed hotplugged inactive options scheduled started starting stopping tmp wasinactive
		touch softlevel /etc/insserv.conf`)
}

// bootFinit has Finit run as the first process of a PID namespace.
func bootFinit(n *initService) {
	n.t.Helper()
	n.shell(`printf 'runlevel 2\n' >/etc/finit.conf; rm -rf /usr/lib/finit/system /run/finit`)
	n.background(`unshare --mount --pid --fork --kill-child --mount-proc sh -ec 'mount --make-rshared /; mount -t tmpfs none /run/user; exec /sbin/finit'`)
	n.await("Finit is in runlevel 2", soon, func() bool {
		pid := n.try("pgrep", "--full", "^/sbin/finit").stdout
		n.namespaces = []string{"--target=" + pid, "--mount", "--pid"}
		return n.outside("initctl", "runlevel").stdout == "N 2"
	})
}

// upstart plays upstart's part for one job: start(8) and stop(8) with expect stop, respawn
// and kill timeout. It is a child of the tracer that waits for the job to stop itself.
const upstart = `#!/usr/bin/python3
import os, signal, sys, time, shlex
job = dict(line.strip().split(None, 1) for line in open('/etc/init/web.conf') if line[0] != '#' and ' ' in line.strip())
words = [line.strip() for line in open('/etc/init/web.conf')]
assert job['expect'] == 'stop' and 'respawn' in words
timeout = int([w for w in words if w.startswith('kill timeout')][0].split()[2])
def wait(state):
    while open('/run/upstart.state').read() not in state: time.sleep(0.02)
def say(state):
    open('/run/upstart.new', 'w').write(state); os.rename('/run/upstart.new', '/run/upstart.state')
if sys.argv[0].endswith('stop'):
    if os.path.exists('/run/upstart.goal'): os.remove('/run/upstart.goal')
    for _ in range(100):
        try: pid = int(open('/run/upstart.pid').read()); os.kill(pid, signal.SIGTERM); break
        except (OSError, ValueError): time.sleep(0.02)
    wait(['stop']); sys.exit()
open('/run/upstart.goal', 'w').close()
say('starting')
if os.fork() > 0:
    wait(['running', 'failed', 'stop']); sys.exit(open('/run/upstart.state').read() != 'running')
os.setsid()
null, log = os.open('/dev/null', os.O_RDONLY), os.open('/var/log/init.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for fd, to in (null, 0), (log, 1), (log, 2): os.dup2(fd, to)
while os.path.exists('/run/upstart.goal'):
    pid = os.fork()
    if pid == 0: os.execvp(shlex.split(job['exec'])[0], shlex.split(job['exec']))
    open('/run/upstart.pid', 'w').write(str(pid))
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status): break
        assert os.WSTOPSIG(status) == signal.SIGSTOP, status
        say('running')
        os.kill(pid, signal.SIGCONT)
    print(os.waitstatus_to_exitcode(status), file=open('/run/upstart.statuses', 'a'))
    time.sleep(0.2)
os.remove('/run/upstart.pid')
say('stop')
`

// sudden is what the container does: it ends with 7 at SIGUSR1, and well at SIGTERM.
const sudden = `CMD ["sh", "-c", "trap 'exit 7' USR1; trap 'exit 0' TERM; sleep 1000 & wait"]`

// initService is the service web of an init, with a runtime, as root or as a user.
type initService struct {
	machine
	init initSystem
	// namespaces are options of nsenter(1): where the init runs.
	namespaces []string
	root       bool
	commands   []string // the section's blocks of commands
}

// TestInits: what the page says of each init is so. The process that the init watches is
// there as long as the container. Whatever is killed, there is one container afterwards,
// or none.
func TestInits(t *testing.T) {
	t.Parallel()
	blocks, err := withoutSystemd.blocks()
	if err != nil {
		t.Fatal(err)
	}
	onFreshMachinesIn(t, onLast, func(m machine) {
		if err := install(m.box); err != nil {
			m.t.Fatal(err)
		}
		systemless := m.installInits()
		for i, init := range initSystems {
			for j, runtime := range []string{"crun", "runc"} {
				for k, who := range []string{"user", "root"} {
					mine := *allInits || j == i%2 && k == i/2%2
					if init.instead != nil {
						mine = who == "root" && (*allInits || runtime == "crun")
					}
					if !mine {
						continue
					}
					deal := m.subtest
					if init.rare {
						deal = m.rare
					}
					deal(strings.Join([]string{init.String(), runtime, who}, " "), func(m machine) {
						n := &initService{machine: m, init: init, namespaces: []string{"--target=" + systemless, "--mount"}, root: who == "root"}
						n.prepare(blocks, runtime)
						n.judge()
					})
				}
			}
		}
	})
}

// installInits installs the inits, the user web and the image. It returns the PID of a
// process in a mount namespace that has neither systemd nor a login's directories.
func (m machine) installInits() (systemless string) {
	m.t.Helper()
	m.debian("s6", "supervisor")
	// These packages are for machines without systemd.
	m.must(m.online("", "sh", "-ec", `mkdir /var/tmp/inits; cd /var/tmp/inits; apt-get --quiet download runit openrc libeinfo1 librc1t64 finit libite5t64 libuev3t64
		for f in *.deb; do dpkg -x $f /; done`))
	m.shell(`
		systemctl disable --quiet --now supervisor
		mkdir -p "$(readlink -m /etc/service)" # may be a link to nothing
		useradd --create-home web
		# A process keeps the namespace: Linux 6.18 may refuse to bind one to a file (EINVAL).
		systemd-run --quiet --unit=systemless unshare --mount sh -ec '
			mount --make-rshared /
			mount --bind /run/systemd/journal /mnt
			mount -t tmpfs none /run/systemd; mkdir /run/systemd/journal; mount --move /mnt /run/systemd/journal || mount --bind /mnt /run/systemd/journal
			mount -t tmpfs none /run/dbus
			mount -t tmpfs none /run/user
			touch /run/systemless; exec sleep infinity'`)
	m.await("the namespace is there", soon, func() bool { return m.try("test", "-e", "/run/systemless").status == 0 })
	const imports = `cd /; podman import --quiet --change "$1" "$2" docker.io/library/caddy`
	m.shell(imports, sudden, sandbox.BusyboxTar)
	m.shell(`uid=$(id -u web); install -d -m 700 -o web -g web /run/user/$uid; script=$1; shift
		exec setpriv --reuid=web --regid=web --init-groups env HOME=/home/web XDG_RUNTIME_DIR=/run/user/$uid sh -ec "$script" sh "$@"`,
		imports, sudden, sandbox.BusyboxTar)
	return m.property("systemless", "MainPID")
}

// outside runs a command where the init does.
func (n *initService) outside(args ...string) result {
	n.t.Helper()
	return n.try(n.where(args...)...)
}

// where returns the command line that runs a command where the init does.
func (n *initService) where(args ...string) []string {
	if n.init.systemd {
		return args
	}
	return slices.Concat([]string{"nsenter"}, n.namespaces, []string{"--wd=/", "--"}, args)
}

// shell runs a script where the init does.
func (n *initService) shell(script string) string {
	n.t.Helper()
	return n.must(n.outside("sh", "-ec", script))
}

// podman runs podman as who runs the container.
func (n *initService) podman(args ...string) result {
	n.t.Helper()
	args = append([]string{"podman"}, args...)
	if !n.root {
		args = append([]string{"setpriv", "--reuid=web", "--regid=web", "--init-groups", "env", "HOME=/home/web", "XDG_RUNTIME_DIR=" + path.Dir(n.pidFile())}, args...)
	}
	return n.outside(args...)
}

// pidFile is where the container's pid file is.
func (n *initService) pidFile() string {
	if n.root {
		return "/run/web.pid"
	}
	return "/run/user/" + n.run("id", "--user", "web") + "/web.pid"
}

// background runs a command until the test ends.
func (n *initService) background(command string) {
	n.t.Helper()
	pid := n.shell(`rm -f /var/log/init.log; setsid ` + command + ` >/var/log/init.log 2>&1 </dev/null & echo $!`)
	signal := "-TERM"
	switch name, _, _ := strings.Cut(command, " "); name {
	case "runsvdir":
		signal = "-HUP" // so that it ends its runsvs
	case "unshare":
		signal = "-KILL" // with all of its PID namespace
	}
	n.t.Cleanup(func() { n.try("kill", signal, pid) })
}

// prepare writes the section's files, and has the init run.
func (n *initService) prepare(blocks []block, runtime string) {
	n.t.Helper()
	n.write("/etc/containers/containers.conf.d/60-runtime.conf", "[engine]\nruntime = \""+runtime+"\"\n")
	container := map[bool]string{false: "The container", true: "The container, as root"}[n.root]
	for _, b := range blocks {
		text := b.text
		if n.root { // as the page says
			text = strings.ReplaceAll(text, "/run/user/$(id -u web)/web.pid", "/run/web.pid")
		}
		if n.init.instead != nil {
			text = n.init.instead.Replace(text)
		}
		switch {
		case b.heading == "What you need" && n.init.systemd:
			n.run("rm", "-f", b.path())
		case b.heading != "What you need" && b.heading != n.init.heading && b.heading != container:
		case b.path() != "":
			n.write(b.path(), text)
			if strings.HasPrefix(text, "#!") {
				n.run("chmod", "755", b.path())
			}
		default:
			n.commands = append(n.commands, text)
		}
	}
	n.t.Cleanup(func() {
		if n.t.Failed() {
			n.t.Logf("%v", n.try("sh", "-c", "journalctl -b --no-pager --identifier=supervise-daemon --identifier=start-stop-daemon | tail -n 30; tail -n 60 /var/log/init.log /var/log/web.log /var/log/supervisor/web-*; ps -eo pid,ppid,args | cut -c1-200"))
		}
	})
	// The next case links them again.
	n.t.Cleanup(func() {
		n.outside("rm", "-rf", "/run/service", "/etc/service/web", "/etc/s6/web/supervise", "/etc/sv/web/supervise")
	})
	if n.init.boot != nil {
		n.init.boot(n)
	}
	if n.init.heading == "Upstart" { // start and stop, in one block
		start, stop, _ := strings.Cut(n.commands[0], "\n")
		n.commands = []string{":", start, stop + start}
	}
	if n.init.heading == "A shell" {
		n.commands = append([]string{":"}, n.commands...)
	}
	if len(n.commands) != 3 {
		n.t.Fatalf("section %s has %d blocks of commands, not 3: once, to start, to stop and start", n.init.heading, len(n.commands))
	}
	n.t.Cleanup(func() { n.outside("timeout", "60", "sh", "-c", n.stopCommand()) })
}

// stopCommand and startCommand are the lines of the last block.
func (n *initService) stopCommand() string  { stop, _ := n.stopStart(); return stop }
func (n *initService) startCommand() string { _, start := n.stopStart(); return start }

func (n *initService) stopStart() (stop, start string) {
	lines := strings.SplitAfter(strings.TrimSpace(n.commands[2]), "\n")
	at := slices.IndexFunc(lines[1:], func(line string) bool { return strings.Contains(line, "start") || strings.Contains(line, " -u ") }) + 1
	return strings.Join(lines[:at], ""), strings.Join(lines[at:], "")
}

// initProcesses are the processes of a service that runs.
type initProcesses struct{ run, conmon, payload string }

// look returns the processes, if there is one of each and the pid file has conmon.
func (n *initService) look() (r initProcesses, ok bool) {
	n.t.Helper()
	out := n.outside("sh", "-c", `r=$(`+n.init.pid+`); c=$(pgrep -x conmon); p=$(pgrep -f '^sleep 1000$'); echo "$r;"$c";"$(ps -o ppid= -p $p)";"$(ps -o ppid= -p $c)";"$(cat `+n.pidFile()+`)`).stdout
	f := strings.Split(strings.ReplaceAll(out, " ", ","), ";")
	if len(f) != 5 {
		return r, false
	}
	parent := strings.Trim(f[3], ",")
	r = initProcesses{f[0], f[1], strings.Trim(f[2], ",")}
	for _, pid := range []string{r.run, r.conmon, r.payload} {
		if pid == "" || strings.Contains(pid, ",") {
			return r, false
		}
	}
	return r, parent == r.run && f[4] == r.conmon
}

// awaitOther waits until the service runs again, with other processes than before.
func (n *initService) awaitOther(before initProcesses, what string) initProcesses {
	n.t.Helper()
	var now initProcesses
	n.await(what+": the service runs again", 2*soon, func() bool {
		var ok bool
		now, ok = n.look()
		if n.outside("pgrep", "-x", "-c", "conmon").stdout > "1" && n.outside("pgrep", "-c", "-f", "^sleep 1000$").stdout > "1" {
			n.t.Errorf("%s: two containers run beside each other", what)
		}
		return ok && now.run != before.run && now.conmon != before.conmon && now.payload != before.payload
	})
	return now
}

// assertGone checks that nothing is left.
func (n *initService) assertGone(what string) {
	n.t.Helper()
	var left string
	for deadline := time.Now().Add(soon); ; time.Sleep(100 * time.Millisecond) {
		left = n.outside("sh", "-c", `pgrep -a -x conmon; pgrep -a -f '^sleep 1000$'; pgrep -a -f '^(oci-mainpid|podman) run'; ls `+n.pidFile()+` 2>/dev/null`).stdout
		if left == "" {
			break
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: there is left:\n%s", what, left)
		}
	}
	if out := n.must(n.podman("ps", "--all", "--format={{.Names}} {{.Status}}")); out != "" {
		n.t.Errorf("%s: containers are left: %s", what, out)
	}
}

// judge does to the service what can be done.
func (n *initService) judge() {
	n.t.Helper()
	n.shell(n.commands[0])
	if n.init.heading == "runit" {
		n.await("runsvdir has seen it", soon, func() bool { return n.outside("test", "-p", "/etc/service/web/supervise/ok").status == 0 })
	}
	n.shell(n.commands[1])
	r, ok := n.look()
	if !ok {
		n.t.Fatalf("started, and it does not run: %+v", r)
	}
	if state := n.must(n.podman("inspect", "--format={{.State.Status}} {{.State.ConmonPid}}", "web")); state != "running "+r.conmon {
		n.t.Errorf("started: %s, not running %s", state, r.conmon)
	}
	// again has the service run once more, after it has ended.
	again := func(what string, restarts bool) {
		n.t.Helper()
		if restarts {
			r = n.awaitOther(r, what)
			return
		}
		n.await(what+": it has ended", soon, func() bool { return n.outside("test", "-e", "/proc/"+r.run).status != 0 })
		if what != "run killed" {
			n.assertGone(what)
		}
		n.shell(n.startCommand())
		r = n.awaitOther(r, what)
	}
	n.must(n.outside("kill", "-9", r.conmon))
	again("conmon killed", n.init.restarts)
	n.must(n.outside("kill", "-9", r.payload))
	again("container killed", n.init.restarts)
	n.must(n.outside("kill", "-USR1", r.payload))
	again("container ended with 7", n.init.restarts)
	if n.init.exited != "" {
		n.await("exit status 7 is written down", soon, func() bool { return n.outside("sh", "-c", n.init.exited).status == 0 })
	}
	n.must(n.outside("kill", "-9", r.run))
	again("run killed", n.init.restarts)
	n.must(n.podman("stop", "web"))
	again("podman stop", n.init.restartsAll)

	n.shell(n.stopCommand())
	n.assertGone("stopped")
	for range 2 {
		ctx, cancel := context.WithTimeout(interrupted, commandTimeout)
		args := n.where("sh", "-c", n.startCommand())
		cmd := n.box.Command(ctx, args[0], args[1:]...)
		if err := cmd.Start(); err != nil {
			n.t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
		n.outside("sh", "-c", n.stopCommand())
		if n.init.waits {
			cancel()
		}
		cmd.Wait()
		cancel()
		n.outside("sh", "-c", n.stopCommand()) // where the first came before the service
		n.assertGone("stopped while it started")
	}
	n.shell(n.startCommand())
	n.awaitOther(r, "started after that")
	n.shell(n.stopCommand())
	n.assertGone("stopped after that")
}
