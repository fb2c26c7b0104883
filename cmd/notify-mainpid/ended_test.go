package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/conmontest"
)

// deadPID returns the PID of a process that has ended.
func deadPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// TestEndedAlready: where the container has ended before its conmon is verified, and
// the main process that systemd knows has, the unit ends as that did. Nothing is sent
// that could make another process the main one, nor the unit count as running.
func TestEndedAlready(t *testing.T) {
	dead, podman := deadPID(t), deadPID(t)
	for _, c := range []struct {
		name    string
		mainPID int // in the environment, 0 for none
		user    bool
		want    string
	}{
		{"the main process was conmon", dead, false, ""},
		{"the main process was podman, which has ended", podman, false, ""},
		{"the main process lives", os.Getpid(), false, "no such process"},
		{"no main process is known", 0, false, "no such process"},
		{"a program that is not podman", dead, true, "no such process"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := prepared(t)
			if c.user {
				config.require = "user"
			}
			m := newManager(t)
			t.Setenv("MAINPID", strconv.Itoa(c.mainPID))
			write(t, config.mainPIDFile, fmt.Sprintf("%d\n", dead))
			assertFailure(t, run(config), exitRefused, c.want)
			names, _ := m.got()
			if c.want != "" {
				assertResult(t, config, "error: ")
				if names != nil {
					t.Errorf("sent %v", names)
				}
				return
			}
			assertResult(t, config, "ok\n")
			if !slices.Equal(names, []string{"STOPPING", "BARRIER"}) {
				t.Errorf("sent %v", names)
			}
		})
	}
}

// TestConmonWithoutContainer: a conmon that lives without a container is refused also
// where it is the main process already.
func TestConmonWithoutContainer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root, whom conmon's executable must belong to")
	}
	c := prepared(t)
	m := newManager(t)
	conmon := conmontest.Start(t, conmontest.Options{Below: []string{}, Env: []string{"INVOCATION_ID=" + invocation}})
	c.executables = []string{conmon.Executable}
	t.Setenv("MAINPID", strconv.Itoa(conmon.PID))
	write(t, c.mainPIDFile, fmt.Sprintf("%d\n", conmon.PID))
	if err := run(c); err == nil || !strings.Contains(err.Error(), "has no container") {
		t.Errorf("got %v", err)
	}
	if names, _ := m.got(); names != nil {
		t.Errorf("sent %v", names)
	}
}
