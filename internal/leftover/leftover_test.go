package leftover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/proc"
)

const (
	uid     = 47110
	manager = "/user.slice/user-47110.slice/user@47110.service/"
)

var container = manager + "user.slice/libpod-" + strings.Repeat("0a", 32) + ".scope"

// TestMain mounts the unified hierarchy where a machine of now has it, in a mount
// namespace of its own.
func TestMain(m *testing.M) {
	const own = "OWN_MOUNTS"
	if os.Geteuid() != 0 || conmontest.Emulated() {
		os.Exit(m.Run())
	}
	if os.Getenv(own) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), own+"=1"), os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := syscall.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		fmt.Fprintln(os.Stderr, "mount cgroup2:", err)
	}
	os.Exit(m.Run())
}

// makeGroup makes a control group for the test.
func makeGroup(t *testing.T, cgroup string) {
	t.Helper()
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	if os.Geteuid() != 0 {
		t.Skip("not root, who may make control groups anywhere")
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err != nil {
		t.Skip("no unified hierarchy in /sys/fs/cgroup")
	}
	var made []string
	for dir := "/sys/fs/cgroup" + cgroup; dir != "/sys/fs/cgroup"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err != nil {
			made = append(made, dir)
		}
	}
	t.Cleanup(func() {
		for _, dir := range made {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
	if err := os.MkdirAll("/sys/fs/cgroup"+cgroup, 0o755); err != nil {
		t.Skip(err)
	}
}

// start runs a process of the user in a control group, and returns a channel that
// is closed when it has ended.
func start(t *testing.T, cgroup string, uid int, args ...string) (pid int, ended chan struct{}) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	if err := os.WriteFile("/sys/fs/cgroup"+cgroup+"/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, ended
}

func lives(ended chan struct{}) bool {
	select {
	case <-ended:
		return false
	case <-time.After(200 * time.Millisecond):
		return true
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestEnd(t *testing.T) {
	inner := container + "/init.scope"
	makeGroup(t, inner)
	_, ignores := start(t, container, uid, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	_, deeper := start(t, inner, uid, "sleep", "1000")
	other := manager + "user.slice/libpod-" + strings.Repeat("0b", 32) + ".scope"
	makeGroup(t, other)
	_, bystander := start(t, other, uid, "sleep", "1000")

	killed, err := End(within(t, 10*time.Second), handover.Record{UID: uid, Conmon: proc.MaxPID - 1, Cgroups: []string{container}})
	if err != nil || killed < 2 {
		t.Errorf("killed %d, %v", killed, err)
	}
	if lives(ignores) || lives(deeper) {
		t.Error("a process of the container lives")
	}
	if !lives(bystander) {
		t.Error("a process of another container was killed")
	}
	if killed, err := End(within(t, time.Second), handover.Record{UID: uid, Cgroups: []string{container, manager + "gone"}}); killed != 0 || err != nil {
		t.Errorf("where nothing is left: %d, %v", killed, err)
	}
}

// TestEndOfRoot: of a start of root's, what is in its container's control group is ended.
func TestEndOfRoot(t *testing.T) {
	cgroup := "/machine.slice/libpod-" + strings.Repeat("0c", 32) + ".scope"
	makeGroup(t, cgroup)
	_, roots := start(t, cgroup, 0, "sleep", "1000")
	_, mapped := start(t, cgroup, uid, "sleep", "1000")
	killed, err := End(within(t, 10*time.Second), handover.Record{Conmon: proc.MaxPID - 1, Cgroups: []string{cgroup}})
	if err != nil || killed != 2 || lives(roots) || lives(mapped) {
		t.Errorf("killed %d, %v", killed, err)
	}
}

func TestEndSpares(t *testing.T) {
	makeGroup(t, container)
	for name, whose := range map[string]int{"root's": 0, "another user's": uid + 1} {
		t.Run(name, func(t *testing.T) {
			_, ended := start(t, container, whose, "sleep", "1000")
			_, err := End(within(t, time.Second), handover.Record{UID: uid, Cgroups: []string{container}})
			if err == nil || !strings.Contains(err.Error(), "are not of user 47110") {
				t.Errorf("got %v", err)
			}
			if !lives(ended) {
				t.Error("it was killed")
			}
		})
	}
	for _, cgroup := range []string{"/", "/system.slice/web.service", "/user.slice/user-1.slice/user@1.service/a", manager + "../../../system.slice", manager} {
		if _, err := End(within(t, time.Second), handover.Record{UID: uid, Cgroups: []string{cgroup}}); err == nil || !strings.Contains(err.Error(), "none that podman makes") {
			t.Errorf("%s: %v", cgroup, err)
		}
	}
	for _, cgroup := range []string{"/", "/machine.slice", "/machine.slice/libpod-a.scope/b", "/system.slice/libpod-a.scope", container} {
		if _, err := End(within(t, time.Second), handover.Record{Cgroups: []string{cgroup}}); err == nil || !strings.Contains(err.Error(), "none that podman makes") {
			t.Errorf("%s of root: %v", cgroup, err)
		}
	}
}

// TestEndIsBounded: a user who starts processes for ever does not keep root.
func TestEndIsBounded(t *testing.T) {
	makeGroup(t, container)
	_, ended := start(t, container, 0, "sleep", "1000") // cannot be killed
	start(t, container, uid, "sh", "-c", "while :; do sleep 0.01; done")
	begin := time.Now()
	_, err := End(within(t, time.Second), handover.Record{UID: uid, Cgroups: []string{container}})
	if err == nil || time.Since(begin) > 5*time.Second || !lives(ended) {
		t.Errorf("got %v after %v", err, time.Since(begin))
	}
	done, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("over"))
	if _, err := End(done, handover.Record{UID: uid, Cgroups: []string{container}}); err == nil || !strings.Contains(err.Error(), "over") {
		t.Errorf("got %v", err)
	}
}

func TestCgroups(t *testing.T) {
	inner := container + "/container"
	scope := manager + "user.slice/podman-12.scope"
	makeGroup(t, inner)
	makeGroup(t, scope)
	// The test is conmon: its child is the container.
	start(t, inner, uid, "sleep", "1000")
	own, err := proc.Cgroup(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	move := func(cgroup string) error {
		return os.WriteFile("/sys/fs/cgroup"+cgroup+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0o644)
	}
	if got := Cgroups(os.Getpid(), uid); !slices.Equal(got, []string{container}) {
		t.Errorf("a conmon in the unit: %q", got)
	}
	if err := move(scope); err != nil {
		t.Fatal(err)
	}
	got := Cgroups(os.Getpid(), uid)
	if err := move(own); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []string{container, scope}) {
		t.Errorf("a conmon below the user's manager: %q", got)
	}
	if got := Cgroups(os.Getpid(), uid+1); got != nil {
		t.Errorf("another user's: %q", got)
	}
}

func TestLives(t *testing.T) {
	self, err := proc.Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !Lives(handover.Record{Conmon: os.Getpid(), Start: self.Start}) {
		t.Error("conmon lives")
	}
	r := handover.Record{UID: uid, Conmon: os.Getpid(), Start: self.Start + 1, Cgroups: []string{"/", container}}
	if Lives(r) {
		t.Error("conmon's PID is another process's by now, and it lives")
	}
	makeGroup(t, container)
	if Lives(r) {
		t.Error("an empty control group lives")
	}
	start(t, container, uid, "sleep", "1000")
	if !Lives(r) {
		t.Error("a container lives")
	}
}
