// Package sandbox boots throw-away Debian machines, each with a systemd and a
// podman of its own, for tests that need the real ones. It uses
// systemd-nspawn(1), no virtualisation, and works on hosts with and without
// systemd. For what needs a kernel of its own there are whole machines, which
// qemu runs. Everything here needs root.
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
	"path/filepath"
	"strings"
	"time"
)

// How long each step of a machine's life may take, unless the context ends first.
const (
	bootTimeout     = 2 * time.Minute
	wholeTimeout    = 20 * time.Minute // qemu may have no KVM, and a busy processor
	askTimeout      = 15 * time.Second // then systemd is asked again: a boot that ends takes a question with it
	powerOffTimeout = 20 * time.Second // then it is killed
	killTimeout     = 10 * time.Second
)

// Config says what machine to boot.
type Config struct {
	Suite Suite
	Whole bool // a kernel of its own, in qemu

	// Of a whole machine: a directory that is laid over its root, a shell script that
	// then runs in that root, before its initrd is made, and more of the kernel's
	// command line.
	Files, Prepare, Kernel string
	Name                   string    // of the machine and its host name; if empty, one is made up
	Progress               io.Writer // may be nil
}

// A Machine is a booted machine. It runs until PowerOff, even after the process
// that booted it has ended. Its fields Name and Suite say what it is. Reboot and
// PowerOff of one machine must not run at the same time.
type Machine struct {
	state
}

// Boot boots a machine from a fresh copy of the suite's root file system, which
// it builds if needed, and returns when systemd says that it is running, or
// degraded. If it fails, nothing is left of the machine.
func Boot(ctx context.Context, c Config) (*Machine, error) {
	makeRoot, needed := build, toBoot
	if c.Whole {
		makeRoot, needed = buildWhole, toBootWhole
	} else if c.Files+c.Prepare+c.Kernel != "" {
		return nil, errors.New("Files, Prepare and Kernel are for whole machines: others have Root")
	}
	lower, err := makeRoot(ctx, c.Suite, c.Progress)
	if err == nil && c.Files+c.Prepare != "" {
		lower, err = buildWith(ctx, c, lower)
	}
	if err != nil {
		return nil, err
	}
	log := newLog(c.Progress, c.Suite)
	if err := prepareHost(ctx, needed, log); err != nil {
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
	m := &Machine{state{Name: name, Suite: c.Suite, Whole: c.Whole, Disk: filepath.Join(cache, "machines", name)}}
	start := m.start
	if c.Whole {
		start = func(image string) error { return m.startWhole(image, c.Kernel) }
	}
	if err := start(lower); err != nil {
		return nil, errors.Join(fmt.Errorf("start machine %s: %w", name, err), m.PowerOff(ctx))
	}
	log.Infof("started machine %s", name)
	verdict, err := m.waitRunning(ctx)
	if err != nil {
		err = fmt.Errorf("boot machine %s: %w\n%s", name, err, consoleTail(m.Console()))
		return nil, errors.Join(err, m.kill())
	}
	log.Infof("%s", verdict)
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

// reserve makes the machine's directory, so that no other machine gets the name.
// If the name is empty, reserve makes one up. It returns the name.
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

// Root returns the host's path of the machine's root file system, where a caller
// can put files. The machine mounts its own /run and /tmp over those in it. On the
// host, an absolute symbolic link in the machine's root leads to the host's files.
// The root of a whole machine is not on the host: Root returns "".
func (m *Machine) Root() string {
	if m.Whole {
		return ""
	}
	return m.root()
}

// Console returns the host's path of what the machine wrote to its console.
func (m *Machine) Console() string { return m.console() }

// Running reports whether the machine is booting, running or shutting down.
func (m *Machine) Running() bool {
	_, err := m.leader()
	return err == nil
}

// errNotRunning says that the machine has no PID 1.
var errNotRunning = errors.New("the machine is not running")

// leader returns the machine's PID 1; for a whole machine, qemu.
func (m *Machine) leader() (process, error) {
	if m.Whole {
		if !m.Supervisor.alive() {
			return process{}, errNotRunning
		}
		return m.Supervisor, nil
	}
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
			if p.runsSystemd() {
				return p, nil
			}
		}
	}
	return process{}, errNotRunning
}

// waitRunning waits until the machine has booted. It returns the state that
// systemd reports, running or degraded: see is-system-running in systemctl(1).
func (m *Machine) waitRunning(ctx context.Context) (string, error) {
	timeout, supervisor := bootTimeout, "systemd-nspawn"
	if m.Whole {
		timeout, supervisor = wholeTimeout, "qemu"
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		if !m.Supervisor.alive() {
			return "", fmt.Errorf("%s ended", supervisor)
		}
		if _, err := m.leader(); err == nil {
			// The output says more than the exit status. There is no output
			// until systemd listens.
			ask, cancel := context.WithTimeout(ctx, askTimeout)
			out, _ := m.Command(ask, "systemctl", "is-system-running", "--wait").Output()
			cancel()
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

// consoleTail returns the end of the console log, for an error message.
func consoleTail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 4096
	return "console:\n" + string(data[max(0, len(data)-most):])
}
