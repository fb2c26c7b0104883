package sandbox

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/conmontest"
)

func TestKey(t *testing.T) {
	seen := map[string]Suite{}
	for _, s := range Suites() {
		key, err := s.key()
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := s.key(); again != key {
			t.Errorf("key of %s: %s, then %s", s, key, again)
		}
		if !strings.HasPrefix(key, string(s)+"-") {
			t.Errorf("key of %s: %s does not name the suite", s, key)
		}
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s have the key %s", s, other, key)
		}
		seen[key] = s
	}
}

func TestKeyFollowsMaskedUnits(t *testing.T) {
	before, err := Trixie.key()
	if err != nil {
		t.Fatal(err)
	}
	saved := masked
	defer func() { masked = saved }()
	masked = append(slices.Clone(masked), "another.service")
	if after, _ := Trixie.key(); after == before {
		t.Errorf("the key is %s with and without another masked unit", after)
	}
}

func TestUnknownSuite(t *testing.T) {
	err := Build(context.Background(), "potato", nil)
	if err == nil || !strings.Contains(err.Error(), "potato") || !strings.Contains(err.Error(), "trixie") {
		t.Errorf("Build of an unknown suite: %v", err)
	}
}

func TestPackagesOnce(t *testing.T) {
	for _, s := range Suites() {
		p := s.packages()
		slices.Sort(p)
		if unique := slices.Compact(slices.Clone(p)); len(unique) != len(p) {
			t.Errorf("%s has a package twice: %v", s, p)
		}
	}
}

func TestWriteImage(t *testing.T) {
	const storage = "etc/containers/storage.conf"
	for suite, hasStorage := range map[Suite]bool{Bookworm: true, Trixie: false} {
		root := t.TempDir()
		for range 2 { // also over what is there
			if err := writeImage(suite, root); err != nil {
				t.Fatalf("%s: %v", suite, err)
			}
		}
		link := filepath.Join(root, "etc/systemd/system/sysinit.target.wants/sandbox-boot-id.service")
		target, err := os.Readlink(link)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(root, target)); err != nil {
			t.Errorf("%s: enabled unit: %v", suite, err)
		}
		if _, err := os.Stat(filepath.Join(root, storage)); (err == nil) != hasStorage {
			t.Errorf("%s: %s: %v", suite, storage, err)
		}
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "trixie-1": true, strings.Repeat("a", 40): true,
		"": false, "-a": false, "a-": false, "1a": false, "A": false, "a.b": false, "a_b": false,
		"a/b": false, "..": false, "a\n": false, strings.Repeat("a", 41): false,
	} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("checkName(%q): %v", name, err)
		}
	}
}

func TestAttachToNothing(t *testing.T) {
	if _, err := Attach("there-is-no-such-machine"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Attach: %v", err)
	}
	if _, err := Attach("../etc"); err == nil {
		t.Error("Attach took a path for a name")
	}
}

func TestNspawnArgs(t *testing.T) {
	with, without := nspawnArgs("m", "/r", true), nspawnArgs("m", "/r", false)
	if !slices.Contains(with, "--keep-unit") || slices.Contains(without, "--keep-unit") {
		t.Errorf("--keep-unit: with %q, without %q", with, without)
	}
	for _, arg := range []string{"--directory=/r", "--machine=sandbox-m", "--hostname=m", "--boot", "--register=no"} {
		if !slices.Contains(with, arg) || !slices.Contains(without, arg) {
			t.Errorf("no %s: with %q, without %q", arg, with, without)
		}
	}
}

func TestEnterArgsKeepArguments(t *testing.T) {
	args := enterArgs("/c/cgroup.procs", 42, ownNetwork, "echo", []string{"--help", "a b", "$(x)"})
	end := args[slices.Index(args, "--"):]
	if want := []string{"--", "echo", "--help", "a b", "$(x)"}; !slices.Equal(end, want) {
		t.Errorf("arguments end with %q, want %q", end, want)
	}
	if !slices.Contains(args, "--target=42") {
		t.Errorf("no target in %q", args)
	}
}

func TestCommandInEndedMachine(t *testing.T) {
	m := &Machine{state{Name: "ended"}}
	if err := m.Command(context.Background(), "true").Run(); !errors.Is(err, errNotRunning) {
		t.Errorf("Run: %v", err)
	}
	if m.Running() {
		t.Error("it is said to be running")
	}
}

// TestSupervise runs the supervising shell with a command that asks twice to be
// started again.
func TestSupervise(t *testing.T) {
	const program = `read n <count; echo $((n + 1)) >count; [ $n -ge 2 ] && exit 3; exit 133`
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "count"), []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", supervise, "supervise", "", "/bin/sh", "-c", program)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "count")); string(got) != "3\n" {
		t.Errorf("the command ran %q times, want 3", got)
	}
}

