package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command returns a command to run inside the machine as root, in the root
// directory, with an environment of PATH, HOME and LANG. It runs outside of any
// unit and session; systemd-run(1) gives it one. The exit status is the
// command's own. When the context ends, the command's process group is killed.
// In a whole machine, a command that a signal ended has the exit status 128 and the
// signal's number, and at most four commands run at the same time.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if m.Whole {
		return m.wholeCommand(ctx, name, args)
	}
	return m.command(ctx, ownNetwork, name, args)
}

// CommandOnline is Command with the host's network and resolv.conf(5), for
// programs that download something. The machine's own network reaches nothing. A
// whole machine has no other.
func (m *Machine) CommandOnline(ctx context.Context, name string, args ...string) *exec.Cmd {
	if m.Whole {
		cmd := m.wholeCommand(ctx, name, args)
		cmd.Err = fmt.Errorf("run %s in machine %s: a whole machine has no network: add packages to wholePackages in test/sandbox/whole.go", name, m.Name)
		return cmd
	}
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
	// The index of a testing suite may have expired. The machine is thrown away, so
	// that dpkg need not wait for the disk.
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
