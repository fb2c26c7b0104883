package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A process is a process of the host. Its start time tells it apart from a later
// process with the same PID.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since the host's boot, proc_pid_stat(5)
}

// stat is what this package reads of proc_pid_stat(5).
type stat struct {
	comm  string
	state byte
	ppid  int
	start uint64
}

// parseStat parses the contents of /proc/PID/stat.
func parseStat(line string) (stat, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return stat{}, fmt.Errorf("no command in %q", line)
	}
	// The fields after the command: state is field 3 of the manual page.
	fields := strings.Fields(line[end+1:])
	if len(fields) < 20 {
		return stat{}, fmt.Errorf("too few fields in %q", line)
	}
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		return stat{}, fmt.Errorf("parent: %w", err)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("start time: %w", err)
	}
	return stat{comm: line[open+1 : end], state: fields[0][0], ppid: ppid, start: start}, nil
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(data))
}

// identify returns the process that has the PID now.
func identify(pid int) (process, error) {
	st, err := readStat(pid)
	if err != nil {
		return process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return process{PID: pid, Start: st.start}, nil
}

// alive reports whether the process runs; a zombie does not.
func (p process) alive() bool {
	st, err := readStat(p.PID)
	return p.PID > 0 && err == nil && st.start == p.Start && st.state != 'Z' && st.state != 'X'
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
	stats, err := filepath.Glob("/proc/[1-9]*/stat")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended since
		}
		st, err := parseStat(string(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if st.ppid != p.PID {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		found = append(found, process{PID: pid, Start: st.start})
	}
	return found, nil
}

// isInit reports whether the process is PID 1 of a PID namespace of its own.
func (p process) isInit() bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte("NSpid:")); ok {
			pids := bytes.Fields(rest)
			return len(pids) > 1 && string(pids[len(pids)-1]) == "1"
		}
	}
	return false
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
