package conmonbridge

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Process is what /proc/PID/stat says of a process (proc_pid_stat(5)).
type Process struct {
	PID  int
	Comm string // at most 15 bytes, chosen by the process itself
	// State is one letter, Z for a zombie.
	State byte
	PPID  int // of its parent, 0 where that is outside this PID namespace
}

// ErrNoProcess says that there is no process with that PID.
var ErrNoProcess = errors.New("no such process")

// ReadProcess reads /proc/PID/stat. The error is ErrNoProcess when no process
// has that PID.
func ReadProcess(pid int) (Process, error) {
	b, err := readProc(pid, "stat", 4096)
	if err != nil {
		return Process{}, err
	}
	p, err := parseStat(b)
	if err != nil {
		return Process{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	return p, nil
}

// parseStat parses the first four fields of proc_pid_stat(5). The second,
// comm, is in parentheses and may hold any byte, parentheses and newlines too.
func parseStat(b []byte) (Process, error) {
	malformed := errors.New("malformed")
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return Process{}, malformed
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	if err != nil || pid <= 0 {
		return Process{}, malformed
	}
	rest := bytes.Fields(b[end+1:])
	if len(rest) < 2 || len(rest[0]) != 1 {
		return Process{}, malformed
	}
	ppid, err := strconv.Atoi(string(rest[1]))
	if err != nil || ppid < 0 {
		return Process{}, malformed
	}
	return Process{PID: pid, Comm: string(b[open+1 : end]), State: rest[0][0], PPID: ppid}, nil
}

// environment is the initial environment of a process (proc_pid_environ(5)). It
// is not split: its user may have made it of six million empty strings.
type environment []byte

func readEnvironment(pid int) (environment, error) {
	// execve(2) allows 6 MiB for arguments and environment together.
	return readProc(pid, "environ", 8<<20)
}

// get returns the value of the first variable of that name, as getenv(3)
// does, "" where there is none.
func (e environment) get(name string) string {
	for v := range nulSeparated(e) {
		if value, ok := bytes.CutPrefix(v, []byte(name)); ok && len(value) > 0 && value[0] == '=' {
			return string(value[1:])
		}
	}
	return ""
}

// nulSeparated yields the strings of a list that NULs separate or end.
func nulSeparated(list []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(list) > 0 {
			var s []byte
			s, list, _ = bytes.Cut(list, []byte{0})
			if !yield(s) {
				return
			}
		}
	}
}

// readCgroup returns a process' control group in the unified hierarchy
// (cgroups(7), /proc/PID/cgroup), "" where there is none.
func readCgroup(pid int) (string, error) {
	b, err := readProc(pid, "cgroup", 1<<20)
	if err != nil {
		return "", err
	}
	return parseCgroup(b), nil
}

func parseCgroup(b []byte) string {
	for line := range bytes.Lines(b) {
		if path, ok := bytes.CutPrefix(line, []byte("0::")); ok {
			return string(bytes.TrimSuffix(path, []byte("\n")))
		}
	}
	return ""
}

// argumentAfter returns what follows an argument of a process
// (proc_pid_cmdline(5)), "" where there is no such argument.
func argumentAfter(pid int, argument string) (string, error) {
	b, err := readProc(pid, "cmdline", 8<<20)
	if err != nil {
		return "", err
	}
	return following(b, argument), nil
}

// following returns the string that follows one in a NUL-separated list, "" where
// there is none.
func following(list []byte, before string) string {
	found := false
	for s := range nulSeparated(list) {
		if found {
			return string(s)
		}
		found = string(s) == before
	}
	return ""
}

// children returns the PIDs of the children of all threads of a process
// (proc_tid_children(5)). A child that ends meanwhile may hide another one.
func children(pid int) ([]int, error) {
	dir := procPath(pid, "task")
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil, procError(pid, err)
	}
	var pids []int
	for _, t := range tasks {
		b, err := readBounded(dir+"/"+t.Name()+"/children", 1<<20)
		if err != nil {
			continue // the thread is gone
		}
		for _, f := range bytes.Fields(b) {
			if child, err := strconv.Atoi(string(f)); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids, nil
}

func procPath(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

func readProc(pid int, name string, limit int) ([]byte, error) {
	b, err := readBounded(procPath(pid, name), limit)
	if err != nil {
		return nil, procError(pid, err)
	}
	return b, nil
}

// procError gives one error, ErrNoProcess, to all that the kernel says of a
// process that is gone: ENOENT from open(2), ESRCH from read(2).
func procError(pid int, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", pid, ErrNoProcess)
	}
	return err
}

// readBounded reads a whole file of at most limit bytes. It does without the
// os package, whose files make the Go runtime start its poller: that would be
// a tenth of what the hook costs every container.
func readBounded(path string, limit int) ([]byte, error) {
	failed := func(err error) ([]byte, error) { return nil, &fs.PathError{Op: "read", Path: path, Err: err} }
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return failed(err)
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return failed(err)
		case n == 0:
			return b, nil
		case len(b)+n > limit:
			return failed(fmt.Errorf("larger than %d bytes", limit))
		}
		b = slices.Grow(b[:len(b)+n], 1)
	}
}
