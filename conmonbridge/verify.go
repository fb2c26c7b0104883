package conmonbridge

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/proc"
)

// Requirement is how much has to be true of a process that claims to be a
// unit's main process.
type Requirement string

const (
	// RequireUser asks only that the process runs as the unit's user. It is for
	// programs other than podman.
	RequireUser Requirement = "user"
	// RequireConmon also asks that the process is a conmon that this start of this
	// unit started, and has a container.
	RequireConmon Requirement = "conmon"
	// RequireKube also asks that the container is the service container of
	// podman-kube-play(1).
	RequireKube Requirement = "kube"
)

// Expected is what a claim is verified against.
type Expected struct {
	Requirement  Requirement
	UID          int      // of the unit's user
	InvocationID string   // of this start of the unit (INVOCATION_ID in systemd.exec(5))
	Podman       int      // PID of the unit's main process so far, 0 if unknown
	Executables  []string // what conmon is
	// Replaced accepts a conmon that was replaced since, see ExecutesReplaced. It is
	// for what is shown only.
	Replaced bool
}

// Claim is a process that somebody claims to be a unit's main process. Its pidfd
// refers to that process also when the process has ended and its PID is reused.
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
		return nil, fmt.Errorf("process %d: %w", pid, proc.ErrNoProcess)
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

// ErrEnded says that the process has ended since it was claimed.
var ErrEnded = errors.New("has ended")

// Alive returns nil until the process ends, then ErrEnded. A zombie has ended.
func (c *Claim) Alive() error { return c.AliveAfter(0) }

// AliveAfter returns ErrEnded as soon as the process ends, nil if it lives on for d.
func (c *Claim) AliveAfter(d time.Duration) error {
	poll := []unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}
	deadline := time.Now().Add(d)
	n, err := unix.Poll(poll, int(d.Milliseconds()))
	for err == unix.EINTR {
		n, err = unix.Poll(poll, int(max(0, time.Until(deadline).Milliseconds())))
	}
	if err != nil {
		return fmt.Errorf("process %d: poll: %w", c.PID, err)
	}
	if n > 0 {
		return fmt.Errorf("process %d: %w", c.PID, ErrEnded)
	}
	return nil
}

// Verify returns nil if the process is what is expected. The error names the
// process and the first check that failed.
//
// Verify reads /proc under the PID. The process is still alive after the last
// read, so the PID was its own at every read.
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
	// Again, because the UIDs may have changed since the first check.
	return c.verifyUser(want)
}

// verifyUser checks that all UIDs of the process are the user's, and that the
// process is in this PID namespace, so that its PID is the claimed one.
func (c *Claim) verifyUser(want Expected) error {
	status, err := proc.ReadStatus(c.PID)
	if err != nil {
		return err
	}
	for _, uid := range status.UIDs {
		if uid != strconv.Itoa(want.UID) {
			return fmt.Errorf("runs as UID %s, not as the unit's user %d", uid, want.UID)
		}
	}
	if status.Contained() {
		return errors.New("is in another PID namespace")
	}
	return nil
}

func (c *Claim) verifyExecutable(want Expected) error {
	err := VerifyExecutable(c.PID, want.Executables)
	if err != nil && want.Replaced && ExecutesReplaced(c.PID, want.Executables) {
		return nil
	}
	return err
}

// VerifyExecutable returns nil if the process executes one of the executables.
func VerifyExecutable(pid int, executables []string) error {
	exe, err := proc.Executable(pid)
	if err != nil {
		return err
	}
	for _, path := range executables {
		conmon, err := proc.Identify(path)
		if err != nil || !conmon.Same(exe) {
			continue
		}
		if conmon.UID != 0 || conmon.Mode&0o022 != 0 {
			return fmt.Errorf("executes %s, which others than root may write", path)
		}
		return nil
	}
	return fmt.Errorf("does not execute conmon (%s)", strings.Join(executables, ", "))
}