func TestUnifiedCgroup(t *testing.T) {
	for name, c := range map[string]struct{ file, want string }{
		"version 2 only":  {"0::/a/init.scope\n", "/a/init.scope"},
		"with version 1":  {"2:memory:/x\n1:name=systemd:/y\n0::/a\n", "/a"},
		"version 1 only":  {"2:memory:/x\n", ""},
		"root":            {"0::/\n", "/"},
		"with a colon":    {"0::/a:b\n", "/a:b"},
		"without newline": {"0::/a", "/a"},
	} {
		got, err := unifiedCgroup(c.file)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

// TestRemoveTree: what is mounted in a directory is unmounted, not emptied, also
// where the way to the directory is a symbolic link.
func TestRemoveTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	top := t.TempDir()
	kept, beside, dir := filepath.Join(top, "kept"), filepath.Join(top, "m1x"), filepath.Join(top, "m1")
	target := filepath.Join(dir, "with space")
	for _, d := range []string{kept, beside, target, filepath.Join(kept, "home")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(kept, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bind := func(target string) {
		t.Helper()
		if err := unix.Mount(kept, target, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	}
	bind(target)
	bind(filepath.Join(target, "home"))
	bind(beside)
	link := filepath.Join(top, "link")
	if err := os.Symlink(top, link); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also what is gone already
		if err := removeTree(filepath.Join(link, "m1")); err != nil {
			t.Fatal(err)
		}
	}
	if isDir(dir) {
		t.Errorf("%s is still there", dir)
	}
	for _, path := range []string{filepath.Join(kept, "file"), filepath.Join(beside, "file")} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("removed through a mount, or unmounted: %v", err)
		}
	}
	if err := removeTree(filepath.Join(top, "nowhere", "m1")); err != nil {
		t.Errorf("a directory whose parent is gone: %v", err)
	}
}

// TestLog: a step is a line that names the suite; without a writer nothing
// happens.
func TestLog(t *testing.T) {
	var b bytes.Buffer
	newLog(&b, Trixie).Infof("started machine %s", "m1")
	for _, want := range []string{"msg=\"started machine m1\"", "suite=trixie"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q does not have %s", b.String(), want)
		}
	}
	if n := strings.Count(b.String(), "\n"); n != 1 {
		t.Errorf("%d lines: %q", n, b.String())
	}
	newLog(nil, Trixie).Info("nobody reads this")
}

func TestProcess(t *testing.T) {
	conmontest.NotEmulated(t, "start time of its own process, but one of each thread")
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if children, err := self.children(); err != nil || !slices.Contains(children, p) {
		t.Errorf("children: %v, %v: %v is not among them", children, err, p)
	}
	if p.runsSystemd() {
		t.Error("sleep is said to be systemd as PID 1")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := p.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for what runs: %v", err)
	}

	later := process{PID: p.PID, Start: p.Start + 1}
	if later.alive() {
		t.Error("another process with the PID is said to be alive")
	}
	if err := later.signal(syscall.SIGKILL); err != nil {
		t.Errorf("signal to what has ended: %v", err)
	}
	if !p.alive() {
		t.Fatal("the signal went to another process")
	}

	if err := p.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.wait(context.Background()); err != nil {
		t.Errorf("wait: %v", err)
	}
	if p.alive() {
		t.Error("a zombie is said to be alive")
	}
	cmd.Wait()
	if (process{}).alive() {
		t.Error("the zero process is said to be alive")
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(context.Background(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	waited := 0
	if _, err := lock(ctx, path, func() { waited++ }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: %v", err)
	}
	if waited != 1 {
		t.Errorf("waiting was said %d times", waited)
	}
	unlock()
	unlock, err = lock(context.Background(), path, nil)
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	unlock()
}

func TestBusyboxTar(t *testing.T) {
	program := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(program, []byte("program"), 0o700); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := writeBusyboxTar(&b, program, []string{"sh", "busybox", "cat", "sh"}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]*tar.Header{}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if seen[h.Name] != nil {
			t.Errorf("%s is there twice", h.Name)
		}
		seen[h.Name] = h
	}
	for _, applet := range []string{"bin/sh", "bin/cat"} {
		if h := seen[applet]; h == nil || h.Linkname != "busybox" {
			t.Errorf("%s: %+v", applet, h)
		}
	}
	if h := seen["bin/busybox"]; h == nil || h.Typeflag != tar.TypeReg || h.Mode != 0o755 {
		t.Errorf("bin/busybox: %+v", h)
	}
	if h := seen["tmp/"]; h == nil || h.Mode != 0o1777 {
		t.Errorf("tmp/: %+v", h)
	}
}

func TestCacheDir(t *testing.T) {
	t.Setenv(CacheVariable, "")
	if dir, err := cacheDir(); err != nil || dir != defaultCache {
		t.Errorf("by default: %q, %v", dir, err)
	}
	t.Setenv(CacheVariable, "/some/where")
	if dir, err := cacheDir(); err != nil || dir != "/some/where" {
		t.Errorf("set: %q, %v", dir, err)
	}
	t.Setenv(CacheVariable, "/some:where")
	if _, err := cacheDir(); err == nil {
		t.Error("a colon was taken")
	}
}
