// Package sandbox boots throw-away Debian machines, each with a systemd and a
// podman of its own, for tests that need the real ones. It uses
// systemd-nspawn(1), no virtualisation, and works on hosts with and without
// systemd. Everything here needs root.
package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How long a machine may take, where the context does not say less.
const (
	bootTimeout     = 2 * time.Minute
	powerOffTimeout = 20 * time.Second // then it is killed
	killTimeout     = 10 * time.Second
)

// Signals that systemd(1) takes as requests. The first real-time signal that a
// program can use is 34.
const (
	sigPowerOff = unix.Signal(34 + 4)
	sigReboot   = unix.Signal(34 + 5)
)

// Config says what machine to boot.
type Config struct {
	Suite    Suite
	Name     string    // of the machine and its host name; if empty, one is made up
	Progress io.Writer // may be nil
}

// A Machine is a booted machine. It lives until PowerOff, also when the process
// that booted it ends. Its fields Name and Suite say what it is. No two of its
// methods that boot or end it may run at the same time.
type Machine struct {
	state
}

// Boot boots a machine from a fresh copy of the suite's root file system, which
// it builds if needed, and returns when systemd says that it is running, or
// degraded. If it fails, nothing is left of the machine.
func Boot(ctx context.Context, c Config) (*Machine, error) {
	lower, err := build(ctx, c.Suite, c.Progress)
	if err != nil {
		return nil, err
	}
	log := newReport(c.Progress, string(c.Suite))
	if err := prepareHost(ctx, toBoot, log); err != nil {
		return nil, err
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	name, err := reserve(c.Name, c.Suite)
	if err != nil {
		return nil, err
	}
	m := &Machine{state{Name: name, Suite: c.Suite, Disk: filepath.Join(cache, "machines", name)}}
	if err := m.start(lower); err != nil {
		return nil, errors.Join(fmt.Errorf("start machine %s: %w", name, err), m.PowerOff(ctx))
	}
	log.printf("started machine %s", name)
	verdict, err := m.waitRunning(ctx)
	if err != nil {
		err = fmt.Errorf("boot machine %s: %w\n%s", name, err, consoleTail(m.Console()))
		return nil, errors.Join(err, m.kill())
	}
	log.printf("%s", verdict)
	return m, nil
}

// Attach returns a machine that another process booted; it need not be running
// any more, but can still be powered off. Without a machine of that name the
// error is fs.ErrNotExist.
func Attach(name string) (*Machine, error) {
	s, err := load(name)
	if err != nil {
		return nil, err
	}
	return &Machine{s}, nil
}

// List returns every machine there is, by name, running or not.
func List() ([]*Machine, error) {
	entries, err := os.ReadDir(runDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	var machines []*Machine
	for _, e := range entries {
		m, err := Attach(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		machines = append(machines, m)
	}
	return machines, nil
}

// reserve takes the name, or makes one up if it is empty, by making the
// machine's directory.
func reserve(name string, suite Suite) (string, error) {
	made := name == ""
	if made {
		var b [4]byte
		rand.Read(b[:])
		name = string(suite) + "-" + hex.EncodeToString(b[:])
	}
	if err := checkName(name); err != nil {
		return "", err
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return "", fmt.Errorf("reserve the name %s: %w", name, err)
	}
	err := os.Mkdir(filepath.Join(runDir, name), 0o755)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("there is a machine %s already", name)
	}
	if err != nil {
		return "", fmt.Errorf("reserve the name %s: %w", name, err)
	}
	return name, nil
}

// start makes the machine's file system and starts systemd-nspawn on it.
func (m *Machine) start(lower string) error {
	var parent string
	if !bootedWithSystemd() {
		var err error
		if parent, err = cgroup2Mount(); err != nil {
			return err
		}
		m.Cgroup = filepath.Join(parent, "oci-mainpid-sandbox-"+m.Name)
	}
	if err := m.save(); err != nil {
		return err
	}
	// Left by a machine whose state was lost, as after a crash of the host.
	if err := removeTree(m.Disk); err != nil {
		return fmt.Errorf("remove an old disk: %w", err)
	}
	if err := mountRoot(lower, m.Disk, m.root()); err != nil {
		return err
	}
	if err := personalise(m.root(), m.Name); err != nil {
		return err
	}
	if m.Cgroup != "" {
		if err := makeCgroup(parent, m.Cgroup); err != nil {
			return err
		}
	}
	console, err := os.Create(m.Console())
	if err != nil {
		return err
	}
	defer console.Close()
	nspawn := nspawnArgs(m.Name, m.root(), m.Cgroup != "")
	cmd := exec.Command("/bin/sh", append([]string{"-c", supervise, "sandbox-" + m.Name, m.Cgroup}, nspawn...)...)
	cmd.Dir = "/"
	cmd.Env = []string{
		searchPath,
		// The host may have cgroup version 1 beside 2.
		"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
		// Else /proc is covered in part, and no container in the machine may
		// mount one of its own.
		"SYSTEMD_NSPAWN_API_VFS_WRITABLE=1",
	}
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.Supervisor, err = identify(cmd.Process.Pid)
	go cmd.Wait() // leave no zombie
	if err != nil {
		return err
	}
	return m.save()
}

// searchPath is the PATH of Debian's root.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// supervise is a shell script that runs its arguments from the second on, and
// again when they ask for it: with --keep-unit, systemd-nspawn ends with 133
// when the machine reboots, see RestartForceExitStatus= in systemd.service(5).
// The first argument is a cgroup, or empty. Every boot has one of its own in
// it, because what it delegated to the boot before takes no processes.
const supervise = `
cgroup=$1; shift
boot=0
while
	boot=$((boot + 1))
	(
		if [ -n "$cgroup" ]; then
			mkdir "$cgroup/boot$boot" && echo 0 >"$cgroup/boot$boot/cgroup.procs" || exit 1
		fi
		exec "$@"
	)
	[ $? -eq 133 ]
do :; done
`

// nspawnName is what systemd-nspawn calls the machine: on a host with systemd,
// there is a scope of this name among the host's own.
func nspawnName(name string) string { return "sandbox-" + name }

// nspawnArgs returns the command line of systemd-nspawn(1) for a machine.
// keepUnit is for hosts without systemd, where nobody else makes a cgroup.
func nspawnArgs(name, root string, keepUnit bool) []string {
	args := []string{
		"systemd-nspawn", "--quiet", "--boot",
		"--directory=" + root, "--machine=" + nspawnName(name), "--hostname=" + name,
		"--register=no",
		"--console=read-only",
		"--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
		"--capability=all",
		// crun makes keyrings, pidfd_getfd(2) is among @debug, containers mount.
		"--system-call-filter=@keyring @debug bpf @mount",
	}
	if keepUnit {
		return append(args, "--keep-unit")
	}
	return append(args, "--property=DeviceAllow=/dev/fuse rwm", "--property=DeviceAllow=/dev/net/tun rwm")
}

// personalise gives the root file system its identity.
func personalise(root, name string) error {
	var id [16]byte
	rand.Read(id[:])
	files := map[string]string{
		"etc/machine-id": hex.EncodeToString(id[:]) + "\n",
		"etc/hostname":   name + "\n",
		"etc/hosts":      "127.0.0.1 localhost\n127.0.1.1 " + name + "\n::1 localhost ip6-localhost ip6-loopback\n",
		// sandbox-network.service has this address; nobody listens there.
		"etc/resolv.conf": "nameserver 192.0.2.1\n",
	}
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Root returns the host's path of the machine's root file system, to put files
// in. /run and /tmp of the machine are its own and not in there; for what is in
// it, mind that a symbolic link with an absolute target leads to the host.
func (m *Machine) Root() string { return m.root() }

// Console returns the host's path of what the machine wrote to its console.
func (m *Machine) Console() string { return m.console() }

// Running reports whether the machine is there: booting, running or ending.
func (m *Machine) Running() bool {
	_, err := m.leader()
	return err == nil
}

// errNotRunning says that the machine has no PID 1.
var errNotRunning = errors.New("the machine is not running")

// leader returns the machine's PID 1.
func (m *Machine) leader() (process, error) {
	shells, err := m.Supervisor.children()
	if err != nil {
		return process{}, err
	}
	for _, nspawn := range shells {
		inits, err := nspawn.children()
		if err != nil {
			return process{}, err
		}
		for _, p := range inits {
			// Until it has executed systemd, it has no namespaces to enter.
			if st, err := readStat(p.PID); err == nil && st.comm == "systemd" && p.isInit() {
				return p, nil
			}
		}
	}
	return process{}, errNotRunning
}

// Command returns a command to run inside the machine as root, in the root
// directory, with an environment of PATH, HOME and LANG. It runs outside of any
// unit and session; systemd-run(1) gives it one. The exit status is the
// command's own. When the context ends, the command's process group is killed.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return m.command(ctx, ownNetwork, name, args)
}

// CommandOnline is Command with the host's network, and its resolv.conf(5), for
// programs that fetch something. The machine's own network reaches nothing.
func (m *Machine) CommandOnline(ctx context.Context, name string, args ...string) *exec.Cmd {
	resolver, err := os.ReadFile("/etc/resolv.conf")
	script := []string{"--mount", "sh", "-ec", `
		printf %s "$0" >/run/resolv.conf.host
		mount --bind /run/resolv.conf.host /etc/resolv.conf
		exec "$@"`, string(resolver), name}
	cmd := m.command(ctx, hostNetwork, "unshare", append(script, args...))
	if err != nil && cmd.Err == nil {
		cmd.Err = fmt.Errorf("run %s in machine %s: %w", name, m.Name, err)
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd
}

// Namespaces of a command, as options of nsenter(1).
var (
	hostNetwork = []string{"--mount", "--uts", "--ipc", "--pid", "--cgroup"}
	ownNetwork  = append([]string{"--net"}, hostNetwork...)
)

func (m *Machine) command(ctx context.Context, namespaces []string, name string, args []string) *exec.Cmd {
	leader, err := m.leader()
	var procs string
	if err == nil {
		procs, err = commandCgroup(leader)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", enterArgs(procs, leader.PID, namespaces, name, args)...)
	if err != nil {
		cmd.Err = fmt.Errorf("run %s in machine %s: %w", name, m.Name, err)
	}
	cmd.Env = []string{searchPath, "HOME=/root", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = killTimeout
	return cmd
}

// enterArgs returns the arguments of a shell that moves itself to the cgroup
// and becomes nsenter(1), which runs a command in namespaces of the process.
func enterArgs(procs string, pid int, namespaces []string, name string, args []string) []string {
	enter := []string{
		"-c", `echo 0 >"$0" && exec "$@"`, procs,
		"nsenter", fmt.Sprintf("--target=%d", pid),
	}
	enter = append(append(enter, namespaces...), "--root", "--wd", "--", name)
	return append(enter, args...)
}

// Install installs Debian's packages in the machine.
func (m *Machine) Install(ctx context.Context, packages ...string) error {
	// The index of a testing suite can be past its date, and what is thrown away
	// need not reach the disk.
	const script = `
apt="apt-get --quiet --option=Acquire::Check-Valid-Until=false --option=Dpkg::Options::=--force-unsafe-io"
$apt update
DEBIAN_FRONTEND=noninteractive $apt install --yes --no-install-recommends "$@"`
	cmd := m.CommandOnline(ctx, "sh", append([]string{"-ec", script, "sh"}, packages...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("install %s in machine %s: %w\n%s", strings.Join(packages, " "), m.Name, err, out)
	}
	return nil
}

// commandCgroup makes a cgroup for commands in the machine's own hierarchy and
// returns the path of its cgroup.procs. A process outside of that hierarchy
// could not be moved to a unit or a session of the machine: see nsdelegate in
// the kernel's cgroup-v2 document.
func commandCgroup(leader process) (string, error) {
	mount, err := cgroup2Mount()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", leader.PID))
	if err != nil {
		return "", err
	}
	path, err := unifiedCgroup(string(data))
	if err != nil {
		return "", fmt.Errorf("cgroup of process %d: %w", leader.PID, err)
	}
	dir := filepath.Join(mount, strings.TrimSuffix(path, "/init.scope"), "sandbox-commands")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return filepath.Join(dir, "cgroup.procs"), nil
}

// unifiedCgroup returns the path of a process in the version 2 hierarchy, from
// its /proc/PID/cgroup, see cgroups(7).
func unifiedCgroup(file string) (string, error) {
	for line := range strings.Lines(file) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path, nil
		}
	}
	return "", errors.New("not in the version 2 hierarchy")
}

// waitRunning waits until the machine has booted and returns what systemd says
// of it, see is-system-running in systemctl(1).
func (m *Machine) waitRunning(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		if !m.Supervisor.alive() {
			return "", errors.New("systemd-nspawn ended")
		}
		if _, err := m.leader(); err == nil {
			// The exit status says no more than the output, and before systemd
			// listens there is none.
			out, _ := m.Command(ctx, "systemctl", "is-system-running", "--wait").Output()
			switch verdict := strings.TrimSpace(string(out)); verdict {
			case "running", "degraded":
				return verdict, nil
			case "maintenance", "stopping":
				return "", fmt.Errorf("systemd says: %s", verdict)
			}
		} else if !errors.Is(err, errNotRunning) {
			return "", err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return "", fmt.Errorf("wait for systemd: %w", err)
		}
	}
}

// Reboot reboots the machine and returns when it is running, or degraded,
// again. The disk stays, /run and /tmp are fresh.
func (m *Machine) Reboot(ctx context.Context) error {
	leader, err := m.leader()
	if err == nil {
		err = leader.signal(sigReboot)
	}
	if err == nil {
		err = leader.wait(ctx)
	}
	if err == nil {
		_, err = m.waitRunning(ctx)
	}
	if err != nil {
		return fmt.Errorf("reboot machine %s: %w", m.Name, err)
	}
	return nil
}

// PowerOff has systemd power the machine off, kills it if that takes more than
// 20 seconds or the context ends, and removes everything that Boot made. It
// does so too for a machine that is not running any more. That a machine had to
// be killed is no error.
func (m *Machine) PowerOff(ctx context.Context) error {
	if leader, err := m.leader(); err == nil && ctx.Err() == nil {
		if err := leader.signal(sigPowerOff); err == nil {
			ctx, cancel := context.WithTimeout(ctx, powerOffTimeout)
			m.Supervisor.wait(ctx)
			cancel()
		}
	}
	return m.kill()
}

// kill ends what is left of the machine and removes everything that Boot made.
func (m *Machine) kill() error {
	if err := m.killProcesses(); err != nil {
		return fmt.Errorf("kill machine %s: %w", m.Name, err)
	}
	if err := m.killCgroup(); err != nil {
		return fmt.Errorf("kill machine %s: %w", m.Name, err)
	}
	// systemd-nspawn makes these and, killed, leaves them.
	for _, dir := range []string{"propagate", "unix-export"} {
		if err := removeTree(filepath.Join("/run/systemd/nspawn", dir, nspawnName(m.Name))); err != nil {
			return fmt.Errorf("remove machine %s: %w", m.Name, err)
		}
	}
	if m.Disk != "" {
		if err := removeTree(m.root()); err != nil {
			return fmt.Errorf("remove machine %s: %w", m.Name, err)
		}
		if err := removeTree(m.Disk); err != nil {
			return fmt.Errorf("remove machine %s: %w", m.Name, err)
		}
	}
	// Last, because it has the state.
	if err := removeTree(m.dir()); err != nil {
		return fmt.Errorf("remove machine %s: %w", m.Name, err)
	}
	return nil
}

// killProcesses kills the supervisor first, so that it starts nothing again,
// then systemd-nspawn and the machine's PID 1, which takes the rest with it.
func (m *Machine) killProcesses() error {
	var doomed []process
	shells, err := m.Supervisor.children()
	if err != nil {
		return err
	}
	for _, nspawn := range shells {
		inits, err := nspawn.children()
		if err != nil {
			return err
		}
		doomed = append(append(doomed, nspawn), inits...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	for _, p := range append([]process{m.Supervisor}, doomed...) {
		if err := p.signal(unix.SIGKILL); err != nil {
			return err
		}
		if err := p.wait(ctx); err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
	}
	return nil
}

// killCgroup removes the machine's cgroup. It is empty by now, unless somebody
// else had killed the supervisor or systemd-nspawn, which the rest survives.
func (m *Machine) killCgroup() error {
	if m.Cgroup != "" {
		err := os.WriteFile(filepath.Join(m.Cgroup, "cgroup.kill"), []byte("1"), 0)
		if errors.Is(err, fs.ErrNotExist) && !isDir(m.Cgroup) {
			return nil
		}
		if err != nil {
			return err
		}
		return removeCgroup(m.Cgroup)
	}
	if !bootedWithSystemd() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	scope := nspawnName(m.Name) + ".scope"
	for exec.CommandContext(ctx, "systemctl", "is-active", "--quiet", scope).Run() == nil {
		out, err := exec.CommandContext(ctx, "systemctl", "kill", "--signal=KILL", scope).CombinedOutput()
		// It may have ended of itself meanwhile, so only time tells.
		if pause(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("systemctl kill %s: %v: %s", scope, err, out)
		}
	}
	return nil
}

// makeCgroup makes a cgroup below parent. Controllers that cannot be had, as
// those that a version 1 hierarchy holds, are left out.
func makeCgroup(parent, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, d := range []string{parent, dir} {
		controllers, err := os.ReadFile(filepath.Join(d, "cgroup.controllers"))
		if err != nil {
			return err
		}
		for _, c := range strings.Fields(string(controllers)) {
			os.WriteFile(filepath.Join(d, "cgroup.subtree_control"), []byte("+"+c), 0)
		}
	}
	return nil
}

// removeCgroup removes a cgroup and those in it. The kernel takes a moment to
// empty a cgroup after its last process was waited for.
func removeCgroup(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	for {
		var dirs []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what is gone needs no removing
		})
		for _, d := range slices.Backward(dirs) {
			if e := unix.Rmdir(d); e != nil && e != unix.ENOENT {
				err = fmt.Errorf("rmdir %s: %w", d, e)
			}
		}
		if err == nil {
			return nil
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return err
		}
	}
}

// consoleTail returns the end of the console log, for an error message.
func consoleTail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 4096
	return "console:\n" + string(data[max(0, len(data)-most):])
}
