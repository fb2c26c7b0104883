package main

import (
	"context"
	"errors"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/sdnotify"
)

// A container may end before its conmon is verified. Where podman has told systemd
// itself which process conmon is, systemd knows by then how conmon ended, and has
// nothing to learn from here.

// hasEnded reports whether an error says that the claimed process is gone.
func hasEnded(err error) bool {
	return errors.Is(err, proc.ErrNoProcess) || errors.Is(err, conmonbridge.ErrEnded)
}

// mainProcessHasEnded reports whether the unit's main process was pid, which has
// ended, or was podman, and has ended.
func mainProcessHasEnded(pid int) bool {
	main := podman()
	if main == pid || main == 0 {
		return main == pid
	}
	claim, err := conmonbridge.NewClaim(main)
	if err == nil {
		defer claim.Close()
		err = claim.AliveAfter(endingTimeout)
	}
	return hasEnded(err)
}

// ended leaves the unit to end as its main process did. MAINPID, which the unit's
// user may set, is not to be believed, so systemd hears STOPPING=1: a unit whose main
// process has ended stops anyway, and one whose main process lives does not count as
// started.
func (c config) ended(manager *sdnotify.Client, pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), managerTimeout)
	defer cancel()
	err := manager.Send(ctx, sdnotify.Stopping())
	if err == nil {
		err = manager.Barrier(ctx)
	}
	if err != nil {
		return failure{exitManager, err}
	}
	c.log.Step("process %d ended already; systemd has the exit status of the main process", pid)
	return nil
}
