package main

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// systemCall is one that a thread is about to make.
type systemCall struct {
	thread int
	number uint64
	args   [6]uint64
}

// ended says how a process ended.
type ended struct {
	status int // 128 and the number of the signal that ended it, as for a shell
	usage  syscall.Rusage
}

// trace runs a command under ptrace(2), and calls before with each system call
// of its threads until that returns true.
func trace(cmd *exec.Cmd, before func(systemCall) (enough bool, err error)) (e ended, err error) {
	// A tracer is a thread, not a process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The process stops when it has executed the command.
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return e, err
	}
	first, enough := true, false
	for {
		var status syscall.WaitStatus
		thread, err := syscall.Wait4(-1, &status, unix.WALL, &e.usage)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return e, fmt.Errorf("wait for %s: %w", cmd.Path, err)
		}
		if !status.Stopped() {
			if thread != cmd.Process.Pid {
				continue
			}
			e.status = status.ExitStatus()
			if status.Signaled() {
				e.status = 128 + int(status.Signal())
			}
			return e, nil
		}
		if first {
			first = false
			const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
			if err := unix.PtraceSetOptions(thread, options); err != nil {
				return e, fmt.Errorf("options of ptrace: %w", err)
			}
		}
		signal := 0
		switch s := status.StopSignal(); s {
		case syscall.SIGTRAP | 0x80: // PTRACE_O_TRACESYSGOOD
			call, entered, err := readSystemCall(thread)
			if errors.Is(err, unix.ESRCH) {
				continue // killed meanwhile, by the end of another thread
			}
			if err == nil && entered && !enough {
				enough, err = before(call)
			}
			if err != nil {
				return e, err
			}
		case syscall.SIGTRAP, syscall.SIGSTOP: // of a new thread
		default:
			signal = int(s)
		}
		if enough {
			err = unix.PtraceCont(thread, signal)
		} else {
			err = unix.PtraceSyscall(thread, signal)
		}
		if err != nil && err != unix.ESRCH {
			return e, fmt.Errorf("continue thread %d: %w", thread, err)
		}
	}
}

// readSystemCall returns the system call at which a thread has stopped; the
// second result is false where it returns from it.
func readSystemCall(thread int) (systemCall, bool, error) {
	// struct ptrace_syscall_info in ptrace(2).
	var info struct {
		op                 uint8
		_                  [3]uint8
		arch               uint32
		instruction, stack uint64
		number             uint64
		args               [6]uint64
		_                  [2]uint64
	}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(thread), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return systemCall{}, false, fmt.Errorf("system call of thread %d: %w", thread, errno)
	}
	return systemCall{thread, info.number, info.args}, info.op == unix.PTRACE_SYSCALL_INFO_ENTRY, nil
}
