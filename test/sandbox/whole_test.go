//go:build e2e && machines

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

var wholeSuite = flag.String("whole-suite", string(Trixie), "whose machine TestWholeMachine boots")

// TestWholeMachine boots a machine with a kernel of its own.
func TestWholeMachine(t *testing.T) {
	ctx := context.Background()
	m, must := boot(t, Config{Suite: Suite(*wholeSuite), Whole: true})
	t.Run("environment", func(t *testing.T) {
		if got, want := must("sh", "-c", "echo $HOME $LANG $PWD; hostname; id -u"), "/root C.UTF-8 /\n"+m.Name+"\n0"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := must("grep", "^0:", "/proc/self/cgroup"); strings.Contains(got, ".service") {
			t.Errorf("commands run in a unit: %s", got)
		}
	})
	t.Run("kernel", func(t *testing.T) {
		host, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			t.Fatal(err)
		}
		if must("cat", "/proc/sys/kernel/random/boot_id") == strings.TrimSpace(string(host)) {
			t.Error("it is the host's")
		}
		controllers := must("cat", "/sys/fs/cgroup/cgroup.controllers")
		for _, c := range []string{"cpu", "io", "memory", "pids"} {
			if !strings.Contains(controllers, c) {
				t.Errorf("no controller %s among %s", c, controllers)
			}
		}
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
		for script, want := range map[string]int{"kill -9 $$": 137, "exec /nonexistent": 127} {
			if err := m.Command(ctx, "sh", "-c", script).Run(); !errors.As(err, &exit) || exit.ExitCode() != want {
				t.Errorf("%s: %v", script, err)
			}
		}
		if err := m.Command(ctx, "/nonexistent").Run(); !errors.As(err, &exit) || exit.ExitCode() != 127 {
			t.Error(err)
		}
	})
	t.Run("many bytes both ways", func(t *testing.T) {
		in := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
		cmd := m.Command(ctx, "cat")
		cmd.Stdin = bytes.NewReader(in)
		out, err := cmd.Output()
		if err != nil || !bytes.Equal(in, out) {
			t.Errorf("%d bytes have become %d: %v", len(in), len(out), err)
		}
	})
	t.Run("more commands at once than there are ports", func(t *testing.T) {
		var all sync.WaitGroup
		for range 2 * wholePorts {
			all.Add(1)
			go func() {
				defer all.Done()
				if err := m.Command(ctx, "sleep", "1").Run(); err != nil {
					t.Error(err)
				}
			}()
		}
		all.Wait()
	})
	t.Run("cancelled command", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if err := m.Command(short, "sleep", "7654321").Run(); err == nil {
			t.Error("no error")
		}
		if out, err := m.Command(ctx, "pgrep", "-f", "^sleep 7654321").Output(); err == nil {
			t.Errorf("it still runs: %s", out)
		}
	})
	t.Run("what a command leaves in the background", func(t *testing.T) {
		must("sh", "-c", "sleep 7654323 >/dev/null 2>&1 &")
		for range wholePorts {
			must("pgrep", "-f", "^sleep 7654323")
		}
		must("pkill", "-f", "^sleep 7654323")
	})
	t.Run("killed client", func(t *testing.T) {
		for range wholePorts {
			cmd := m.Command(ctx, "sh", "-c", "echo; exec sleep 7654322")
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			io.ReadFull(out, make([]byte, 1))
			cmd.Process.Kill()
			cmd.Wait()
			if got := must("echo", "well"); got != "well" {
				t.Errorf("got %q", got)
			}
		}
		must("sh", "-c", "while pgrep -f '^sleep 765432[2]'; do sleep 0.1; done")
	})
	t.Run("no network", func(t *testing.T) {
		if err := m.Install(ctx, "hello"); err == nil || !strings.Contains(err.Error(), "wholePackages") {
			t.Error(err)
		}
	})
	t.Run("attach", func(t *testing.T) {
		other, err := Attach(m.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Command(ctx, "true").Run(); err != nil || !other.Running() {
			t.Error(err)
		}
	})
	t.Run("reboot", func(t *testing.T) {
		must("touch", "/run/volatile", "/persistent")
		if err := m.Reboot(ctx); err != nil {
			t.Fatal(err)
		}
		must("test", "!", "-e", "/run/volatile", "-a", "-e", "/persistent")
	})
}