// ExecutesReplaced reports whether the process executes what was one of the
// executables, until that was replaced: an upgrade of conmon's package leaves the
// conmons that run with the file of before. It is for what is shown only. No process
// becomes a unit's main process by that.
func ExecutesReplaced(pid int, executables []string) bool {
	exe, err := proc.Executable(pid)
	if err != nil || exe.Links != 0 || exe.UID != 0 || exe.Mode&0o022 != 0 {
		return false
	}
	path, err := proc.ExecutablePath(pid)
	if err != nil {
		return false
	}
	path, ok := strings.CutSuffix(path, " (deleted)")
	return ok && slices.Contains(executables, path)
}

// verifyInvocation checks that this start of this unit started the process.
func (c *Claim) verifyInvocation(want Expected) error {
	if want.InvocationID == "" {
		return errors.New("no invocation ID to compare with")
	}
	env, err := proc.Environ(c.PID, proc.MaxStrings)
	if err != nil {
		return err
	}
	id := env.Get("INVOCATION_ID")
	if id == "" {
		return c.verifyCgroup(want)
	}
	if id != want.InvocationID {
		return fmt.Errorf("belongs to another start or another unit (INVOCATION_ID=%.64q, not %q)", id, want.InvocationID)
	}
	return nil
}

// verifyCgroup is verifyInvocation for podman before 4.8, which keeps its
// environment from conmon. It checks that conmon is in the unit's control group, or
// in the one that this start's podman is in.
func (c *Claim) verifyCgroup(want Expected) error {
	own, err := proc.Cgroup(os.Getpid())
	if err != nil {
		return err
	}
	theirs, err := proc.Cgroup(c.PID)
	if err != nil {
		return err
	}
	if sameUnit(own, theirs) {
		return nil
	}
	if theirs != "" && theirs != "/" && want.Podman > 0 {
		// A podman that has to enter its user namespace does so in a child.
		below, _ := proc.Children(want.Podman)
		for _, podman := range append(below, want.Podman) {
			cgroup, err := proc.Cgroup(podman)
			if err != nil || cgroup != theirs {
				continue
			}
			if env, err := proc.Environ(podman, proc.MaxStrings); err == nil && env.Get("INVOCATION_ID") == want.InvocationID {
				return nil
			}
		}
	}
	return fmt.Errorf("belongs to another start or another unit (no INVOCATION_ID, and podman is not in its control group %.200q)", theirs)
}

// sameUnit reports whether theirs is the control group of a service, or below it. own
// is the control group of a control process (ExecStartPost=) of that service.
func sameUnit(own, theirs string) bool {
	// With Delegate=, systemd puts control processes into UNIT/.control.
	unit := strings.TrimSuffix(own, "/.control")
	return strings.HasSuffix(unit, ".service") && strings.HasPrefix(theirs+"/", unit+"/")
}

// ErrNoContainer says that a conmon has no container, or no longer.
var ErrNoContainer = errors.New("has no container (no child that lives)")

// verifyContainer checks that the process has a child that lives.
func (c *Claim) verifyContainer(Expected) error {
	// conmon becomes the parent of the container when runc, which has created it,
	// ends. A list that is read at that moment may hold only runc's zombie. The next
	// list has the container.
	for range 2 {
		pids, err := proc.Children(c.PID)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if child, err := proc.Read(pid); err == nil && !child.Ended() && child.PPID == c.PID {
				return nil
			}
		}
	}
	return ErrNoContainer
}

// isServiceContainer reports whether podman-kube-play(1) gives that name to the
// container that stands for all of its pods: 12 hexadecimal digits and "-service".
func isServiceContainer(name string) bool {
	digits, ok := strings.CutSuffix(name, "-service")
	return ok && len(digits) == 12 && strings.Trim(digits, "0123456789abcdef") == ""
}

// verifyServiceContainer checks that the process is the conmon of the service
// container, by the name on its command line.
func (c *Claim) verifyServiceContainer(Expected) error {
	line, _, err := ReadCommandLine(c.PID, proc.MaxStrings)
	switch name := line.Container.Name; {
	case err != nil:
		return err
	case name == "":
		return errors.New("names no container")
	case !isServiceContainer(name):
		return fmt.Errorf("is of container %.64q, not of the kube unit's service container", name)
	}
	return nil
}
