// Command notify-mainpid is what a unit runs as root, ExecStartPost=+, to make
// the conmon of its container the unit's main process: notify-mainpid(8).
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/confine"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/message"
)

// Exit statuses, as in notify-mainpid(8).
const (
	exitRefused = 1 // the PID was refused, or a file could not be used
	exitUsage   = 2
	exitNoPID   = 3 // no PID came
	exitManager = 4 // systemd could not be told
)

func main() {
	c, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return
	}
	if err == nil && c.action == "" {
		err = confineSelf()
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

// confineSelf gives up what waiting and verifying do not need. Two capabilities
// stay: to read the process of another user, and that user's mainpid file.
func confineSelf() error {
	if err := confine.Bound(); err != nil {
		return err
	}
	return confine.Privileges(1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH)
}

// run does what the command line says.
func run(c config) error {
	if c.action != "" && c.standIn == 0 {
		// Finish: that takes a millisecond.
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
		if c.reload {
			return prepareReload(c, owner)
		}
		if err := endLeftOver(c); err != nil {
			return err
		}
		c.log.Step("making %s, of UID %d, and %s", c.mainPIDFile, owner, c.resultFile)
		return handover.Prepare(c.mainPIDFile, c.resultFile, owner)
	case "stand in":
		standIn(c.standIn)
	case "forget":
		c.log.Step("removing %s and %s", c.mainPIDFile, c.resultFile)
		// The record stays where something is left, for the next start.
		if err := endLeftOver(c); err != nil {
			return err
		}
		return handover.Forget(c.mainPIDFile, c.resultFile)
	}
	if c.reload {
		return reload(c)
	}
	files, err := handover.OpenHandover(c.mainPIDFile, c.resultFile)
	if err != nil {
		return err
	}
	defer files.Close()
	err = notify(c, files, func(r handover.Record) error { return files.Record(r) })
	return errors.Join(err, files.Answer(err))
}

// failure is an error with the exit status for it.
type failure struct {
	status int
	error
}

func (f failure) Unwrap() error { return f.error }

// errRefused says that a check failed: the process in the mainpid file is not what
// it has to be, or the environment is not systemd's.
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
