// Command notify-mainpid is what a unit runs as root, ExecStartPost=+, to make
// the conmon of its container the unit's main process: notify-mainpid(8).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/sdnotify"
)

// Exit statuses, as in notify-mainpid(8).
const (
	exitRefused = 1 // the PID was refused, or a file could not be used
	exitUsage   = 2
	exitNoPID   = 3 // no PID came
	exitManager = 4 // systemd could not be told
)

const usage = `Usage: notify-mainpid --user=NAME|UID [flags] MAINPIDFILE RESULTFILE
       notify-mainpid --prepare [--user=NAME|UID] [flags] MAINPIDFILE RESULTFILE
       notify-mainpid --forget [flags] MAINPIDFILE RESULTFILE

Waits for the PID that oci-mainpid-hook writes into MAINPIDFILE, verifies that
it is the conmon of this unit's container, makes it the unit's main process
and writes what became of it into RESULTFILE.

  --user=NAME|UID   the unit's user; with --prepare: the owner of MAINPIDFILE,
                    root if not given
  --timeout=TIME    wait this long for the PID, such as 30s (the default) or
                    2m, or "infinity"
  --require=WHAT    what the PID must be: conmon (the default); kube, the
                    conmon of a kube unit's service container; user, any
                    process of the user
  --conmon=PATH     where conmon is, if podman does not find it where it looks
                    by itself
  --unit=NAME       the unit that runs this, for messages, and to check that the
                    environment is as systemd set it; not when run by hand
  --prepare         make both files anew, and do nothing else
  --forget          remove both files, and do nothing else
  --help            print this

See notify-mainpid(8).
`

// managerTimeout is how long systemd, which answers within milliseconds unless
// it is very busy, may take: less than the hook waits (hook.ResultTimeout).
var managerTimeout = 20 * time.Second

// verifyTimeout is for what takes microseconds, unless somebody has found how to
// keep /proc waiting.
const verifyTimeout = 5 * time.Second

// config is what the command line says.
type config struct {
	user        string
	timeout     time.Duration // 0: for ever
	require     conmonbridge.Requirement
	executables []string
	unit        string
	action      string // "", "prepare" or "forget"

	mainPIDFile, resultFile string
}

// failure is an error with the exit status that it deserves.
type failure struct {
	status int
	error
}

func (f failure) Unwrap() error { return f.error }

func main() {
	c, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return
	}
	if err == nil && c.action == "" {
		err = harden()
	}
	if err == nil {
		err = run(c)
	}
	if err == nil {
		return
	}
	name := c.unit
	if name == "" {
		name = c.mainPIDFile
	}
	if name != "" {
		name += ": "
	}
	fmt.Fprintf(os.Stderr, "notify-mainpid: %s%s\n", name, strings.ReplaceAll(err.Error(), "\n", "; "))
	status := exitRefused
	if f := (failure{}); errors.As(err, &f) {
		status = f.status
	}
	os.Exit(status)
}

// parse reads the command line; its errors are failures with exitUsage.
func parse(args []string) (config, error) {
	c := config{timeout: 30 * time.Second, require: conmonbridge.RequireConmon, executables: conmonbridge.Executables}
	set := flag.NewFlagSet("notify-mainpid", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&c.user, "user", "", "")
	set.StringVar(&c.unit, "unit", "", "")
	set.Func("timeout", "", func(s string) (err error) {
		if s == "infinity" {
			c.timeout = 0
			return nil
		}
		if c.timeout, err = time.ParseDuration(s); err == nil && c.timeout <= 0 {
			err = errors.New("not longer than 0")
		}
		return err
	})
	set.Func("require", "", func(s string) error {
		c.require = conmonbridge.Requirement(s)
		switch c.require {
		case conmonbridge.RequireUser, conmonbridge.RequireConmon, conmonbridge.RequireKube:
			return nil
		}
		return errors.New("not conmon, kube or user")
	})
	set.Func("conmon", "", func(s string) error {
		c.executables = []string{s}
		return nil
	})
	prepare := set.Bool("prepare", false, "")
	forget := set.Bool("forget", false, "")
	err := set.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return c, err
	case err != nil:
	case set.NArg() != 2:
		err = fmt.Errorf("%d arguments, not MAINPIDFILE and RESULTFILE", set.NArg())
	case *prepare && *forget:
		err = errors.New("--prepare and --forget exclude each other")
	case *prepare:
		c.action = "prepare"
	case *forget:
		c.action = "forget"
	case c.user == "":
		err = errors.New("--user is missing")
	}
	if err != nil {
		return c, failure{exitUsage, fmt.Errorf("%w (see notify-mainpid --help)", err)}
	}
	c.mainPIDFile, c.resultFile = set.Arg(0), set.Arg(1)
	if c.mainPIDFile == c.resultFile {
		return c, failure{exitUsage, fmt.Errorf("%s is both MAINPIDFILE and RESULTFILE", c.mainPIDFile)}
	}
	return c, nil
}

