package main

import (
	"fmt"
	"os"
	"strconv"
)

// Nothing in the environment is believed that a file of EnvironmentFile= can set.
// NOTIFY_SOCKET and INVOCATION_ID are checked, MAINPID is a hint, OCI_MAINPID_VERBOSE
// makes messages longer, and no other variable is read here. In particular whether
// systemd knows MAINPIDFDID= is not learnt from MAINPIDFDID.

// systemd's notification socket, and where it tells each unit's invocation ID.
const (
	managerSocket  = "/run/systemd/notify"
	invocationLink = "/run/systemd/units/invocation:"
)

// checkEnvironment compares NOTIFY_SOCKET and INVOCATION_ID, which systemd sets for
// a unit's commands, with what PID 1 says. A file of EnvironmentFile= overrides both
// (systemd.exec(5)), and may be the user's.
func checkEnvironment(unit, invocation string) error {
	const hint = "does an EnvironmentFile= of the unit set it?"
	if socket := os.Getenv("NOTIFY_SOCKET"); socket != managerSocket {
		return fmt.Errorf("%w: NOTIFY_SOCKET=%.100s is not systemd's %s; %s", errRefused, socket, managerSocket, hint)
	}
	id, err := os.Readlink(invocationLink + unit)
	if err != nil {
		return fmt.Errorf("invocation ID of the unit, which PID 1 says once it has been started (is --unit=%s right?): %w", unit, err)
	}
	if id != invocation {
		return fmt.Errorf("%w: INVOCATION_ID=%.64s is not that of this start, %s; %s", errRefused, invocation, id, hint)
	}
	return nil
}

// podman returns the PID of the unit's main process so far, which systemd tells
// ExecStartPost= (MAINPID in systemd.exec(5)), 0 if unknown.
//
// It is a hint: a user's EnvironmentFile= may set it to any number. So the process
// is never signalled, never told to systemd, and of its environment nothing is kept.
func podman() int {
	pid, _ := strconv.Atoi(os.Getenv("MAINPID"))
	return max(pid, 0)
}
