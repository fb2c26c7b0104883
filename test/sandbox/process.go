package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/proc"
)

// A process is a process of the host. Its start time tells it apart from a later
// process with the same PID.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since the host's boot, proc_pid_stat(5)
}

// identify returns the process that has the PID now.
func identify(pid int) (process, error) {
	p, err := proc.Read(pid)
	if err != nil {
		return process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return process{PID: pid, Start: p.Start}, nil
}

// alive reports whether the process runs; a zombie does not.
func (p process) alive() bool {
	now, err := proc.Read(p.PID)
	return p.PID > 0 && err == nil && now.Start == p.Start && !now.Ended()
}

// open returns a pidfd_open(2) descriptor of the process, or ESRCH.
func (p process) open() (int, error) {
	if p.PID <= 0 {
		return -1, unix.ESRCH
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return -1, err
	}
	if !p.alive() {
		unix.Close(fd)
		return -1, unix.ESRCH
	}
	return fd, nil
}

// signal sends a signal to the process, and never to a later one with its PID. It
// is no error that the process has ended.
func (p process) signal(sig unix.Signal) error {
	fd, err := p.open()
	if err == nil {
		defer unix.Close(fd)
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send signal %d to process %d: %w", int(sig), p.PID, err)
	}
	return nil
}

// wait waits until the process has ended, or returns the context's error.
func (p process) wait(ctx context.Context) error {
	fd, err := p.open()
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	for {
		// Short, because poll(2) does not return when the context ends.
		const milliseconds = 50
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, milliseconds)
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// children returns the processes whose parent is p.
func (p process) children() ([]process, error) {
	if !p.alive() {
		return nil, nil
	}
	pids, err := proc.Children(p.PID)
	if errors.Is(err, proc.ErrNoProcess) {
		return nil, nil
	}
	var found []process
	for _, pid := range pids {
		// One that has ended since has another parent or none.
		if child, err := proc.Read(pid); err == nil && child.PPID == p.PID {
			found = append(found, process{PID: pid, Start: child.Start})
		}
	}
	return found, err
}

// runsSystemd reports whether the process is PID 1 of a PID namespace of its own, and
// has executed systemd.
func (p process) runsSystemd() bool {
	now, err := proc.Read(p.PID)
	if err != nil || now.Comm != "systemd" {
		return false
	}
	status, err := proc.ReadStatus(p.PID)
	return err == nil && status.Contained() && status.PIDs[len(status.PIDs)-1] == "1"
}

// pause waits for d. If the context ends first, pause returns its error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
