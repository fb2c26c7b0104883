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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/message"
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
       notify-mainpid --version

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
  --verbose         say what it does; the same as OCI_MAINPID_VERBOSE=1 in the
                    environment
  --prepare         make both files anew, and do nothing else
  --forget          remove both files, and do nothing else
  --help            print this
  --version         print the version

See notify-mainpid(8).
`

// version is set by the Makefile, see VERSION there.
var version = "built without make, see go version -m"

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
	action      string // "", "prepare", "forget" or "version"

	mainPIDFile, resultFile string

	log *message.Log
}

// failure is an error with the exit status that it deserves.
type failure struct {
	status int
	error
}

func (f failure) Unwrap() error { return f.error }

// errRefused marks what the process that the mainpid file names, or what claims
// to be systemd's, is not.
var errRefused = errors.New("refused")

// kind returns what kind of message an error is, and its exit status.
func kind(err error) (message.Kind, int) {
	f := failure{status: exitRefused}
	errors.As(err, &f)
	switch {
	case errors.Is(err, errRefused):
		return message.Refused, f.status
	case f.status == exitNoPID:
		return message.NoMainPID, f.status
	case f.status == exitManager:
		return message.NotTold, f.status
	}
	return message.HelperFailed, f.status
}

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
	status := 0
	if err != nil {
		var what message.Kind
		what, status = kind(err)
		c.log.Say(what, c.about()+err.Error(), err)
	}
	if c.unit == "" {
		c.log.Flush()
	}
	os.Exit(status)
}

// about is what messages begin with.
func (c config) about() string {
	switch {
	case c.unit != "":
		return c.unit + ": "
	case c.mainPIDFile != "":
		return c.mainPIDFile + ": "
	}
	return ""
}

// parse reads the command line; its errors are failures with exitUsage.
func parse(args []string) (config, error) {
	c := config{timeout: 30 * time.Second, require: conmonbridge.RequireConmon, executables: conmonbridge.Executables}
	c.log = &message.Log{Program: message.NotifyMainPID, Verbose: conmonbridge.IsVerbose(os.Getenv(conmonbridge.EnvVerbose))}
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
	set.BoolVar(&c.log.Verbose, "verbose", c.log.Verbose, "")
	prepare := set.Bool("prepare", false, "")
	forget := set.Bool("forget", false, "")
	printVersion := set.Bool("version", false, "")
	err := set.Parse(args)
	if c.log.Unit = c.unit; c.unit != "" {
		c.log.Add(message.InvocationID, os.Getenv("INVOCATION_ID"))
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		return c, err
	case err != nil:
	case *printVersion:
		c.action = "version"
		return c, nil
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
	if c.action != "" {
		// Half done is worse than a millisecond late.
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	}
	switch c.action {
	case "version":
		fmt.Println("notify-mainpid", version)
		return nil
	case "prepare":
		owner := os.Geteuid()
		if c.user != "" {
			var err error
			if owner, err = lookup(c.user); err != nil {
				return err
			}
		}
		c.log.Step("making %s, of UID %d, and %s", c.mainPIDFile, owner, c.resultFile)
		return conmonbridge.Prepare(c.mainPIDFile, c.resultFile, owner)
	case "forget":
		c.log.Step("removing %s and %s", c.mainPIDFile, c.resultFile)
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
		return failure{exitManager, fmt.Errorf("%w (systemd sets it for the commands of a unit that has NotifyAccess=)", err)}
	}
	invocation := os.Getenv("INVOCATION_ID")
	if c.unit != "" {
		if err := checkEnvironment(c.unit, invocation); err != nil {
			return err
		}
	}
	if invocation == "" && c.require != conmonbridge.RequireUser {
		return errors.New("INVOCATION_ID is not set, as systemd does for the commands of a unit: nothing tells this start of the unit from another one")
	}

	start := time.Now()
	pid, err := wait(c, handover)
	if err != nil {
		return err
	}
	c.log.Step("the mainpid file has %d, after %v", pid, time.Since(start).Round(time.Microsecond))
	c.log.Add(message.ConmonPID, strconv.Itoa(pid))
	claim, err := conmonbridge.NewClaim(pid)
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	defer claim.Close()
	container, err := verify(claim, conmonbridge.Expected{
		Requirement:  c.require,
		UID:          uid,
		InvocationID: invocation,
		Podman:       podman(),
		Executables:  c.executables,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	name := c.verified(pid, uid, container)
	// systemd 258 and newer set this, and so tell that they know MAINPIDFDID=, as
	// 257 does; one that is older goes by the PID alone.
	if os.Getenv("MAINPIDFDID") == "" && os.Geteuid() == 0 {
		if err := claim.Hold(); err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
	}

	assignments, err := sdnotify.MainPID(claim.PIDFD(), pid)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), managerTimeout)
	defer cancel()
	start = time.Now()
	if err := manager.Send(ctx, assignments...); err != nil {
		return failure{exitManager, err}
	}
	if err := manager.Barrier(ctx); err != nil {
		return failure{exitManager, err}
	}
	c.log.Step("systemd answered after %v", time.Since(start).Round(time.Microsecond))
	if err := claim.Alive(); err != nil {
		return err
	}
	c.log.Say(message.MainProcess, c.about()+name+" is the main process", nil)
	return nil
}

// verified tells of the process that is what was asked for, and names it.
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

// verify is Claim.Verify with a limit in time; if that is exceeded, it goes on
// until this process ends. It also returns whose conmon the process is.
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
		explain := ""
		if c.unit != "" { // with Cgroup=user they are not in the unit's log
			explain = " (oci-mainpid explain " + c.unit + ")"
		}
		err = failure{exitNoPID, fmt.Errorf("%w; if podman's own messages%s do not say why: does podman run the hook (oci-mainpid-hook.json in a hooks_dir of containers.conf(5)), and does the unit set %s?", err, explain, conmonbridge.EnvMainPIDFile)}
	}
	return pid, err
}

// lookup returns the UID of a user, given by UID or by name.
func lookup(name string) (int, error) {
	if uid, err := strconv.ParseUint(name, 10, 32); err == nil && uid < 1<<32-1 {
		return int(uid), nil
	}
	u, err := user.Lookup(name)
	if errors.As(err, new(user.UnknownUserError)) {
		return 0, fmt.Errorf("user %.64q does not exist: give --user= a name or UID that getent passwd knows", name)
	}
	if err != nil {
		return 0, fmt.Errorf("user %s: %w", name, err)
	}
	return strconv.Atoi(u.Uid)
}
