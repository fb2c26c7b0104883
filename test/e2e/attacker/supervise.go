package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	notifyMainPID = "/usr/libexec/oci-mainpid/notify-mainpid"
	// reports is where supervise and who attacks meet: UNIT.report, UNIT.hold and
	// UNIT.held.
	reports = "/run/attack"
)

// holds are the moments at which the helper can be held: a system call, and how
// often it comes.
var holds = map[string]struct{ number, count uint64 }{
	// The PID was read, but it is not known yet whose it is. The first is podman.
	"before-check": {unix.SYS_PIDFD_OPEN, 2},
	// It was verified, but systemd does not know.
	"before-send": {unix.SYS_SENDMSG, 1},
}

// supervise runs notify-mainpid with its arguments, writes the PID, exit status,
// largest resident set in KiB and time in ms into UNIT.report, and returns the exit status.
//
// Where a file UNIT.hold names one of holds, the helper is held there, with a
// file UNIT.held to show for it, until the former is gone.
func supervise(args []string) int {
	unit := "unknown"
	for _, arg := range args {
		if name, ok := strings.CutPrefix(arg, "--unit="); ok {
			unit = name
		}
	}
	name := filepath.Join(reports, unit)
	// systemd sends it to the helper too. (One that is ignored would be there, too.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM)
	cmd := exec.Command(notifyMainPID, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	start := time.Now()
	end, err := superviseTraced(cmd, name)
	if err == nil {
		err = os.WriteFile(name+".report", fmt.Appendf(nil, "%d %d %d %d\n",
			cmd.Process.Pid, end.status, end.usage.Maxrss, time.Since(start).Milliseconds()), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacker:", err)
		return 1
	}
	return end.status
}

func superviseTraced(cmd *exec.Cmd, name string) (ended, error) {
	hold, err := os.ReadFile(name + ".hold")
	if errors.Is(err, fs.ErrNotExist) {
		err = cmd.Run()
		if cmd.ProcessState == nil {
			return ended{}, err
		}
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		e := ended{status.ExitStatus(), *cmd.ProcessState.SysUsage().(*syscall.Rusage)}
		if status.Signaled() {
			e.status = 128 + int(status.Signal())
		}
		return e, nil
	}
	at, ok := holds[strings.TrimSpace(string(hold))]
	if !ok {
		return ended{}, fmt.Errorf("%s.hold: %q: %w", name, hold, err)
	}
	return trace(cmd, func(call systemCall) (bool, error) {
		if call.number != at.number {
			return false, nil
		}
		if at.count--; at.count > 0 {
			return false, nil
		}
		if err := os.WriteFile(name+".held", nil, 0o644); err != nil {
			return true, err
		}
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(name + ".hold"); err != nil {
				break
			}
		}
		return true, nil
	})
}
