// Package proc reads what proc(5) says of processes. Every read is bounded in
// size, and none asks a file system that a user implements (fuse(4)).
//
// What a process may choose itself, its name, arguments and environment, is as
// the process wrote it.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/regular"
)

// MaxPID is the kernel's PID_MAX_LIMIT on 64-bit machines: PIDs are below it,
// whatever /proc/sys/kernel/pid_max says (proc_sys_kernel(5)).
const MaxPID = 4 * 1024 * 1024

// MaxStrings is more than the 6 MiB that execve(2) allows for the arguments and
// the environment of a process together, in bytes.
const MaxStrings = 8 << 20

// ErrNoProcess says that there is no process with that PID.
var ErrNoProcess = errors.New("no such process")

// Process is what /proc/PID/stat says of a process (proc_pid_stat(5)).
type Process struct {
	PID  int
	Comm string // at most 15 bytes, chosen by the process itself
	// State is one letter, Z for a zombie.
	State byte
	PPID  int    // of its parent, 0 where that is outside this PID namespace
	Start uint64 // when it started, in ticks since boot, 0 if unknown
}

// Ended reports whether the process has ended and waits to be reaped.
func (p Process) Ended() bool { return p.State == 'Z' || p.State == 'X' }

// NamedConmon reports whether the process has the name of a conmon. conmon-v3 is what
// comes after conmon 2.
func (p Process) NamedConmon() bool { return p.Comm == "conmon" || p.Comm == "conmon-v3" }

// Read reads /proc/PID/stat. The error is ErrNoProcess when no process has that
// PID.
func Read(pid int) (Process, error) {
	b, err := read(pid, "stat", 4096)
	if err != nil {
		return Process{}, err
	}
	p, err := parseStat(b)
	if err != nil {
		return Process{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	return p, nil
}

// parseStat parses proc_pid_stat(5). The second field, comm, is in parentheses
// and may hold any byte, parentheses and newlines too.
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
	const state, ppid, starttime = 0, 1, 19 // the fields 3, 4 and 22
	rest := bytes.Fields(b[end+1:])
	if len(rest) <= ppid || len(rest[state]) != 1 {
		return Process{}, malformed
	}
	p := Process{PID: pid, Comm: string(b[open+1 : end]), State: rest[state][0]}
	if p.PPID, err = strconv.Atoi(string(rest[ppid])); err != nil || p.PPID < 0 {
		return Process{}, malformed
	}
	if len(rest) > starttime {
		p.Start, _ = strconv.ParseUint(string(rest[starttime]), 10, 64)
	}
	return p, nil
}

// PIDs returns the PIDs of all processes, in rising order.
func PIDs() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// Ancestors returns the PIDs above this process, nearest first, without PID 1.
func Ancestors() []int {
	var pids []int
	for pid := os.Getppid(); pid > 1; {
		pids = append(pids, pid)
		p, err := Read(pid)
		if err != nil {
			break
		}
		pid = p.PPID
	}
	return pids
}

// Status is what /proc/PID/status says of a process (proc_pid_status(5)).
type Status struct {
	// UIDs are the real, effective, saved and file system UID.
	UIDs []string
	// PIDs are those that the process has, from this PID namespace down to its
	// own: more than one if it is in another one, such as a container's. A kernel
	// without PID namespaces says none.
	PIDs []string
}

// ReadStatus reads /proc/PID/status.
func ReadStatus(pid int) (Status, error) {
	b, err := read(pid, "status", 1<<20)
	if err != nil {
		return Status{}, err
	}
	s := Status{statusField(b, "Uid"), statusField(b, "NSpid")}
	if len(s.UIDs) != 4 {
		return Status{}, fmt.Errorf("no UIDs in /proc/%d/status", pid)
	}
	return s, nil
}

// UID returns the user whom the process runs as, and false if its UIDs differ.
func (s Status) UID() (int, bool) {
	uid, err := strconv.Atoi(s.UIDs[0])
	return uid, err == nil && len(slices.Compact(slices.Clone(s.UIDs))) == 1
}

// Contained reports whether the process is in another PID namespace.
func (s Status) Contained() bool { return len(s.PIDs) > 1 }

// statusField returns the values of a field of proc_pid_status(5).
func statusField(status []byte, name string) []string {
	for line := range bytes.Lines(status) {
		if values, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return strings.Fields(string(values))
		}
	}
	return nil
}

// File tells one file from another, and who may change it.
type File struct {
	major, minor uint32
	inode        uint64
	UID          uint32
	Mode         uint16
	// Links is how many names the file has: 0 once it was removed or replaced.
	Links uint32
}

// Same reports whether both are one file.
func (f File) Same(other File) bool {
	return f.major == other.major && f.minor == other.minor && f.inode == other.inode
}

// Executable returns the file that a process executes. It is what the kernel
// knows: the file system, which may be one of a user's that never answers
// (fuse(4)), is not asked.
func Executable(pid int) (File, error) {
	f, err := statx(procPath(pid, "exe"), unix.AT_STATX_DONT_SYNC)
	if err != nil {
		return f, procError(pid, err)
	}
	return f, nil
}

