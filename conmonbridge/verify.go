package conmonbridge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Requirement is how much has to be true of a process that claims to be a
// unit's main process.
type Requirement string

const (
	// RequireUser asks that it runs as the unit's user, and nothing else: for
	// programs that are not podman.
	RequireUser Requirement = "user"
	// RequireConmon also asks that it is conmon, of this start of this unit,
	// with a container.
	RequireConmon Requirement = "conmon"
	// RequireKube also asks that the container is the service container of
	// podman-kube-play(1).
	RequireKube Requirement = "kube"
)

// Executables is where podman looks for conmon (conmon_path in
// containers.conf(5)), and thus what conmon is here: the same file as one of
// these, which must belong to root and be writable by nobody else.
var Executables = []string{
	"/usr/libexec/podman/conmon",
	"/usr/local/libexec/podman/conmon",
	"/usr/local/lib/podman/conmon",
	"/usr/bin/conmon",
	"/usr/sbin/conmon",
	"/usr/local/bin/conmon",
	"/usr/local/sbin/conmon",
	"/run/current-system/sw/bin/conmon",
}

// Expected is what a claim is verified against.
type Expected struct {
	Requirement  Requirement
	UID          int      // of the unit's user
	InvocationID string   // of this start of the unit (INVOCATION_ID in systemd.exec(5))
	Podman       int      // PID of the unit's main process so far, 0 if unknown
	Executables  []string // what conmon is
}

// Claim is a PID that somebody claims to be a unit's main process. It refers
// to one and the same process for ever, whatever becomes of the PID.
type Claim struct {
	PID     int
	pidfd   int
	release func() // ends Hold, nil without
}

// NewClaim takes hold of the process with that PID (pidfd_open(2)).
func NewClaim(pid int) (*Claim, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	switch err {
	case nil:
		return &Claim{PID: pid, pidfd: fd}, nil
	case unix.ESRCH:
		return nil, fmt.Errorf("process %d: %w", pid, ErrNoProcess)
	case unix.EINVAL, unix.ENOENT:
		return nil, fmt.Errorf("process %d: is a thread, not a process", pid)
	default:
		return nil, fmt.Errorf("pidfd_open of process %d: %w", pid, err)
	}
}

// PIDFD returns the pidfd, which stays the claim's own.
func (c *Claim) PIDFD() int { return c.pidfd }

// Close lets go of the process.
func (c *Claim) Close() {
	if c.release != nil {
		c.release()
	}
	unix.Close(c.pidfd)
}

// Alive returns nil while the process has not ended. A zombie has.
func (c *Claim) Alive() error {
	poll := []unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	for err == unix.EINTR {
		n, err = unix.Poll(poll, 0)
	}
	if err != nil {
		return fmt.Errorf("process %d: poll: %w", c.PID, err)
	}
	if n > 0 {
		return fmt.Errorf("process %d: has ended", c.PID)
	}
	return nil
}

// Verify returns nil if the process is what is expected; else the error names
// the process and the first thing about it that is not.
//
// What it reads in /proc under the PID is that process' own, because it still
// lives when all has been read.
func (c *Claim) Verify(want Expected) error {
	err := c.verify(want)
	if alive := c.Alive(); alive != nil {
		return alive
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", c.PID, err)
	}
	return nil
}

func (c *Claim) verify(want Expected) error {
	checks := []func(Expected) error{c.verifyUser, c.verifyExecutable, c.verifyInvocation, c.verifyContainer, c.verifyServiceContainer}
	switch want.Requirement {
	case RequireUser:
		checks = checks[:1]
	case RequireConmon:
		checks = checks[:4]
	case RequireKube:
	default:
		return fmt.Errorf("unknown requirement %q", want.Requirement)
	}
	for _, check := range checks {
		if err := check(want); err != nil {
			return err
		}
	}
	// Again, because they may have changed meanwhile.
	return c.verifyUser(want)
}

// verifyUser: all of its UIDs are the user's, and the PID is the one that the
// process has in this PID namespace.
func (c *Claim) verifyUser(want Expected) error {
	b, err := readProc(c.PID, "status", 1<<20)
	if err != nil {
		return err
	}
	uids := statusField(b, "Uid")
	if len(uids) != 4 {
		return errors.New("no UIDs in /proc/PID/status")
	}
	for _, uid := range uids {
		if uid != strconv.Itoa(want.UID) {
			return fmt.Errorf("runs as UID %s, not as the unit's user %d", uid, want.UID)
		}
	}
	if pids := statusField(b, "NSpid"); len(pids) > 1 {
		return errors.New("is in another PID namespace")
	}
	return nil
}

