package conmonbridge

import (
	"errors"
	"fmt"
	"slices"

	"oci-mainpid-hook/internal/proc"
)

// ErrNoConmon says that no conmon is above a process.
var ErrNoConmon = errors.New("no conmon above it")

// FindConmon returns the conmon of the container whose first process is pid: the
// nearest ancestor with such a name. That is the parent, except while runc creates
// the container: then runc stands between the two. The error is proc.ErrNoProcess
// when pid has gone, ErrNoConmon when no ancestor is a conmon.
func FindConmon(pid int) (proc.Process, error) {
	p, err := proc.Read(pid)
	if err != nil {
		return proc.Process{}, err
	}
	for p.PPID > 1 {
		// When an ancestor ends, its children get another parent, so nothing tells
		// any more whose container this was.
		if p, err = proc.Read(p.PPID); err != nil {
			break
		}
		if p.NamedConmon() {
			return p, nil
		}
	}
	return proc.Process{}, fmt.Errorf("process %d: %w", pid, ErrNoConmon)
}

// FindConmonOf returns the conmon of the container with that ID. It is for a container
// whose first process has gone, so that FindConmon has no way to its conmon. The error
// is ErrNoConmon when no process claims to be it.
func FindConmonOf(containerID string) (proc.Process, error) {
	pids, err := proc.PIDs()
	if err != nil {
		return proc.Process{}, err
	}
	for _, pid := range slices.Backward(pids) { // it is young
		p, ok := conmonOf(pid, containerID)
		if !ok {
			continue
		}
		// A child that conmon forks for podman's cleanup looks like it until it
		// executes podman.
		if parent, ok := conmonOf(p.PPID, containerID); ok {
			p = parent
		}
		return p, nil
	}
	return proc.Process{}, fmt.Errorf("its first process has ended: %w", ErrNoConmon)
}

// conmonOf returns the process of that PID, and whether it claims to be the conmon of
// the container.
func conmonOf(pid int, containerID string) (proc.Process, bool) {
	p, err := proc.Read(pid)
	if err != nil || !p.NamedConmon() {
		return p, false
	}
	line, _, err := ReadCommandLine(pid, proc.MaxStrings)
	return p, err == nil && line.Container.ID == containerID && (line.Session == "" || line.Session == containerID)
}

// Executables is where podman looks for conmon (conmon_path in
// containers.conf(5)). A process executes conmon if it executes the same file as
// one of these, which must belong to root and be writable by nobody else. conmon-v3
// is where its packages have it; podman looks there if containers.conf(5) says so.
var Executables = []string{
	"/usr/libexec/podman/conmon",
	"/usr/local/libexec/podman/conmon",
	"/usr/local/lib/podman/conmon",
	"/usr/bin/conmon",
	"/usr/sbin/conmon",
	"/usr/local/bin/conmon",
	"/usr/local/sbin/conmon",
	"/run/current-system/sw/bin/conmon",
	"/usr/bin/conmon-v3",
}

// CommandLine is what podman says on the command line of conmon(8). The user whom
// conmon runs as can make it say anything that its fields may hold.
type CommandLine struct {
	Container Container
	// Session is the container's ID, or for a podman-exec(1), which has a conmon of
	// its own, another ID.
	Session string
	// PIDFile is where conmon writes its own PID.
	PIDFile string
}

// ReadCommandLine returns the command line of a conmon and its size, which may be no
// larger than limit, in bytes.
func ReadCommandLine(conmon int, limit int64) (line CommandLine, size int, err error) {
	arguments, err := proc.Arguments(conmon, limit)
	if err != nil {
		return CommandLine{}, 0, err
	}
	return parseCommandLine(arguments), len(arguments), nil
}

func parseCommandLine(arguments proc.Strings) CommandLine {
	var c CommandLine
	option := "the program's name, which is no option"
	for argument := range arguments.All() {
		value := string(argument)
		switch option {
		case "-c":
			c.Container.ID = valid(value, isContainerID)
		case "-n":
			c.Container.Name = valid(value, isContainerName)
		case "-u":
			c.Session = valid(value, isContainerID)
		case "--conmon-pidfile":
			c.PIDFile = value
		}
		if value == "--exit-command" { // what follows is for podman
			break
		}
		option = value
	}
	return c
}

// valid returns s, or "" if it is not what it has to be.
func valid(s string, is func(string) bool) string {
	if !is(s) {
		return ""
	}
	return s
}
