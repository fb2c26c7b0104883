package conmonbridge

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/proc"
)

func TestDestinationOf(t *testing.T) {
	for _, c := range []struct {
		name string
		env  []string
		ours bool
		unit string
	}{
		{"ours by name", []string{"OCI_MAINPID_FILE=/run/x", "PODMAN_SYSTEMD_UNIT=web.service"}, true, "web.service"},
		{"ours by descriptor", []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=mainpidfile", "PODMAN_SYSTEMD_UNIT=web.service"}, true, "web.service"},
		{"ours, hand-written", []string{"OCI_MAINPID_FILE=/run/oci-mainpid/web.service/mainpid"}, true, "web.service"},
		{"not ours", []string{"PODMAN_SYSTEMD_UNIT=web.service", "LISTEN_FDS=1", "LISTEN_FDNAMES=web"}, false, "web.service"},
		{"result file alone", []string{"OCI_MAINPID_RESULT=/run/x", "PODMAN_SYSTEMD_UNIT=web.service"}, false, "web.service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conmon := startConmon(t, c.env...)
			d, ours, err := DestinationOf(conmon.PID)
			if err != nil || ours != c.ours || d.String() != c.unit {
				t.Errorf("got %v, %v, %v", d, ours, err)
			}
		})
	}
	if _, _, err := DestinationOf(proc.MaxPID + 1); !errors.Is(err, proc.ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
}

func TestDestinationAbove(t *testing.T) {
	if d, ours := DestinationAbove(); ours {
		t.Errorf("this test is in unit %v", d)
	}
}

func TestListenDescriptor(t *testing.T) {
	for _, c := range []struct {
		name string
		env  proc.Strings
		want int
	}{
		{"only the mainpid file", proc.Strings("LISTEN_FDS=1\x00LISTEN_FDNAMES=mainpidfile"), 3},
		{"behind two sockets", proc.Strings("LISTEN_FDS=3\x00LISTEN_FDNAMES=web:web:mainpidfile"), 5},
		{"held back", proc.Strings("LISTEN_FDS=1\x00LISTEN_FDNAMES=web:mainpidfile"), -1},
		{"another name", proc.Strings("LISTEN_FDS=1\x00LISTEN_FDNAMES=mainpidfile2"), -1},
		{"no names", proc.Strings("LISTEN_FDS=1"), -1},
		{"no number", proc.Strings("LISTEN_FDS=x\x00LISTEN_FDNAMES=mainpidfile"), -1},
		{"nothing", nil, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := listenDescriptor(c.env); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestDestinationAsksToBeVerbose(t *testing.T) {
	for _, c := range []struct {
		name string
		env  []string
		want bool
	}{
		{"asked for", []string{"OCI_MAINPID_FILE=/m", "OCI_MAINPID_VERBOSE=1"}, true},
		{"not asked for", []string{"OCI_MAINPID_FILE=/m"}, false},
		{"asked for the contrary", []string{"OCI_MAINPID_FILE=/m", "OCI_MAINPID_VERBOSE=0"}, false},
		{"empty", []string{"OCI_MAINPID_FILE=/m", "OCI_MAINPID_VERBOSE="}, false},
		{"asked for by a unit that is not ours", []string{"OCI_MAINPID_VERBOSE=1"}, false},
	} {
		conmon := conmontest.Start(t, conmontest.Options{Env: append(c.env, "INVOCATION_ID=aa")})
		if d, _, err := DestinationOf(conmon.PID); err != nil || d.Verbose != c.want || d.InvocationID != "aa" {
			t.Errorf("%s: %+v, %v", c.name, d, err)
		}
	}
}

// TestDestinationOfBareConmon is podman before 4.8, whose conmon has none of the
// unit's environment: another process in its control group may have it.
func TestDestinationOfBareConmon(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: no other users' processes")
	}
	const web, mallory = 4711, 4712
	env := []string{"OCI_MAINPID_FILE=/run/oci-mainpid/web.service/mainpid"}
	start := func(t *testing.T, uid int, env ...string) int {
		t.Helper()
		return conmontest.Start(t, conmontest.Options{UID: uid, Env: env, Below: []string{}}).PID
	}
	contained := func(t *testing.T) int {
		t.Helper()
		cmd := exec.Command("sleep", "60")
		cmd.Env = env
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: web, Gid: web}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd.Process.Pid
	}
	for _, c := range []struct {
		name   string
		beside func(t *testing.T) int
		ours   bool
	}{
		{"podman", func(t *testing.T) int { return start(t, web, env...) }, true},
		{"a process of another user's", func(t *testing.T) int { return start(t, mallory, env...) }, false},
		{"a process inside a container, whose image names a file", contained, false},
		{"a process without a destination", func(t *testing.T) int { return start(t, web) }, false},
		{"a process that has gone", func(t *testing.T) int { return proc.MaxPID + 1 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			conmon := start(t, web)
			d, ours, err := DestinationOf(conmon)
			if err != nil || ours || d.hasUnitEnvironment {
				t.Fatalf("conmon itself: %+v, %v, %v", d, ours, err)
			}
			beside := c.beside(t)
			d, ours, err = destinationBeside(d, []int{conmon, beside})
			if err != nil || ours != c.ours || ours && d.source != beside {
				t.Errorf("%+v, %v, %v", d, ours, err)
			}
		})
	}
	t.Run("root's container, whose conmon is beside a process with a destination", func(t *testing.T) {
		// Both are in this test's control group.
		conmon := start(t, 0)
		start(t, 0, env...)
		if d, ours, err := DestinationOfConmon(conmon); err != nil || ours {
			t.Errorf("%+v, %v, %v", d, ours, err)
		}
	})
}
