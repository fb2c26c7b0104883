// Package census finds the conmon(8) of every podman container that runs, and
// which unit it belongs to.
//
// It asks no podman. One that root starts as the user needs his session, makes
// him a pause process in the control group that it was started in, waits for the
// locks of his storage and runs what his configuration names; and what it would
// say of conmon is in a file: conmon.pid, whose path conmon's own command line
// has. So this reads /proc and that file.
//
// The command line, the environment and the file are the user's to forge, but
// only for his own units: a conmon counts for the units of the user it runs as.
package census

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/regular"
)

// Conmon is a conmon that runs. Its texts are as its user wrote them.
type Conmon struct {
	PID, UID int
	// ContainerID and Container are the container's, Container is its name.
	ContainerID, Container string
	// Unit is the unit that started it and InvocationID which start of it that
	// was; empty where that is not known, as with podman before 4.8, which keeps
	// its environment from conmon.
	Unit, InvocationID string
	// Cgroup is its control group, cgroups(7).
	Cgroup string
	// Genuine says that it executes what conmon is here, by conmonbridge.
	Genuine bool
	// Recorded is the PID that podman wrote down, 0 where that is not known.
	Recorded int
	// Start is when it started, in ticks of the kernel's since boot.
	Start uint64
}

// Bounds of what is read of one process.
const (
	maxText = 256 << 10
	// A process can make its own command line or environment a memory that
	// never answers, userfaultfd(2).
	patience = 2 * time.Second
)

// Take returns every conmon in the file system proc, which is "/proc", in the
// order in which they started. A process that ends meanwhile is left out, and so
// is one that keeps the reader waiting.
func Take(proc string) ([]Conmon, error) {
	dir, err := os.Open(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Conmon
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		start, ok := conmonStart(filepath.Join(proc, name, "stat"))
		if !ok {
			continue
		}
		answer := make(chan Conmon, 1)
		go func() {
			defer close(answer)
			if c, err := read(filepath.Join(proc, name)); err == nil {
				answer <- c
			}
		}()
		select {
		case c, ok := <-answer:
			if ok {
				c.PID, c.Start = pid, start
				found = append(found, c)
			}
		case <-time.After(patience):
		}
	}
	slices.SortFunc(found, func(a, b Conmon) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.PID, b.PID))
	})
	return found, nil
}

// conmonStart returns when a process started, if it calls itself conmon and is
// no zombie: proc_pid_stat(5).
func conmonStart(path string) (uint64, bool) {
	b, err := readBounded(path, 4096)
	if err != nil {
		return 0, false
	}
	text := string(b)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open || text[open+1:end] != "conmon" {
		return 0, false
	}
	const state, starttime = 0, 19 // the third field and the 22nd
	fields := strings.Fields(text[end+1:])
	if len(fields) <= starttime || fields[state] == "Z" || fields[state] == "X" {
		return 0, false
	}
	start, err := strconv.ParseUint(fields[starttime], 10, 64)
	return start, err == nil
}

// read reads what a conmon says of itself.
func read(dir string) (Conmon, error) {
	var c Conmon
	status, err := readBounded(filepath.Join(dir, "status"), 64<<10)
	if err != nil {
		return c, err
	}
	if c.UID, err = uid(string(status)); err != nil {
		return c, err
	}
	c.Genuine = genuine(filepath.Join(dir, "exe"))
	if c.Cgroup, err = cgroup(filepath.Join(dir, "cgroup")); err != nil {
		return c, err
	}
	cmdline, err := readBounded(filepath.Join(dir, "cmdline"), maxText)
	if err != nil {
		return c, err
	}
	environ, err := readBounded(filepath.Join(dir, "environ"), maxText)
	if err != nil {
		return c, err
	}
	env := func(name string) string {
		for _, v := range strings.Split(string(environ), "\x00") {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		return ""
	}
	c.InvocationID = env("INVOCATION_ID")
	// Quadlet sets the former; a unit that a person wrote has only the latter,
	// /run/oci-mainpid/UNIT/mainpid.
	if c.Unit = env("PODMAN_SYSTEMD_UNIT"); c.Unit == "" {
		if file := env(conmonbridge.EnvMainPIDFile); file != "" {
			c.Unit = filepath.Base(filepath.Dir(file))
		}
	}
	id, pidfile := "", ""
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	for i := 1; i+1 < len(args) && args[i] != "--exit-command"; i++ {
		switch args[i] {
		case "-c":
			c.ContainerID = args[i+1]
		case "-n":
			c.Container = args[i+1]
		case "--conmon-pidfile":
			pidfile = args[i+1]
		case "-u":
			id = args[i+1]
		}
	}
	if id != c.ContainerID {
		return c, errors.New("is of a podman exec")
	}
	c.Recorded = recorded(c.UID, pidfile)
	return c, nil
}

// uid returns the UID of a process of which all UIDs are the same,
// proc_pid_status(5).
func uid(status string) (int, error) {
	for line := range strings.Lines(status) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			ids := slices.Compact(strings.Fields(ids))
			if len(ids) == 1 {
				return strconv.Atoi(ids[0])
			}
		}
	}
	return 0, errors.New("has no UID, or several")
}

