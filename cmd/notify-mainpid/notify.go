package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/sdnotify"
)

// managerTimeout is how long systemd, which answers within milliseconds unless
// it is very busy, may take: less than the hook waits (hook.ResultTimeout).
var managerTimeout = 20 * time.Second

// verifyTimeout is how long the verification may take. It takes microseconds, unless
// a process keeps the reader of its memory waiting.
const verifyTimeout = 5 * time.Second

// endingTimeout is how long a conmon whose container has ended may take until it has
// a child again, podman's cleanup, or has ended itself.
const endingTimeout = 500 * time.Millisecond

// notify waits for the PID, verifies it and tells systemd. record writes down what
// became the main process.
func notify(c config, files *handover.Handover, record func(handover.Record) error) error {
	uid, err := lookup(c.user)
	if err != nil {
		return err
	}
	invocation := os.Getenv("INVOCATION_ID")
	manager, err := c.manager(invocation)
	if err != nil {
		return err
	}
	if invocation == "" && c.require != conmonbridge.RequireUser {
		return errors.New("INVOCATION_ID is not set, as systemd does for the commands of a unit: nothing tells this start of the unit from another one")
	}

	start := time.Now()
	pid, err := wait(c, files)
	if err != nil {
		return err
	}
	c.log.Step("the mainpid file has %d, after %v", pid, time.Since(start).Round(time.Microsecond))
	c.log.Add(message.ConmonPID, strconv.Itoa(pid))
	err = c.take(manager, record, pid, conmonbridge.Expected{
		Requirement:  c.require,
		UID:          uid,
		InvocationID: invocation,
		Podman:       podman(),
		Executables:  c.executables,
	})
	if hasEnded(err) && c.require != conmonbridge.RequireUser && mainProcessHasEnded(pid) {
		return c.ended(manager, pid)
	}
	return err
}

// manager returns who is to be told, once the environment is known to be systemd's.
func (c config) manager(invocation string) (*sdnotify.Client, error) {
	manager, err := sdnotify.FromEnvironment()
	if err == nil && manager.Address().IsVsock() {
		// That manager is on another machine, and cannot be told of a process here.
		err = fmt.Errorf("NOTIFY_SOCKET=%s: %w", manager.Address(), sdnotify.ErrAddress)
	}
	if err != nil {
		return nil, failure{exitManager, fmt.Errorf("%w (systemd sets it for the commands of a unit that has NotifyAccess=)", err)}
	}
	if c.unit != "" {
		err = checkEnvironment(c.unit, invocation)
	}
	return manager, err
}

