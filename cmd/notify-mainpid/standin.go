package main

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
)

// While one container has ended and the next one is not there yet, a unit needs a main
// process: systemd stops a unit whose main process has failed. systemd does not take the
// control process, such as this one, so makeStandIn makes one for that, of the unit's
// user. It is made here, by root: nobody has to be believed about which process it is.

// makeStandIn starts a process as the user and makes it the unit's main process.
func (c config) makeStandIn(uid int) error {
	pid, pidfd, goOn, err := startStandIn(uid, c.standIn)
	if err != nil {
		return fmt.Errorf("start a process that stands in for the container: %w", err)
	}
	defer unix.Close(pidfd)
	defer goOn.Close() // without a word it ends
	if err := confineSelf(); err != nil {
		return err
	}
	manager, err := c.manager(os.Getenv("INVOCATION_ID"))
	if err != nil {
		return err
	}
	claim, err := conmonbridge.NewClaim(pid)
	if err != nil {
		return err
	}
	defer claim.Close()
	if err := claim.Verify(conmonbridge.Expected{Requirement: conmonbridge.RequireUser, UID: uid}); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if err := claim.Hold(); err != nil {
		return err
	}
	// The PID may have been reused before the claim. If the child lives, it was not.
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err == unix.ESRCH {
		return fmt.Errorf("process %d: %w", pid, conmonbridge.ErrEnded)
	}
	if _, err := goOn.WriteString("\n"); err != nil {
		return err
	}
	if err := c.tell(manager, claim, notStopping...); err != nil {
		return err
	}
	c.log.Step("process %d stands in for the container", pid)
	return nil
}

// noGroup is the group of files whose group is not known. The stand-in needs none.
const noGroup = 65534

// startStandIn starts standIn as the user. It is a child of systemd's, so that systemd
// learns how it ends, and waits until something is written into goOn.
func startStandIn(uid int, lifetime time.Duration) (pid, pidfd int, goOn *os.File, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, 0, nil, err
	}
	defer null.Close()
	wait, goOn, err := os.Pipe()
	if err != nil {
		return 0, 0, nil, err
	}
	defer wait.Close()
	program, err := os.Executable()
	if err != nil {
		return 0, 0, nil, err
	}
	pidfd = -1
	pid, err = syscall.ForkExec(program, []string{"notify-mainpid", "--stand-in=" + lifetime.String()}, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: []uintptr{wait.Fd(), null.Fd(), null.Fd()},
		Sys: &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(uid), Gid: noGroup}, Setsid: true,
			Cloneflags: unix.CLONE_PARENT, PidFD: &pidfd,
		},
	})
	if err == nil && pidfd < 0 {
		err = unix.ENOSYS // CLONE_PIDFD, Linux 5.2
	}
	if err != nil {
		goOn.Close()
		return 0, 0, nil, err
	}
	return pid, pidfd, goOn, nil
}

// standIn is the process that stands in for a container. It does nothing until the
// reload that made it ends it, and fails if that does not happen: then the unit has no
// container.
func standIn(lifetime time.Duration) {
	if n, _ := os.Stdin.Read(make([]byte, 1)); n == 1 {
		time.Sleep(lifetime)
	}
	os.Exit(exitRefused)
}
