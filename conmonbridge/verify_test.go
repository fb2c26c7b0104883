package conmonbridge

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/proc"
)

const invocation = "0123456789abcdef0123456789abcdef"

func TestVerify(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: no other users' processes, and conmon's executable must be root's")
	}
	const web, mallory = 4711, 4712
	env := []string{"INVOCATION_ID=" + invocation}
	kube := []string{"-c", "abc", "-n", "0123456789ab-service", "-s"}
	for _, c := range []struct {
		name    string
		conmon  conmontest.Options
		require Requirement
		want    string // in the error, "" for none
	}{
		{"conmon", conmontest.Options{UID: web, Env: env}, RequireConmon, ""},
		{"conmon while runc creates the container", conmontest.Options{UID: web, Env: env, Below: []string{"runtime", "container"}}, RequireConmon, ""},
		{"another user's", conmontest.Options{UID: mallory, Env: env}, RequireConmon, "runs as UID 4712"},
		{"root's", conmontest.Options{Env: env}, RequireConmon, "runs as UID 0"},
		{"another start of the unit", conmontest.Options{UID: web, Env: []string{"INVOCATION_ID=" + strings.Repeat("0", 32)}}, RequireConmon, "another start"},
		{"no INVOCATION_ID", conmontest.Options{UID: web}, RequireConmon, "another start"},
		{"no container", conmontest.Options{UID: web, Env: env, Below: []string{}}, RequireConmon, "has no container"},
		{"a container that has ended", conmontest.Options{UID: web, Env: env, Below: []string{"zombie"}}, RequireConmon, "has no container"},
		{"service container of a kube unit", conmontest.Options{UID: web, Env: env, Args: kube}, RequireKube, ""},
		{"another container of a kube unit", conmontest.Options{UID: web, Env: env, Args: []string{"-n", "web-pod-web"}}, RequireKube, `container "web-pod-web"`},
		{"a name of a kube unit's own that looks alike", conmontest.Options{UID: web, Env: env, Args: []string{"-n", "0123456789aX-service"}}, RequireKube, "not of the kube unit's service container"},
		{"no container's name", conmontest.Options{UID: web, Env: env, Args: []string{"-n"}}, RequireKube, "names no container"},
		{"any process of the user", conmontest.Options{UID: web, Below: []string{}}, RequireUser, ""},
		{"any process of another user", conmontest.Options{UID: mallory, Below: []string{}}, RequireUser, "runs as UID 4712"},
		{"a requirement that is none", conmontest.Options{UID: web, Env: env}, "nothing", "unknown requirement"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conmon := conmontest.Start(t, c.conmon)
			err := verify(t, conmon.PID, Expected{Requirement: c.require, UID: web, InvocationID: invocation, Executables: []string{"/nowhere", conmon.Executable}})
			assertError(t, err, c.want)
		})
	}
	t.Run("a copy of conmon", func(t *testing.T) {
		real := conmontest.Start(t, conmontest.Options{UID: web, Env: env})
		copied := conmontest.Start(t, conmontest.Options{UID: web, Env: env})
		assertError(t, verify(t, copied.PID, Expected{Requirement: RequireConmon, UID: web, InvocationID: invocation, Executables: []string{real.Executable}}), "does not execute conmon")
	})
	t.Run("a conmon that others may write", func(t *testing.T) {
		c := conmontest.Start(t, conmontest.Options{UID: web, Env: env})
		want := Expected{Requirement: RequireConmon, UID: web, InvocationID: invocation, Executables: []string{c.Executable}}
		if err := os.Chmod(c.Executable, 0o757); err != nil {
			t.Fatal(err)
		}
		assertError(t, verify(t, c.PID, want), "others than root may write")
		if err := errors.Join(os.Chmod(c.Executable, 0o755), os.Chown(c.Executable, web, web)); err != nil {
			t.Fatal(err)
		}
		assertError(t, verify(t, c.PID, want), "others than root may write")
	})
	t.Run("no invocation to compare with", func(t *testing.T) {
		c := conmontest.Start(t, conmontest.Options{UID: web})
		assertError(t, verify(t, c.PID, Expected{Requirement: RequireConmon, UID: web, InvocationID: "", Executables: []string{c.Executable}}), "no invocation ID")
	})
	t.Run("PID 1", func(t *testing.T) {
		assertError(t, verify(t, 1, Expected{Requirement: RequireConmon, UID: web, InvocationID: invocation, Executables: Executables}), "runs as UID 0")
	})
	t.Run("in another PID namespace", func(t *testing.T) {
		conmontest.NotEmulated(t, "PID namespaces")
		cmd := exec.Command("sleep", "60")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { cmd.Process.Kill(); cmd.Wait() }()
		assertError(t, verify(t, cmd.Process.Pid, Expected{Requirement: RequireUser, UID: 0, InvocationID: "", Executables: nil}), "another PID namespace")
	})
}

func TestSameUnit(t *testing.T) {
	const unit = "/system.slice/web.service"
	for _, c := range []struct {
		name, own, theirs string
		want              bool
	}{
		{"the unit's", unit, unit, true},
		{"delegated", unit + "/.control", unit, true},
		{"below", unit + "/.control", unit + "/runtime", true},
		{"another unit's", unit, "/system.slice/db.service", false},
		{"a name that begins alike", unit, "/system.slice/web.service2", false},
		{"the user's", unit, "/user.slice/user-1000.slice/user@1000.service/user.slice/podman-1.scope", false},
		{"by hand, at the root", "/", unit, false},
		{"by hand, in a session", "/user.slice/session-1.scope", "/user.slice/session-1.scope", false},
		{"no unified hierarchy", "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := sameUnit(c.own, c.theirs); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func verify(t *testing.T, pid int, want Expected) error {
	t.Helper()
	claim, err := NewClaim(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Close()
	return claim.Verify(want)
}

func assertError(t *testing.T, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestNewClaim(t *testing.T) {
	if _, err := NewClaim(proc.MaxPID - 1); !errors.Is(err, proc.ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
	t.Run("a thread", func(t *testing.T) {
		tid := make(chan int)
		done := make(chan struct{})
		defer close(done)
		for range 2 { // one of them may be on the first thread
			go func() {
				runtime.LockOSThread()
				tid <- unix.Gettid()
				<-done
			}()
		}
		id := max(<-tid, <-tid)
		if _, err := NewClaim(id); err == nil || !strings.Contains(err.Error(), "is a thread") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a zombie", func(t *testing.T) {
		cmd := exec.Command("true")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		claim, err := NewClaim(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		defer claim.Close()
		if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			t.Fatal(err)
		}
		assertError(t, claim.Verify(Expected{Requirement: RequireUser, UID: os.Getuid()}), "has ended")
		cmd.Wait()
		assertError(t, claim.Alive(), "has ended")
	})
}
