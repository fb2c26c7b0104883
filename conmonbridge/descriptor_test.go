package conmonbridge

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/proc"
)

// onlyByDescriptor returns a file that can be written through the descriptor
// alone: it stands under a name in a directory that is no longer there.
func onlyByDescriptor(t *testing.T) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mainpid")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestOpenMainPIDFile(t *testing.T) {
	write := func(t *testing.T, d Destination, path string) {
		t.Helper()
		f, _, err := d.OpenMainPIDFile()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := handover.WriteMainPID(f, 42); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(path); string(b) != "42\n" {
			t.Errorf("%s holds %q, %v", path, b, err)
		}
	}
	destination := func(t *testing.T, o conmontest.Options) Destination {
		t.Helper()
		c := conmontest.Start(t, o)
		d, ours, err := DestinationOf(c.PID)
		if err != nil || !ours {
			t.Fatalf("destination of conmon: %v, %v", ours, err)
		}
		return d
	}
	t.Run("by its name", func(t *testing.T) {
		mainPID := filepath.Join(t.TempDir(), "mainpid")
		if err := os.WriteFile(mainPID, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		write(t, destination(t, conmontest.Options{Env: []string{"OCI_MAINPID_FILE=" + mainPID}}), mainPID)
	})
	t.Run("by conmon's descriptor, by LISTEN_FDNAMES", func(t *testing.T) {
		f := onlyByDescriptor(t)
		other, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		write(t, destination(t, conmontest.Options{
			Env:   []string{"LISTEN_FDS=2", "LISTEN_FDNAMES=web:mainpidfile"},
			Files: []*os.File{other, f},
		}), f.Name())
	})
	t.Run("LISTEN_FDNAMES names what is no file", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		d := destination(t, conmontest.Options{
			Env:   []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=mainpidfile"},
			Files: []*os.File{w},
		})
		if _, _, err := d.OpenMainPIDFile(); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("neither name nor descriptor", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "mainpid")
		d := destination(t, conmontest.Options{Env: []string{"OCI_MAINPID_FILE=" + path}})
		if _, _, err := d.OpenMainPIDFile(); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "OpenFile=") {
			t.Errorf("got %v", err)
		}
	})
	for name, put := range map[string]func(path string) error{
		"a link":      func(path string) error { return os.Symlink("/etc/passwd", path) },
		"a FIFO":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		t.Run("under its name is "+name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mainpid")
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			d := destination(t, conmontest.Options{Env: []string{"OCI_MAINPID_FILE=" + path}})
			if _, _, err := d.OpenMainPIDFile(); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestCopyDescriptor takes the descriptor from another process by what its link
// names, as the hook does where the name is root's.
func TestCopyDescriptor(t *testing.T) {
	f := onlyByDescriptor(t)
	readOnly, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	holder := conmontest.Start(t, conmontest.Options{Files: []*os.File{f}})
	fd, ok := proc.FindDescriptor(holder.PID, f.Name())
	if !ok || fd != 3 {
		t.Fatalf("got %d, %v", fd, ok)
	}
	own, err := copyDescriptor(holder.PID, fd)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if own.Name() != f.Name() {
		t.Errorf("name %s, want %s", own.Name(), f.Name())
	}
	reader := conmontest.Start(t, conmontest.Options{Files: []*os.File{readOnly}})
	if _, err := copyDescriptor(reader.PID, 3); err == nil || !strings.Contains(err.Error(), "not open for writing") {
		t.Errorf("open for reading: %v", err)
	}
	if _, err := copyDescriptor(reader.PID, 99); err == nil {
		t.Error("copied a descriptor that is not there")
	}
}

// TestStderr is a hook that crun runs: its parent's standard error is read,
// its own is not.
func TestStderr(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	if os.Getenv("CONMONBRIDGE_STDERR") != "" {
		Stderr().WriteString("read me\n")
		return
	}
	for name, redirect := range map[string]string{"its own": "", "its parent's": "2>/dev/null"} {
		t.Run(name, func(t *testing.T) {
			crun := exec.Command("sh", "-c", `(exec "$0" -test.run='^TestStderr$' >/dev/null `+redirect+`); exit 0`, os.Args[0])
			crun.Env = append(os.Environ(), "CONMONBRIDGE_STDERR=1")
			var stderr strings.Builder
			crun.Stderr = &stderr
			if err := crun.Run(); err != nil || stderr.String() != "read me\n" {
				t.Errorf("got %q, %v", stderr.String(), err)
			}
		})
	}
}
