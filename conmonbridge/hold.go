package conmonbridge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Hold keeps the PID from being given to another process until the claim is
// closed, even when the process ends: for a systemd that goes by the PID alone.
// Nobody can reap a process before its tracer has (ptrace(2)). The process runs
// on, but a signal to it waits as long.
func (c *Claim) Hold() error {
	seized := make(chan error)
	release, released := make(chan struct{}), make(chan struct{})
	go onThread(func() {
		err := seize(c.PID)
		seized <- err
		if err == nil {
			<-release
		}
		close(released)
	})
	if err := <-seized; err != nil {
		return fmt.Errorf("process %d: keep its PID from being reused: %w", c.PID, err)
	}
	c.release = func() {
		close(release)
		<-released
	}
	// If the PID was another's before, it is now.
	return c.Alive()
}

// onThread calls f on a thread that ends with it: a tracer is a thread, and what
// it traces is free when it ends.
func onThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	// The first thread never ends. While this goroutine has it, another one
	// cannot.
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

// seize makes this thread the tracer of a process (PTRACE_SEIZE in ptrace(2)).
func seize(pid int) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.EPERM:
		// Where nobody may trace, not even root, the user cannot either.
		if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && string(bytes.TrimSpace(scope)) == "3" {
			return nil
		}
		return errors.New("is traced by another process, or the kernel's policy forbids tracing")
	case unix.ESRCH:
		return ErrNoProcess
	}
	return fmt.Errorf("PTRACE_SEIZE: %w", errno)
}
