package conmonbridge

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/proc"
)

// Destination is where a systemd unit wants the PID of its conmon delivered. The
// unit says so in the environment that conmon inherits.
type Destination struct {
	Unit        string // PODMAN_SYSTEMD_UNIT, for messages
	MainPIDFile string // path; "" where the unit only passes the descriptor
	ResultFile  string // path; "" where nobody has to wait for the result

	// InvocationID is that of the unit's start, "" if that is not known.
	InvocationID string
	Verbose      bool // whether the unit asks for each step to be logged

	source             int  // PID of the process whose environment this is: conmon, or podman
	hasUnitEnvironment bool // whether that process has what systemd set for the unit
	podman             int  // PID of the process that systemd started, 0 if unknown
	listen             int  // descriptor of source by LISTEN_FDNAMES, -1 if none
}

// DestinationOf reads the destination in the environment of a process, conmon or
// podman. The second result is false if the process has none: it belongs to no
// unit of ours.
func DestinationOf(pid int) (Destination, bool, error) {
	env, err := proc.Environ(pid, proc.MaxStrings)
	if err != nil {
		return Destination{}, false, err
	}
	d := Destination{
		Unit:         env.Get("PODMAN_SYSTEMD_UNIT"),
		MainPIDFile:  env.Get(handover.EnvMainPIDFile),
		ResultFile:   env.Get(handover.EnvResultFile),
		InvocationID: env.Get("INVOCATION_ID"),
		source:       pid,
		listen:       listenDescriptor(env),
	}
	// systemd and logins set these, podman itself does not.
	d.hasUnitEnvironment = d.InvocationID != "" || env.Get("LOGNAME") != "" || env.Get("USER") != ""
	d.podman, _ = strconv.Atoi(env.Get("SYSTEMD_EXEC_PID"))
	ours := d.MainPIDFile != "" || d.listen >= 0
	d.Verbose = ours && handover.IsVerbose(env.Get(handover.EnvVerbose))
	return d, ours, nil
}

// DestinationOfConmon is DestinationOf for a conmon. podman before 4.8 keeps its
// environment from conmon, but both are in one control group (cgroups(7)): there,
// DestinationOfConmon reads it from podman.
//
// It does not for root's containers, which are never ours. The environment of a
// process beside conmon may come from the image of a container.
func DestinationOfConmon(conmon int) (Destination, bool, error) {
	d, ours, err := DestinationOf(conmon)
	if err != nil || ours || d.hasUnitEnvironment || isRoot() {
		return d, ours, err
	}
	cgroup, err := proc.Cgroup(conmon)
	if err != nil || cgroup == "" || cgroup == "/" {
		return d, false, err
	}
	return destinationBeside(d, proc.InCgroup(cgroup))
}

// isRoot reports whether this process is the machine's root, and not only the root
// of a user namespace.
func isRoot() bool {
	if os.Geteuid() != 0 {
		return false
	}
	namespace, err := proc.UserNamespace(os.Getpid())
	return err != nil || namespace == proc.InitialUserNamespace
}

// destinationBeside returns the destination of the first of the processes that
// has one, runs as conmon's user, and is not inside a container. Without any it
// returns conmon's, and false.
func destinationBeside(conmon Destination, pids []int) (Destination, bool, error) {
	want, err := proc.ReadStatus(conmon.source)
	if err != nil {
		return conmon, false, err
	}
	for _, pid := range pids {
		if pid == conmon.source {
			continue
		}
		status, err := proc.ReadStatus(pid)
		if err != nil || status.Contained() || !slices.Equal(status.UIDs, want.UIDs) {
			continue
		}
		if d, ours, err := DestinationOf(pid); err == nil && ours {
			return d, true, nil
		}
	}
	return conmon, false, nil
}

// DestinationAbove returns the destination of the nearest ancestor of this process
// that has one. It is for when the container is gone, so that nothing leads to its
// conmon.
func DestinationAbove() (Destination, bool) {
	for _, pid := range proc.Ancestors() {
		if d, ours, err := DestinationOf(pid); err == nil && ours {
			return d, true
		}
	}
	return Destination{}, false
}

// listenDescriptor returns the number of the descriptor that sd_listen_fds(3)
// calls handover.DescriptorName, -1 where there is none.
func listenDescriptor(env proc.Strings) int {
	const listenFDsStart = 3
	n, err := strconv.Atoi(env.Get("LISTEN_FDS"))
	if err != nil {
		return -1
	}
	for i, name := range strings.Split(env.Get("LISTEN_FDNAMES"), ":") {
		if name == handover.DescriptorName && i < n {
			return listenFDsStart + i
		}
	}
	return -1
}

// String names the unit as far as it is known.
func (d Destination) String() string {
	switch {
	case d.Unit != "":
		return d.Unit
	case d.MainPIDFile != "": // only Quadlet sets PODMAN_SYSTEMD_UNIT
		return handover.UnitOf(d.MainPIDFile)
	}
	return "unit of process " + strconv.Itoa(d.source)
}
