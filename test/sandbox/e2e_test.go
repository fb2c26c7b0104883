//go:build e2e

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// make machines boots bookworm, too, and make unstable the suite of that name, which is
// another one every day.
var suites = flag.String("suites", "trixie,forky", "whose machines TestMachine boots")

// TestMachine boots a machine of each suite, at once, and needs root.
func TestMachine(t *testing.T) {
	for suite := range strings.SplitSeq(*suites, ",") {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			testMachine(t, Suite(suite))
		})
	}
}

// boot boots a machine until the end of the test. must runs a command in it that has to
// succeed, and returns what it printed.
func boot(t *testing.T, c Config) (m *Machine, must func(args ...string) string) {
	t.Helper()
	ctx := context.Background()
	var progress bytes.Buffer
	c.Progress = &progress
	start := time.Now()
	m, err := Boot(ctx, c)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	t.Logf("%sbooted after %v", &progress, time.Since(start).Round(time.Second))
	supervisor, err := identify(m.Supervisor.PID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.PowerOff(ctx); err != nil {
			t.Errorf("PowerOff: %v", err)
		}
		checkGone(t, m, supervisor)
	})
	must = func(args ...string) string {
		t.Helper()
		out, err := m.Command(ctx, args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if failed := must("systemctl", "list-units", "--failed", "--plain", "--no-legend"); failed != "" {
		t.Errorf("failed units:\n%s", failed)
	}
	return m, must
}

func testMachine(t *testing.T, suite Suite) {
	ctx := context.Background()
	m, must := boot(t, Config{Suite: suite})

	t.Log(must("sh", "-c", "systemctl --version | head -n 1; podman --version; crun --version | head -n 1; runc --version | head -n 1; conmon --version | head -n 1"))
	t.Run("environment", func(t *testing.T) {
		if got, want := must("sh", "-c", "echo $HOME $LANG $PWD; hostname; id -u"), "/root C.UTF-8 /\n"+m.Name+"\n0"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := must("grep", "^0:", "/proc/self/cgroup"); strings.Contains(got, "..") {
			t.Errorf("commands run outside of the machine's cgroups: %s", got)
		}
		must("getent", "hosts", m.Name)
	})
	t.Run("exit status and streams", func(t *testing.T) {
		cmd := m.Command(ctx, "sh", "-c", "cat; echo bad >&2; exit 7")
		cmd.Stdin = strings.NewReader("in")
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 7 || stdout.String() != "in" || stderr.String() != "bad\n" {
			t.Errorf("%v, stdout %q, stderr %q", err, &stdout, &stderr)
		}
	})
	t.Run("cancelled command", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if err := m.Command(short, "sleep", "7654321").Run(); err == nil {
			t.Error("no error")
		}
		if out, err := m.Command(ctx, "pgrep", "-f", "^sleep 7654321").Output(); err == nil {
			t.Errorf("it still runs: %s", out)
		}
	})
	t.Run("rootless podman", func(t *testing.T) {
		must("useradd", "--create-home", "alice")
		asAlice := []string{"systemd-run", "--quiet", "--pipe", "--wait", "--property=User=alice", "--property=PAMName=login", "--"}
		must(append(asAlice, "podman", "import", "--quiet", BusyboxTar, "localhost/busybox")...)
		const storage = `{{.Store.GraphDriverName}} {{index .Store.GraphStatus "Native Overlay Diff"}}`
		if got := must(append(asAlice, "podman", "info", "--format", storage)...); got != "overlay true" {
			t.Errorf("storage: %s", got)
		}
		if got := must(append(asAlice, "podman", "run", "--rm", "localhost/busybox", "cat", "/proc/1/comm")...); got != "cat" {
			t.Errorf("container's output: %q", got)
		}
		must(append(asAlice, "podman", "run", "--rm", "--runtime=runc", "localhost/busybox", "true")...)
		must(append(asAlice, "podman", "network", "create", "web")...)
		must(append(asAlice, "podman", "run", "--rm", "--network=web", "localhost/busybox", "true")...)
	})
	t.Run("attach", func(t *testing.T) {
		other, err := Attach(m.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Command(ctx, "true").Run(); err != nil {
			t.Error(err)
		}
		if _, err := Boot(ctx, Config{Suite: suite, Name: m.Name}); err == nil {
			t.Error("booted another machine of the same name")
		}
		if !m.Running() {
			t.Error("the machine is gone")
		}
	})
	t.Run("reboot", func(t *testing.T) {
		for range 2 {
			must("touch", "/run/volatile", "/persistent", "/home/persistent")
			if err := m.Reboot(ctx); err != nil {
				t.Fatal(err)
			}
			must("test", "!", "-e", "/run/volatile", "-a", "-e", "/persistent", "-a", "-e", "/home/persistent")
			if _, err := os.Stat(filepath.Join(m.Root(), "persistent")); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestOrphanedMachine removes a machine after somebody has killed the processes
// that were in charge of it.
func TestOrphanedMachine(t *testing.T) {
	ctx := context.Background()
	m, err := Boot(ctx, Config{Suite: Trixie})
	if err != nil {
		t.Fatal(err)
	}
	supervisor := m.Supervisor
	leader, err := m.leader()
	if err != nil {
		t.Fatal(err)
	}
	nspawn, err := supervisor.children()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(nspawn, supervisor) {
		if err := p.signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := p.wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	found := false
	machines, err := List()
	for _, other := range machines {
		found = found || other.Name == m.Name && !other.Running()
	}
	if err != nil || !found {
		t.Errorf("not listed as ended: %v, %v", machines, err)
	}
	other, err := Attach(m.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.PowerOff(ctx); err != nil {
		t.Error(err)
	}
	if leader.alive() {
		t.Error("the machine's PID 1 still runs")
	}
	checkGone(t, m, supervisor)
}

// TestHangingMachine kills a machine that does not power off.
func TestHangingMachine(t *testing.T) {
	ctx := context.Background()
	m, err := Boot(ctx, Config{Suite: Trixie})
	if err != nil {
		t.Fatal(err)
	}
	supervisor := m.Supervisor
	short, cancel := context.WithTimeout(ctx, 0)
	defer cancel()
	if err := m.PowerOff(short); err != nil {
		t.Error(err)
	}
	checkGone(t, m, supervisor)
}

func checkGone(t *testing.T, m *Machine, supervisor process) {
	t.Helper()
	if supervisor.alive() {
		t.Error("the supervisor still runs")
	}
	commands, err := filepath.Glob("/proc/[1-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte("--machine="+nspawnName(m.Name)+"\x00")) {
			t.Errorf("still runs: %s", bytes.ReplaceAll(data, []byte{0}, []byte{' '}))
		}
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mountinfo, []byte(m.Name)) {
		t.Errorf("still mounted:\n%s", mountinfo)
	}
	for _, path := range []string{m.dir(), m.Disk, m.Cgroup, filepath.Join("/run/systemd/nspawn/propagate", nspawnName(m.Name))} {
		if path == "" {
			continue
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := Attach(m.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Attach: %v", err)
	}
}
