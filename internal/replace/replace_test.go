package replace

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func opened(t *testing.T, mainPID string) *Unit {
	t.Helper()
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	t.Setenv("MAINPID", mainPID)
	u, err := Open("web.service")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestOpen(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "")
	if _, err := Open("web.service"); err == nil {
		t.Error("without a runtime directory")
	}
	t.Setenv("XDG_RUNTIME_DIR", "/run")
	if _, err := Open("../web.service"); err == nil {
		t.Error("a unit with a slash")
	}
}

// TestNotBegun: without a reload there is nothing to finish, and nothing to stop.
func TestNotBegun(t *testing.T) {
	u := opened(t, "0")
	if _, err := u.Finish(context.Background(), true); !errors.Is(err, ErrFailed) {
		t.Errorf("finish: %v", err)
	}
	if err := u.Stop(context.Background()); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// TestStartWithoutContainer: nothing is done to a unit whose main process is no conmon,
// or whose command starts no container with a name.
func TestStartWithoutContainer(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
	}{
		{"the main process is no conmon", []string{"podman", "run", "--name=web", "localhost/web"}},
		{"no name", []string{"podman", "run", "localhost/web"}},
		{"no podman", []string{"/usr/local/bin/web"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := opened(t, "1")
			next := filepath.Join(t.TempDir(), "next")
			if err := u.Start(context.Background(), Options{Args: c.args, NextFile: next}); err == nil {
				t.Error("started")
			}
			if _, err := os.Stat(next); err == nil {
				t.Error("the file for conmon's PID is written")
			}
			if _, err := u.Finish(context.Background(), true); !errors.Is(err, ErrFailed) {
				t.Errorf("finish: %v", err)
			}
			if _, err := os.Stat(u.dir); err == nil {
				t.Errorf("%s is left", u.dir)
			}
		})
	}
}

// TestBrokenState: what a reload has left and nobody can read is named.
func TestBrokenState(t *testing.T) {
	u := opened(t, "1")
	if err := os.MkdirAll(u.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(u.statePath(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Finish(context.Background(), false); err == nil || errors.Is(err, ErrFailed) {
		t.Errorf("finish: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"A=1", "MAINPID=5", "OCI_MAINPID_FILE=/a", "MAINPIDFDID=7"},
		map[string]string{"OCI_MAINPID_FILE": "/b"}, []string{"MAINPID"})
	if want := []string{"A=1", "MAINPIDFDID=7", "OCI_MAINPID_FILE=/b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestEnded: the wait ends with the process, and with its context.
func TestEnded(t *testing.T) {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := ended(ctx, pidfd); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("this process has not ended: %v", err)
	}
	child, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	other, err := unix.PidfdOpen(child.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	if err := ended(context.Background(), other); err != nil {
		t.Errorf("a process that ends: %v", err)
	}
}
