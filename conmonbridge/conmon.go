package conmonbridge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrNoConmon says that no conmon is above a process.
var ErrNoConmon = errors.New("no conmon above it")

// FindConmon returns the conmon of the container whose first process is pid:
// the nearest ancestor with that name. It is the parent itself but while runc
// still creates the container, when runc stands between the two. The error is
// ErrNoProcess when pid is gone, ErrNoConmon when no ancestor is a conmon.
func FindConmon(pid int) (Process, error) {
	p, err := ReadProcess(pid)
	if err != nil {
		return Process{}, err
	}
	for p.PPID > 1 {
		// An ancestor that ends meanwhile leaves its children to another one;
		// then there is no telling whose container this was.
		if p, err = ReadProcess(p.PPID); err != nil {
			break
		}
		if p.Comm == "conmon" {
			return p, nil
		}
	}
	return Process{}, fmt.Errorf("process %d: %w", pid, ErrNoConmon)
}

// Unit is what a systemd unit told its containers, by their conmon's
// environment.
type Unit struct {
	Name        string // PODMAN_SYSTEMD_UNIT, for messages
	MainPIDFile string // path; "" where the unit only passes the descriptor
	ResultFile  string // path; "" where nobody has to wait for the result

	// InvocationID is that of the unit's start, "" if that is not known.
	InvocationID string
	Verbose      bool // whether the unit asks for each step to be logged

	conmon int  // or whoever told of it
	whole  bool // whether that has the environment that podman had
	podman int  // the process that systemd started, 0 if unknown
	listen int  // descriptor of conmon by LISTEN_FDNAMES, -1 if none
}

// UnitOf reads what the unit of a process, conmon or podman, told its
// containers. The second result is false where that is nothing: no unit of
// ours.
func UnitOf(pid int) (Unit, bool, error) {
	env, err := readEnvironment(pid)
	if err != nil {
		return Unit{}, false, err
	}
	u := Unit{
		Name:         env.get("PODMAN_SYSTEMD_UNIT"),
		MainPIDFile:  env.get(EnvMainPIDFile),
		ResultFile:   env.get(EnvResultFile),
		InvocationID: env.get("INVOCATION_ID"),
		conmon:       pid,
		listen:       listenDescriptor(env),
	}
	// systemd and logins set these, podman itself does not.
	u.whole = u.InvocationID != "" || env.get("LOGNAME") != "" || env.get("USER") != ""
	u.podman, _ = strconv.Atoi(env.get("SYSTEMD_EXEC_PID"))
	ours := u.MainPIDFile != "" || u.listen >= 0
	u.Verbose = ours && IsVerbose(env.get(EnvVerbose))
	return u, ours, nil
}

// UnitOfConmon is UnitOf for a conmon. podman before 4.8 keeps its environment
// from conmon; then it is that of another process in conmon's control group
// (cgroups(7)), where that podman is, too.
func UnitOfConmon(pid int) (Unit, bool, error) {
	u, ours, err := UnitOf(pid)
	if err != nil || ours || u.whole {
		return u, ours, err
	}
	cgroup, err := readCgroup(pid)
	if err != nil || cgroup == "" || cgroup == "/" {
		return u, false, err
	}
	b, err := readBounded("/sys/fs/cgroup"+cgroup+"/cgroup.procs", 1<<20)
	if err != nil {
		return u, false, nil // another hierarchy: nobody is beside it
	}
	for _, field := range bytes.Fields(b) {
		beside, err := strconv.Atoi(string(field))
		if err != nil || beside == pid {
			continue
		}
		if u, ours, err := UnitOf(beside); err == nil && ours {
			return u, true, nil
		}
	}
	return u, false, nil
}

// UnitAbove is UnitOf for the nearest ancestor of this process that tells of
// a unit: for when the container is gone and its conmon cannot be found.
func UnitAbove() (Unit, bool) {
	for _, pid := range ancestors() {
		if u, ours, err := UnitOf(pid); err == nil && ours {
			return u, true
		}
	}
	return Unit{}, false
}

// ancestors returns the PIDs above this process, nearest first, without PID 1.
func ancestors() []int {
	var pids []int
	for pid := os.Getppid(); pid > 1; {
		pids = append(pids, pid)
		p, err := ReadProcess(pid)
		if err != nil {
			break
		}
		pid = p.PPID
	}
	return pids
}

// listenDescriptor returns the number of the descriptor that sd_listen_fds(3)
// calls DescriptorName, -1 where there is none.
func listenDescriptor(env environment) int {
	const listenFDsStart = 3
	n, err := strconv.Atoi(env.get("LISTEN_FDS"))
	if err != nil {
		return -1
	}
	for i, name := range strings.Split(env.get("LISTEN_FDNAMES"), ":") {
		if name == DescriptorName && i < n {
			return listenFDsStart + i
		}
	}
	return -1
}

func (u Unit) String() string {
	switch {
	case u.Name != "":
		return u.Name
	case u.MainPIDFile != "": // podman names Quadlet's units alone
		return filepath.Base(filepath.Dir(u.MainPIDFile))
	}
	return "unit of process " + strconv.Itoa(u.conmon)
}