// take verifies the process and tells systemd that it is the main process.
func (c config) take(manager *sdnotify.Client, record func(handover.Record) error, pid int, want conmonbridge.Expected) error {
	claim, err := conmonbridge.NewClaim(pid)
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	defer claim.Close()
	container, err := verify(claim, want)
	if errors.Is(err, conmonbridge.ErrNoContainer) {
		// If the container has just ended, conmon runs podman's cleanup, or ends.
		if err = claim.AliveAfter(endingTimeout); err == nil {
			container, err = verify(claim, want)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	name := c.verified(pid, want.UID, container)
	// A systemd before 257 goes by the PID alone. Which one this is, nothing says
	// that the unit's user could not have set, and to hold costs microseconds.
	if os.Geteuid() == 0 {
		if err := claim.Hold(); err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
	}

	var more []sdnotify.Assignment
	if c.reload {
		more = notStopping
	}
	if err := c.tell(manager, claim, more...); err != nil {
		return err
	}
	if c.require != conmonbridge.RequireUser {
		r, err := started(pid, want.UID, container)
		if err == nil {
			err = record(r)
		}
		if err != nil {
			if ended := claim.Alive(); ended != nil {
				return ended
			}
			return fmt.Errorf("record of this start: %w", err)
		}
	}
	c.log.Say(message.MainProcess, c.about()+name+" is the main process", nil)
	return nil
}

// tell tells systemd that the process is the main process, and more, and returns when
// systemd has handled that. The process has not ended by then.
func (c config) tell(manager *sdnotify.Client, claim *conmonbridge.Claim, more ...sdnotify.Assignment) error {
	assignments, err := sdnotify.MainPID(claim.PIDFD(), claim.PID)
	if err != nil {
		return fmt.Errorf("process %d: %w", claim.PID, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), managerTimeout)
	defer cancel()
	start := time.Now()
	if err := manager.Send(ctx, append(assignments, more...)...); err != nil {
		return failure{exitManager, err}
	}
	if err := manager.Barrier(ctx); err != nil {
		return failure{exitManager, err}
	}
	c.log.Step("systemd answered after %v", time.Since(start).Round(time.Microsecond))
	return claim.Alive()
}

// verified logs that the process passed all checks, and returns what to call it.
func (c config) verified(pid, uid int, container conmonbridge.Container) string {
	if c.require == conmonbridge.RequireUser {
		c.log.Step("process %d runs as UID %d", pid, uid)
		return "process " + strconv.Itoa(pid)
	}
	c.log.Add(message.ContainerID, container.ShortID())
	c.log.Add(message.ContainerName, container.Name)
	c.log.Step("process %d runs as UID %d, executes conmon, has INVOCATION_ID=%s and is that of %v", pid, uid, os.Getenv("INVOCATION_ID"), container)
	return fmt.Sprintf("conmon %d of %v", pid, container)
}

// verify is Claim.Verify within verifyTimeout. Claim.Verify, if it takes longer, goes
// on until this process ends. verify also returns the container of the conmon.
func verify(claim *conmonbridge.Claim, want conmonbridge.Expected) (conmonbridge.Container, error) {
	type outcome struct {
		container conmonbridge.Container
		err       error
	}
	done := make(chan outcome, 1)
	go func() {
		o := outcome{err: claim.Verify(want)}
		if o.err == nil && want.Requirement != conmonbridge.RequireUser {
			o.container = conmonbridge.ContainerOf(claim.PID)
		}
		done <- o
	}()
	select {
	case o := <-done:
		return o.container, o.err
	case <-time.After(verifyTimeout):
		return conmonbridge.Container{}, fmt.Errorf("process %d: could not be verified within %v", claim.PID, verifyTimeout)
	}
}

// wait waits for the PID until the time of the command line is over, or podman ends.
func wait(c config, files *handover.Handover) (int, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	pidfd := -1
	if pid := podman(); pid > 0 {
		fd, err := unix.PidfdOpen(pid, 0)
		switch err {
		case nil:
			defer unix.Close(fd)
			pidfd = fd
		case unix.ESRCH:
			cancel(handover.ErrPodmanEnded)
		default:
			return 0, fmt.Errorf("pidfd_open of podman, process %d: %w", pid, err)
		}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	go func() {
		cancel(fmt.Errorf("got signal %q while waiting for it", (<-signals).String()))
	}()
	if c.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("nothing came within %v", c.timeout))
		defer stop()
	}
	written := make(chan os.Signal, 1)
	signal.Notify(written, unix.SIGIO)
	defer signal.Stop(written)
	pid, err := files.MainPID(ctx, pidfd, written)
	if errors.Is(err, handover.ErrNoMainPID) {
		err = failure{exitNoPID, fmt.Errorf("%w; %s", err, c.adviceNoPID(err))}
	}
	return pid, err
}

// adviceNoPID says what to look at where no PID came.
func (c config) adviceNoPID(err error) string {
	unit := c.unit
	if unit == "" {
		unit = "UNIT"
	}
	advice := "no hook ran, or it did not find this unit: type oci-mainpid check " + unit
	if errors.Is(err, handover.ErrPodmanEnded) {
		// With Cgroup=user podman's messages are not in the unit's log.
		advice = "if podman's own messages (oci-mainpid explain " + unit + ") do not say why, " + advice
	}
	return advice
}
