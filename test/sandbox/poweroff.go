package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Signals that systemd(1) takes as requests. The first real-time signal that a
// program can use is 34.
const (
	sigPowerOff = unix.Signal(34 + 4)
	sigReboot   = unix.Signal(34 + 5)
)

// PowerOff asks systemd to power the machine off and kills the machine if that
// takes more than 20 seconds or the context ends. Then it removes everything that
// Boot made, also for a machine that no longer runs. Having to kill the machine is
// no error. A whole machine is killed at once: nobody sees its disk afterwards.
func (m *Machine) PowerOff(ctx context.Context) error {
	if m.Whole {
		return m.kill()
	}
	if leader, err := m.leader(); err == nil && ctx.Err() == nil {
		if err := leader.signal(sigPowerOff); err == nil {
			ctx, cancel := context.WithTimeout(ctx, powerOffTimeout)
			m.Supervisor.wait(ctx)
			cancel()
		}
	}
	return m.kill()
}

// Reboot reboots the machine and returns when it is running, or degraded,
// again. The disk stays, /run and /tmp are fresh.
func (m *Machine) Reboot(ctx context.Context) error {
	if m.Whole {
		return m.rebootWhole(ctx, "reboot")
	}
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

// SoftReboot has systemd start everything anew without the kernel, see
// systemd-soft-reboot.service(8), and returns as Reboot does. It is for whole machines.
func (m *Machine) SoftReboot(ctx context.Context) error {
	if !m.Whole {
		return fmt.Errorf("soft-reboot machine %s: it is not a whole one", m.Name)
	}
	return m.rebootWhole(ctx, "soft-reboot")
}

// kill ends what is left of the machine and removes everything that Boot made.
func (m *Machine) kill() error {
	if err := m.killProcesses(); err != nil {
		return fmt.Errorf("kill machine %s: %w", m.Name, err)
	}
	if err := m.killCgroup(); err != nil {
		return fmt.Errorf("kill machine %s: %w", m.Name, err)
	}
	// systemd-nspawn makes these directories, and leaves them when it is killed.
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
	// The last one, because the machine's state is in it.
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

// killCgroup kills what is left in the machine's cgroup and removes the cgroup.
// Processes are left in it if somebody else killed the supervisor or
// systemd-nspawn, which the machine's processes survive.
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
		// An error may mean that the scope has just ended: look again.
		if pause(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("systemctl kill %s: %v: %s", scope, err, out)
		}
	}
	return nil
}
