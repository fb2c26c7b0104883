package handover

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unitFiles returns the paths of a unit's files below a new directory.
func unitFiles(t *testing.T) (mainPID, result string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "oci-mainpid", "web.service")
	return filepath.Join(dir, "mainpid"), filepath.Join(dir, "result")
}

func prepared(t *testing.T) (mainPID, result string) {
	t.Helper()
	mainPID, result = unitFiles(t)
	if err := Prepare(mainPID, result, os.Geteuid()); err != nil {
		t.Fatal(err)
	}
	return mainPID, result
}

func assertFile(t *testing.T, path string, mode fs.FileMode, uid uint32) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != mode {
		t.Errorf("%s has mode %v, want %v", path, info.Mode(), mode)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Uid != uid {
		t.Errorf("%s belongs to %d, %v; want %d", path, st.Uid, err, uid)
	}
}

func TestPrepareAndForget(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	owner := os.Geteuid()
	if owner == 0 {
		owner = 4711
	} else {
		t.Log("not root: the mainpid file stays this user's")
	}
	mainPID, result := unitFiles(t)
	if err := Prepare(mainPID, result, owner); err != nil {
		t.Fatal(err)
	}
	me := uint32(os.Geteuid())
	assertFile(t, filepath.Dir(filepath.Dir(mainPID)), fs.ModeDir|0o711, me)
	assertFile(t, filepath.Dir(mainPID), fs.ModeDir|0o711, me)
	assertFile(t, mainPID, 0o600, uint32(owner))
	assertFile(t, result, 0o644, me)
	for range 2 { // the second time there is nothing to forget
		if err := Forget(mainPID, result); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(filepath.Dir(mainPID)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the unit's directory is left: %v", err)
		}
	}
}

func TestForgetLeavesAlone(t *testing.T) {
	mainPID, result := prepared(t)
	other := filepath.Join(filepath.Dir(mainPID), "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Forget(mainPID, result); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(other); err != nil {
		t.Error(err)
	}
}

// TestPrepareReplaces puts something else where the files belong: it is
// replaced, and what it leads to is not touched.
func TestPrepareReplaces(t *testing.T) {
	for name, put := range map[string]func(path, target string) error{
		"a file of an earlier start": func(path, _ string) error { return os.WriteFile(path, []byte("1\n"), 0o666) },
		"a symbolic link":            func(path, target string) error { return os.Symlink(target, path) },
		"a hard link":                func(path, target string) error { return os.Link(target, path) },
		"a FIFO":                     func(path, _ string) error { return unix.Mkfifo(path, 0o666) },
	} {
		t.Run(name, func(t *testing.T) {
			mainPID, result := prepared(t)
			target := filepath.Join(filepath.Dir(mainPID), "target")
			if err := os.WriteFile(target, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{mainPID, result} {
				if err := errors.Join(os.Remove(path), put(path, target)); err != nil {
					t.Fatal(err)
				}
			}
			if err := Prepare(mainPID, result, os.Geteuid()); err != nil {
				t.Fatal(err)
			}
			assertFile(t, mainPID, 0o600, uint32(os.Geteuid()))
			assertFile(t, result, 0o644, uint32(os.Geteuid()))
			if b, err := os.ReadFile(target); string(b) != "precious" {
				t.Errorf("the target holds %q, %v", b, err)
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, dir string) error
		want  string
	}{
		{"a directory in the file's place", func(t *testing.T, dir string) error {
			return os.MkdirAll(filepath.Join(dir, "mainpid", "x"), 0o755)
		}, "is a directory"},
		{"a directory in the result file's place", func(t *testing.T, dir string) error {
			return os.MkdirAll(filepath.Join(dir, "result", "x"), 0o755)
		}, "is a directory"},
		{"a unit's directory that others may write", func(t *testing.T, dir string) error {
			return errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o777))
		}, "others may change what is in it (mode 0777)"},
		{"a link in the directory's place", func(t *testing.T, dir string) error {
			return errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.Symlink(t.TempDir(), dir))
		}, "not a directory"},
		{"a file in the directory's place", func(t *testing.T, dir string) error {
			return errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.WriteFile(dir, nil, 0o644))
		}, "not a directory"},
		{"a directory of another user", func(t *testing.T, dir string) error {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a directory away")
			}
			return errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, 4711, 4711))
		}, "belongs to UID 4711"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mainPID, result := unitFiles(t)
			if err := c.spoil(t, filepath.Dir(mainPID)); err != nil {
				t.Fatal(err)
			}
			err := Prepare(mainPID, result, os.Geteuid())
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), filepath.Dir(mainPID)) {
				t.Errorf("got %v; want %q", err, c.want)
			}
			for _, path := range []string{mainPID, result} {
				if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
					t.Errorf("%s is left", path)
				}
			}
		})
	}
	for _, path := range []string{"", "/", "mainpid", "/nowhere/../run/mainpid", "/nowhere//mainpid", "/nowhere/x/"} {
		if err := Prepare(path, "/nowhere/result", 0); err == nil || !strings.Contains(err.Error(), "not clean") {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestOpenHandoverRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		file  string
		spoil func(path string) error
		want  string
	}{
		{"no mainpid file", "mainpid", func(path string) error { return nil }, "no such file"},
		{"mainpid file is a link", "mainpid", func(path string) error { return os.Symlink("/etc/passwd", path) }, "symbolic link"},
		{"mainpid file is a FIFO", "mainpid", func(path string) error { return unix.Mkfifo(path, 0o666) }, "not a regular file"},
		{"mainpid file is a directory", "mainpid", func(path string) error { return os.Mkdir(path, 0o755) }, "not a regular file"},
		{"result file is a link", "result", func(path string) error { return os.Symlink("/etc/passwd", path) }, "symbolic link"},
		{"result file is a FIFO", "result", func(path string) error { return unix.Mkfifo(path, 0o600) }, "no such device or address"},
		{"result file is a directory", "result", func(path string) error { return os.Mkdir(path, 0o755) }, "is a directory"},
		{"result file that others may write", "result", func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o644), os.Chmod(path, 0o666))
		}, "others may write it"},
		{"result file is a hard link", "result", func(path string) error {
			return errors.Join(os.WriteFile(path+"2", nil, 0o644), os.Link(path+"2", path))
		}, "hard link"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mainPID, result := prepared(t)
			path := filepath.Join(filepath.Dir(mainPID), c.file)
			if err := errors.Join(os.Remove(path), c.spoil(path)); err != nil {
				t.Fatal(err)
			}
			h, err := OpenHandover(mainPID, result)
			if err == nil {
				h.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v; want %q and the path", err, c.want)
			}
		})
	}
	t.Run("result file that is missing is made", func(t *testing.T) {
		mainPID, result := prepared(t)
		if err := os.Remove(result); err != nil {
			t.Fatal(err)
		}
		h, err := OpenHandover(mainPID, result)
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
		if _, err := os.Lstat(result); err != nil {
			t.Error(err)
		}
	})
}