// ExecutablePath returns the path of the file that a process executes, as the kernel
// says it: with " (deleted)" behind it once the file was removed or replaced.
func ExecutablePath(pid int) (string, error) {
	path, err := os.Readlink(procPath(pid, "exe"))
	if err != nil {
		return "", procError(pid, err)
	}
	return path, nil
}

// Identify returns the file at a path that is root's.
func Identify(path string) (File, error) { return statx(path, 0) }

func statx(path string, flags int) (File, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_INO|unix.STATX_UID|unix.STATX_MODE|unix.STATX_NLINK, &st); err != nil {
		return File{}, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return File{st.Dev_major, st.Dev_minor, st.Ino, st.Uid, st.Mode, st.Nlink}, nil
}

// Strings is a list of strings, each ended by a NUL, as the kernel keeps it. It is
// not split: a user may have made it of six million empty strings.
type Strings []byte

// Environ returns the initial environment of a process (proc_pid_environ(5)),
// which may be no larger than limit, in bytes.
func Environ(pid int, limit int64) (Strings, error) {
	b, err := read(pid, "environ", limit)
	return b, err
}

// Arguments returns the command line of a process (proc_pid_cmdline(5)), which may
// be no larger than limit, in bytes.
func Arguments(pid int, limit int64) (Strings, error) {
	b, err := read(pid, "cmdline", limit)
	return b, err
}

// Get returns the value of the first variable of that name, as getenv(3) does, ""
// where there is none.
func (l Strings) Get(name string) string {
	for v := range l.All() {
		if value, ok := bytes.CutPrefix(v, []byte(name)); ok && len(value) > 0 && value[0] == '=' {
			return string(value[1:])
		}
	}
	return ""
}

// All yields the strings.
func (l Strings) All() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(l) > 0 {
			var s []byte
			s, l, _ = bytes.Cut(l, []byte{0})
			if !yield(s) {
				return
			}
		}
	}
}

// Cgroup returns the control group of a process in the unified hierarchy
// (cgroups(7), /proc/PID/cgroup), "" where there is none.
func Cgroup(pid int) (string, error) {
	b, err := read(pid, "cgroup", 1<<20)
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

// InCgroup returns the PIDs of the processes in a control group, none where that
// is not known: in another hierarchy than the unified one.
func InCgroup(path string) []int {
	b, err := regular.Read("/sys/fs/cgroup"+path+"/cgroup.procs", 1<<20)
	if err != nil {
		return nil
	}
	return numbers(b)
}

// Children returns the PIDs of the children of all threads of a process.
//
// A child that ends while the kernel makes the list may hide another one
// (proc_tid_children(5)). It is in that list, and in no later one, so a list that comes
// twice is complete.
func Children(pid int) ([]int, error) {
	before, err := listChildren(pid)
	for range 100 {
		if err != nil {
			return nil, err
		}
		var pids []int
		if pids, err = listChildren(pid); slices.Equal(pids, before) {
			break
		}
		before = pids
	}
	return before, err
}

func listChildren(pid int) ([]int, error) {
	dir := procPath(pid, "task")
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil, procError(pid, err)
	}
	var pids []int
	for _, t := range tasks {
		b, err := regular.Read(dir+"/"+t.Name()+"/children", 1<<20)
		if err != nil {
			continue // the thread is gone
		}
		pids = append(pids, numbers(b)...)
	}
	return pids, nil
}

// numbers returns the numbers that white space separates.
func numbers(b []byte) []int {
	var all []int
	for _, f := range bytes.Fields(b) {
		if n, err := strconv.Atoi(string(f)); err == nil {
			all = append(all, n)
		}
	}
	return all
}

// FindDescriptor returns the number of the descriptor of a process whose link in
// proc_pid_fd(5) names path, and false where there is none.
func FindDescriptor(pid int, path string) (int, bool) {
	dir := procPath(pid, "fd")
	d, err := os.Open(dir)
	if err != nil {
		return 0, false
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0, false
	}
	for _, name := range names {
		if link, err := os.Readlink(dir + "/" + name); err == nil && link == path {
			fd, err := strconv.Atoi(name)
			return fd, err == nil
		}
	}
	return 0, false
}

// InitialUserNamespace is the user namespace of the machine, in which UID 0 is
// root: the kernel gives it this number always (PROC_USER_INIT_INO).
const InitialUserNamespace = "user:[4026531837]"

// UserNamespace returns a name for the user namespace of a process
// (user_namespaces(7)), the same for two processes in one.
func UserNamespace(pid int) (string, error) {
	link, err := os.Readlink(procPath(pid, "ns/user"))
	if err != nil {
		return "", procError(pid, err)
	}
	return link, nil
}

func procPath(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

func read(pid int, name string, limit int64) ([]byte, error) {
	b, err := regular.Read(procPath(pid, name), limit)
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