// statusField returns the values of a field of proc_pid_status(5).
func statusField(status []byte, name string) []string {
	for _, line := range bytes.Split(status, []byte("\n")) {
		if values, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return strings.Fields(string(values))
		}
	}
	return nil
}

// verifyExecutable: the file that it executes is conmon.
func (c *Claim) verifyExecutable(want Expected) error {
	// What the kernel knows: a file system of the user's (FUSE) is not asked, it
	// might never answer.
	var exe unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, procPath(c.PID, "exe"), unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &exe); err != nil {
		return fmt.Errorf("statx %s: %w", procPath(c.PID, "exe"), err)
	}
	for _, path := range want.Executables {
		var conmon unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_UID|unix.STATX_MODE, &conmon)
		if err != nil || conmon.Dev_major != exe.Dev_major || conmon.Dev_minor != exe.Dev_minor || conmon.Ino != exe.Ino {
			continue
		}
		if conmon.Uid != 0 || conmon.Mode&0o022 != 0 {
			return fmt.Errorf("executes %s, which others than root may write", path)
		}
		return nil
	}
	return fmt.Errorf("does not execute conmon (%s)", strings.Join(want.Executables, ", "))
}

// verifyInvocation: it was started by this start of this unit.
func (c *Claim) verifyInvocation(want Expected) error {
	if want.InvocationID == "" {
		return errors.New("no invocation ID to compare with")
	}
	env, err := readEnvironment(c.PID)
	if err != nil {
		return err
	}
	id := env.get("INVOCATION_ID")
	if id == "" {
		return c.verifyCgroup(want)
	}
	if id != want.InvocationID {
		return fmt.Errorf("belongs to another start or another unit (INVOCATION_ID=%.64q, not %q)", id, want.InvocationID)
	}
	return nil
}

// verifyCgroup is verifyInvocation for podman before 4.8, which keeps its
// environment from conmon: both are in one control group, the unit's or one that
// podman has made.
func (c *Claim) verifyCgroup(want Expected) error {
	own, err := readCgroup(os.Getpid())
	if err != nil {
		return err
	}
	theirs, err := readCgroup(c.PID)
	if err != nil {
		return err
	}
	if sameUnit(own, theirs) {
		return nil
	}
	if theirs != "" && theirs != "/" && want.Podman > 0 {
		// A podman that had to enter its user namespace left a child to do so.
		below, _ := children(want.Podman)
		for _, podman := range append(below, want.Podman) {
			cgroup, err := readCgroup(podman)
			if err != nil || cgroup != theirs {
				continue
			}
			if env, err := readEnvironment(podman); err == nil && env.get("INVOCATION_ID") == want.InvocationID {
				return nil
			}
		}
	}
	return fmt.Errorf("belongs to another start or another unit (no INVOCATION_ID, and podman is not in its control group %.200q)", theirs)
}

// sameUnit tells whether a control group is that of the service which a control
// process (ExecStartPost=) with the control group own belongs to, or below it.
func sameUnit(own, theirs string) bool {
	// Delegate= puts control processes into a group of their own.
	unit := strings.TrimSuffix(own, "/.control")
	return strings.HasSuffix(unit, ".service") && strings.HasPrefix(theirs+"/", unit+"/")
}

// verifyContainer: it has a child that lives.
func (c *Claim) verifyContainer(Expected) error {
	// While runc creates the container, its end gives the container to conmon:
	// a list that was read just then may hold only runc's zombie, the next one
	// cannot.
	for range 2 {
		pids, err := children(c.PID)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if child, err := ReadProcess(pid); err == nil && child.State != 'Z' && child.PPID == c.PID {
				return nil
			}
		}
	}
	return errors.New("has no container (no child that lives)")
}

// isServiceContainer tells the name that podman-kube-play(1) gives the
// container that stands for all of its pods: 12 hexadecimal digits, "-service".
func isServiceContainer(name string) bool {
	digits, ok := strings.CutSuffix(name, "-service")
	return ok && len(digits) == 12 && strings.Trim(digits, "0123456789abcdef") == ""
}

// verifyServiceContainer: its container is the service container, by the name
// that podman gave conmon(8).
func (c *Claim) verifyServiceContainer(Expected) error {
	name, err := argumentAfter(c.PID, "-n")
	switch {
	case err != nil:
		return err
	case name == "":
		return errors.New("names no container")
	case !isServiceContainer(name):
		return fmt.Errorf("is of container %.64q, not of the kube unit's service container", name)
	}
	return nil
}
