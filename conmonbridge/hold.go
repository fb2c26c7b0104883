package conmonbridge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/proc"
)

// Hold keeps the PID from being reused until the claim is closed, also when the
// process ends: systemd before 257, and Linux before 6.9, go by the PID alone. Hold
// makes this process the tracer, and nobody can reap a process before its tracer
// has (ptrace(2)). The process runs on, but signals to it wait until Close.
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
	// The PID may have been reused before seize. A live pidfd shows that it was not.
	return c.Alive()
}

// onThread calls f on a thread that ends when f returns. The tracer of a process is
// a thread, and the process is free when that thread ends.
func onThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	// This is the first thread, which never ends. While this goroutine is locked to
	// it, the next one gets another.
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
		// Nobody may trace, not even root (Yama's ptrace_scope 3): go on without.
		if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && string(bytes.TrimSpace(scope)) == "3" {
			return nil
		}
		return errors.New("is traced by another process, or the kernel's policy forbids tracing")
	case unix.ESRCH:
		return proc.ErrNoProcess
	}
	return fmt.Errorf("PTRACE_SEIZE: %w", errno)
}
