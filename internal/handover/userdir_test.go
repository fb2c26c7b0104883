package handover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/conmontest"
)

func TestUserDirOf(t *testing.T) {
	for path, want := range map[string]string{
		"/run/oci-mainpid/users/1000/web.service/mainpid": "/run/oci-mainpid/users/1000",
		"/run/oci-mainpid/users/01/web.service/mainpid":   "",
		"/run/oci-mainpid/users/x/web.service/mainpid":    "",
		"/run/oci-mainpid/users/1000/mainpid":             "",
		"/run/oci-mainpid/web.service/mainpid":            "",
		"/run/1000/web.service/mainpid":                   "",
		"/mainpid":                                        "",
	} {
		if got := UserDirOf(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// TestMountUserDir: two users' files are on two file systems, and what the one keeps
// of an earlier start takes no room from the other.
func TestMountUserDir(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	// A mount namespace of its own, so that the machine keeps its /run.
	if os.Getenv("OWN_MOUNTS") == "" {
		if os.Geteuid() != 0 {
			t.Skip("not root, who may mount")
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestMountUserDir$", "-test.v")
		cmd.Env = append(os.Environ(), "OWN_MOUNTS=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	var kept []*os.File
	var full error
	for start := 0; full == nil && start < 10; start++ {
		mainPID, result := Files("web.service", 4711)
		if full = Prepare(mainPID, result, 4711); full != nil {
			break
		}
		f, err := os.OpenFile(mainPID, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, f)
		f.Write(make([]byte, 1<<20))
		if err := Forget(mainPID, result); err != nil {
			t.Error(err)
		}
	}
	if !errors.Is(full, unix.ENOSPC) || !strings.Contains(full.Error(), UserDir(4711)) {
		t.Errorf("a user who keeps %d files of a megabyte: %v, want no space left on %s", len(kept), full, UserDir(4711))
	}
	var started sync.WaitGroup
	for i := range 20 { // of another user, at once
		started.Add(1)
		go func() {
			defer started.Done()
			if err := Prepare(withOwner(Files(fmt.Sprintf("%d.service", i), 4712))); err != nil {
				t.Error(err)
			}
		}()
	}
	started.Wait()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if got := strings.Count(string(mounts), " "+UserDir(4712)+" "); got != 1 || err != nil {
		t.Errorf("%d file systems are mounted on %s, %v", got, UserDir(4712), err)
	}
	// What the user may do to their own file: attributes.
	path, _ := Files("0.service", 4712)
	for i := 0; ; i++ {
		if err := unix.Setxattr(path, fmt.Sprintf("user.%d", i), make([]byte, 1000), 0); err != nil {
			t.Logf("after %d attributes of 1,000 bytes: %v", i, err)
			break
		}
		if i > 1_000_000 {
			t.Fatal("attributes have no bound")
		}
	}
	if err := Prepare(withOwner(Files("db.service", 4713))); err != nil {
		t.Errorf("a third user: %v", err)
	}
	if err := os.WriteFile(filepath.Join(Dir, "free"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

// withOwner adds the owner, root.
func withOwner(mainPIDFile, resultFile string) (string, string, int) {
	return mainPIDFile, resultFile, 0
}
