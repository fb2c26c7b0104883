package rootpath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/conmontest"
)

// rootDir returns a directory that is root's, all the way up.
func rootDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "rootpath-test-")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadFile(t *testing.T) {
	dir := rootDir(t)
	for _, name := range []string{"a/b", "theirs", "open", "theirdir/x", "opendir/x"} {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte("text"), 0o644))
	}
	must(t, os.Chown(dir+"/theirs", 12345, 0))
	must(t, os.Chown(dir+"/theirdir", 12345, 0))
	must(t, os.Chmod(dir+"/open", 0o666))
	must(t, os.Chmod(dir+"/opendir", 0o777|os.ModeSticky))
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	for link, target := range map[string]string{
		"to-file": "a/b", "to-dir": "a", "absolute": dir + "/a", "up": "a/../a", "loop": "loop", "to-proc": "/proc/self/root" + dir, "to-dev": "/dev/fd",
		"to-theirs": "theirs", "dangling": "none", "their-link": "a",
	} {
		must(t, os.Symlink(target, filepath.Join(dir, link)))
	}
	must(t, os.Lchown(dir+"/their-link", 12345, 0))
	for name, c := range map[string]struct{ path, wrong string }{
		"a file":                      {"a/b", ""},
		"a link":                      {"to-file", ""},
		"below a link":                {"to-dir/b", ""},
		"below an absolute link":      {"absolute/b", ""},
		"a link with ..":              {"up/b", ""},
		"none":                        {"none", "no such file"},
		"a link to none":              {"dangling", "no such file"},
		"a loop":                      {"loop", "too many levels"},
		"a link to /proc":             {"to-proc/a/b", "is below /proc"},
		"a link to /dev/fd":           {"to-dev/0", "is below /dev"},
		"somebody's file":             {"theirs", "belongs to UID 12345, not to root"},
		"a link to it":                {"to-theirs", "belongs to UID 12345, not to root"},
		"somebody's link":             {"their-link/b", "belongs to UID 12345, not to root"},
		"in somebody's directory":     {"theirdir/x", "belongs to UID 12345, not to root"},
		"a file that others write":    {"open", "can be changed by others than root"},
		"in a directory as /tmp is":   {"opendir/x", "can be changed by others than root"},
		"a FIFO":                      {"fifo", "is not a regular file"},
		"a directory":                 {"a", "is not a regular file"},
		"/proc":                       {"/proc/self/root" + dir + "/a/b", "is below /proc"},
		"a descriptor":                {"/dev/fd/0", "is below /dev"},
		"a file of the kernel's":      {"/sys/kernel/debug/x", "is below /sys"},
		"not absolute":                {"./a", "is not an absolute path"},
		"not clean":                   {"/run/../proc/1/root", "is not an absolute path"},
		"not clean, at the beginning": {"//proc/1/root", "is not an absolute path"},
	} {
		path := c.path
		if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, ".") {
			path = dir + "/" + path
		}
		b, err := ReadFile(path, 4)
		switch {
		case c.wrong == "" && (err != nil || string(b) != "text"):
			t.Errorf("%s: %q, %v", name, b, err)
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if _, err := ReadFile(dir+"/a/b", 3); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if names, err := ReadDir(dir+"/to-dir", 1); err != nil || !slices.Equal(names, []string{"b"}) {
		t.Errorf("%q %v", names, err)
	}
	if _, err := ReadDir(dir, 3); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if mode, err := Stat(dir + "/to-file"); err != nil || mode != 0o644 {
		t.Errorf("%v %v", mode, err)
	}
	if mode, err := Stat(dir + "/a"); err != nil || mode.IsRegular() {
		t.Errorf("%v %v", mode, err)
	}
	if _, err := Stat(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestFileSystemThatNeverAnswers: a directory of a FUSE file system looks as if
// it were root's, and whoever asks it for a name waits for ever.
func TestFileSystemThatNeverAnswers(t *testing.T) {
	conmontest.NotEmulated(t, "server of FUSE")
	dir := rootDir(t)
	must(t, os.Mkdir(dir+"/fuse", 0o755))
	must(t, os.Mkdir(dir+"/proc", 0o755))
	must(t, os.Mkdir(dir+"/tmpfs", 0o755))
	type result struct{ name, wrong, got string }
	results := make(chan result)
	failed := make(chan error, 1)
	go func() {
		// The thread's mounts are its own, and end with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			failed <- err
			return
		}
		device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
		if err == nil {
			defer device.Close() // which answers whoever waits
			err = errors.Join(
				unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
				unix.Mount("x", dir+"/fuse", "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0", device.Fd())),
				unix.Mount("x", dir+"/proc", "proc", 0, ""),
				unix.Mount("x", dir+"/tmpfs", "tmpfs", 0, "mode=755"))
		}
		if err == nil {
			err = os.WriteFile(dir+"/tmpfs/x", nil, 0o644)
		}
		if err != nil {
			failed <- err
			return
		}
		for _, c := range []result{
			{name: "fuse", wrong: "is on a file system of the type fuse"},
			{name: "fuse/x", wrong: "is on a file system of the type fuse"},
			{name: "proc/1/root/x", wrong: "is on a file system of the type proc"},
			{name: "tmpfs/x", wrong: "<nil>"},
		} {
			_, err := Stat(dir + "/" + c.name)
			c.got = fmt.Sprint(err)
			results <- c
		}
		close(results)
	}()
	for {
		select {
		case err := <-failed:
			t.Skip("cannot mount FUSE here: ", err)
		case r, more := <-results:
			if !more {
				return
			}
			if !strings.Contains(r.got, r.wrong) {
				t.Errorf("%s: %s", r.name, r.got)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it waits")
		}
	}
}