// cgroup returns the control group of a process in the version 2 hierarchy.
func cgroup(path string) (string, error) {
	b, err := readBounded(path, 64<<10)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if group, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(group, "\n"), nil
		}
	}
	return "", nil
}

// genuine reports whether a process executes conmon: root's, not just any
// program of that name.
func genuine(exe string) bool {
	var st, conmon unix.Stat_t
	if unix.Stat(exe, &st) != nil || st.Uid != 0 || st.Mode&0o022 != 0 {
		return false
	}
	return slices.ContainsFunc(conmonbridge.Executables, func(path string) bool {
		return unix.Stat(path, &conmon) == nil && conmon.Dev == st.Dev && conmon.Ino == st.Ino
	})
}

// recorded reads a file that podman had conmon write. Podman keeps it in the
// user's runtime directory unless his configuration says otherwise; files
// elsewhere are not opened.
func recorded(uid int, path string) int {
	return ReadPID("/run/user/"+strconv.Itoa(uid), path)
}

// ReadPID reads a PID that the user may have written into a file below dir, 0
// where there is none.
func ReadPID(dir, path string) int {
	b, err := regular.ReadBelow(dir, path, 32)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// readBounded reads the first bytes of a file in /proc, at most limit.
func readBounded(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, limit)
	have := 0
	for have < limit {
		n, err := f.Read(b[have:])
		have += n
		if n == 0 || err != nil {
			break
		}
	}
	return b[:have], nil
}

// Start is a start of a unit.
type Start struct {
	Unit         string
	UID          int
	InvocationID string
	// MainPID is what systemd has, Told what the hook told in the mainpid file,
	// ControlGroup the unit's.
	MainPID, Told int
	ControlGroup  string
	// Kube says that the service container's conmon is the unit's.
	Kube bool
}

// Of returns the conmons that a unit started: those of this start, by the
// invocation ID, or where conmon has none, by its PID or control group; and those
// that are left over from earlier ones.
func (s Start) Of(all []Conmon) (current, leftOver []Conmon) {
	for _, c := range all {
		switch {
		case c.UID != s.UID:
		case c.InvocationID != "" && c.InvocationID == s.InvocationID,
			c.InvocationID == "" && (c.PID == s.MainPID || c.PID == s.Told || s.contains(c.Cgroup)):
			current = append(current, c)
		case c.Unit == s.Unit:
			leftOver = append(leftOver, c)
		}
	}
	return current, leftOver
}

func (s Start) contains(cgroup string) bool {
	return s.ControlGroup != "" && strings.HasPrefix(cgroup+"/", s.ControlGroup+"/")
}

// Main returns which of the conmons of this start is the unit's: the one that
// systemd has as the main PID if it is among them, or else the service
// container's of a kube unit, or the first.
func (s Start) Main(current []Conmon) (Conmon, bool) {
	for _, c := range current {
		if c.PID == s.MainPID {
			return c, true
		}
	}
	for _, c := range current {
		if !s.Kube || strings.HasSuffix(c.Container, "-service") {
			return c, true
		}
	}
	return Conmon{}, false
}

// Verify reports whether a conmon is what the unit's main process must be, by
// the rules of notify-mainpid(8). The error says what it is not.
func (s Start) Verify(c Conmon) error {
	claim, err := conmonbridge.NewClaim(c.PID)
	if err != nil {
		return err
	}
	defer claim.Close()
	want := conmonbridge.Expected{
		Requirement: conmonbridge.RequireConmon, UID: s.UID,
		InvocationID: s.InvocationID, Executables: conmonbridge.Executables,
	}
	switch {
	case c.InvocationID == "" && !c.Genuine:
		return fmt.Errorf("process %d: does not execute conmon", c.PID)
	case c.InvocationID == "":
		// What notify-mainpid went by, podman's control group, is over with podman.
		want.Requirement = conmonbridge.RequireUser
	case s.Kube:
		want.Requirement = conmonbridge.RequireKube
	}
	done := make(chan error, 1)
	go func() { done <- claim.Verify(want) }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("process %d: its environment cannot be read, it keeps the reader waiting", c.PID)
	}
}
