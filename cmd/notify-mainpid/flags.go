package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/message"
)

const usage = `Usage: notify-mainpid --user=NAME|UID [flags] MAINPIDFILE RESULTFILE
       notify-mainpid --prepare [--user=NAME|UID] [flags] MAINPIDFILE RESULTFILE
       notify-mainpid --forget [flags] MAINPIDFILE RESULTFILE
       notify-mainpid --reload [--prepare [--stand-in=TIME]] --user=NAME|UID [flags]
                      MAINPIDFILE RESULTFILE
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
  --reload          another container takes the place of the one that runs: with
                    --prepare make the file "next" beside MAINPIDFILE; without
                    it take the PID from there, and do nothing if it is empty
  --stand-in=TIME   with --reload --prepare: write the main process of before into
                    "next", and make a process of the user's the main process,
                    which does nothing, and ends after TIME
  --help            print this
  --version         print the version

See notify-mainpid(8).
`

// version is set by the Makefile, see VERSION there.
var version = "built without make, see go version -m"

// config is what the command line says.
type config struct {
	user        string
	timeout     time.Duration // 0: for ever
	require     conmonbridge.Requirement
	executables []string
	unit        string
	action      string // "", "prepare", "forget", "stand in" or "version"
	reload      bool   // of a reload, not of a start or stop
	standIn     time.Duration

	mainPIDFile, resultFile string

	log *message.Log
}

// parse reads the command line. Its errors are failures with exitUsage.
func parse(args []string) (config, error) {
	c := config{timeout: 30 * time.Second, require: conmonbridge.RequireConmon, executables: conmonbridge.Executables}
	c.log = &message.Log{Program: message.NotifyMainPID, Verbose: handover.IsVerbose(os.Getenv(handover.EnvVerbose))}
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
	set.BoolVar(&c.reload, "reload", false, "")
	set.DurationVar(&c.standIn, "stand-in", 0, "")
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
	case c.standIn > 0 && !c.reload:
		c.action = "stand in"
		return c, nil
	case set.NArg() != 2:
		err = fmt.Errorf("%d arguments, not MAINPIDFILE and RESULTFILE", set.NArg())
	case *prepare && *forget:
		err = errors.New("--prepare and --forget exclude each other")
	case c.reload && *forget:
		err = errors.New("--reload and --forget exclude each other")
	case c.reload && *prepare && c.user == "":
		err = errors.New("--user is missing")
	case c.standIn != 0 && (!*prepare || c.standIn < 0):
		err = errors.New("--stand-in is for --reload --prepare, with a time")
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

// about returns the unit or file that messages begin with.
func (c config) about() string {
	switch {
	case c.unit != "":
		return c.unit + ": "
	case c.mainPIDFile != "":
		return c.mainPIDFile + ": "
	}
	return ""
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