func run(c config) error {
	switch c.action {
	case "prepare":
		owner := os.Geteuid()
		if c.user != "" {
			var err error
			if owner, err = lookup(c.user); err != nil {
				return err
			}
		}
		return conmonbridge.Prepare(c.mainPIDFile, c.resultFile, owner)
	case "forget":
		return conmonbridge.Forget(c.mainPIDFile, c.resultFile)
	}
	handover, err := conmonbridge.OpenHandover(c.mainPIDFile, c.resultFile)
	if err != nil {
		return err
	}
	defer handover.Close()
	err = notify(c, handover)
	return errors.Join(err, handover.Answer(err))
}

// notify waits for the PID, verifies it and tells systemd.
func notify(c config, handover *conmonbridge.Handover) error {
	uid, err := lookup(c.user)
	if err != nil {
		return err
	}
	manager, err := sdnotify.FromEnvironment()
	if err != nil {
		return failure{exitManager, err}
	}
	invocation := os.Getenv("INVOCATION_ID")
	if c.unit != "" {
		if err := checkEnvironment(c.unit, invocation); err != nil {
			return err
		}
	}
	if invocation == "" && c.require != conmonbridge.RequireUser {
		return errors.New("INVOCATION_ID is not set: nothing tells this start of the unit from another one")
	}

	pid, err := wait(c, handover)
	if err != nil {
		return err
	}
	claim, err := conmonbridge.NewClaim(pid)
	if err != nil {
		return fmt.Errorf("refused: %w", err)
	}
	defer claim.Close()
	err = verify(claim, conmonbridge.Expected{
		Requirement:  c.require,
		UID:          uid,
		InvocationID: invocation,
		Podman:       podman(),
		Executables:  c.executables,
	})
	if err != nil {
		return fmt.Errorf("refused: %w", err)
	}
	// systemd 258 and newer set this, and so tell that they know MAINPIDFDID=, as
	// 257 does; one that is older goes by the PID alone.
	if os.Getenv("MAINPIDFDID") == "" && os.Geteuid() == 0 {
		if err := claim.Hold(); err != nil {
			return fmt.Errorf("refused: %w", err)
		}
	}

	message, err := sdnotify.MainPID(claim.PIDFD(), pid)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), managerTimeout)
	defer cancel()
	if err := manager.Send(ctx, message...); err != nil {
		return failure{exitManager, err}
	}
	if err := manager.Barrier(ctx); err != nil {
		return failure{exitManager, err}
	}
	return claim.Alive()
}

// verify is Claim.Verify with a limit in time; if that is exceeded, it goes on
// until this process ends.
func verify(claim *conmonbridge.Claim, want conmonbridge.Expected) error {
	done := make(chan error, 1)
	go func() { done <- claim.Verify(want) }()
	select {
	case err := <-done:
		return err
	case <-time.After(verifyTimeout):
		return fmt.Errorf("process %d: could not be verified within %v", claim.PID, verifyTimeout)
	}
}

// systemd's notification socket, and where it tells each unit's invocation ID.
const (
	managerSocket  = "/run/systemd/notify"
	invocationLink = "/run/systemd/units/invocation:"
)

// checkEnvironment checks what systemd has set for a unit, because files of
// EnvironmentFile= override that (systemd.exec(5)), and may be the user's.
func checkEnvironment(unit, invocation string) error {
	const hint = "does an EnvironmentFile= of the unit set it?"
	if socket := os.Getenv("NOTIFY_SOCKET"); socket != managerSocket {
		return fmt.Errorf("refused: NOTIFY_SOCKET=%.100s is not systemd's %s; %s", socket, managerSocket, hint)
	}
	id, err := os.Readlink(invocationLink + unit)
	if err != nil {
		return fmt.Errorf("invocation ID of the unit: %w", err)
	}
	if id != invocation {
		return fmt.Errorf("refused: INVOCATION_ID=%.64s is not that of this start, %s; %s", invocation, id, hint)
	}
	return nil
}

// podman returns the PID of the unit's main process so far, as systemd tells
// ExecStartPost= (MAINPID in systemd.exec(5)), 0 where it does not.
func podman() int {
	pid, _ := strconv.Atoi(os.Getenv("MAINPID"))
	return max(pid, 0)
}

// wait waits for the PID as long as the command line says, and no longer than
// podman lives.
func wait(c config, handover *conmonbridge.Handover) (int, error) {
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
			cancel(conmonbridge.ErrPodmanEnded)
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
	pid, err := handover.MainPID(ctx, pidfd)
	if errors.Is(err, conmonbridge.ErrNoMainPID) {
		err = failure{exitNoPID, fmt.Errorf("%w; if podman's own messages do not say why: does podman run the hook (oci-mainpid-hook.json in a hooks_dir of containers.conf(5)), and does the unit set %s?", err, conmonbridge.EnvMainPIDFile)}
	}
	return pid, err
}

// lookup returns the UID of a user, given by UID or by name.
func lookup(name string) (int, error) {
	if uid, err := strconv.ParseUint(name, 10, 32); err == nil && uid < 1<<32-1 {
		return int(uid), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("user %s: %w", name, err)
	}
	return strconv.Atoi(u.Uid)
}
