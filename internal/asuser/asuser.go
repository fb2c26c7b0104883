// Package asuser runs a command as a user, as a unit of the system does: with the
// user's runtime directory and manager, without a session. It has systemd-run(1)
// do that.
package asuser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/account"
)

// Command is a command to run as a user.
type Command struct {
	Account account.Account
	// Env are variables in addition to HOME, USER, XDG_RUNTIME_DIR and those of the
	// user's bus.
	Env []string
	// Args are the program and its arguments.
	Args []string
	// Stdin, Stdout and Stderr are as in package exec. The user's process never gets a
	// terminal of root's, which it might keep to read what root types later: if all
	// three are terminals, systemd-run gives it one of its own.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Timeout bounds how long the command runs, unless it is 0. The end of the context
	// then ends the command, too.
	Timeout time.Duration
}

// runs counts the commands that this process has run.
var runs atomic.Int32

// unitName returns a name for the transient unit of a command.
func unitName() string {
	return strings.Replace(Units(os.Getpid()), "*", fmt.Sprint(runs.Add(1)), 1)
}

// Units is a pattern of the names of the transient units of a process with that PID.
func Units(pid int) string { return fmt.Sprintf("oci-mainpid-podman-%d-*.service", pid) }

// Run runs the command in a transient unit, which starts the user's manager if it
// does not run, and returns the command's exit status. Signals that would end this
// process are sent to the command; if it then ends with success, the status is 128 and
// the signal's number. The error says that the command was not run.
func (c Command) Run(ctx context.Context) (status int, err error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	return c.run(ctx, signals)
}

// run is Run with the signals to send to the command.
func (c Command) run(ctx context.Context, signals <-chan os.Signal) (status int, err error) {
	all := isTerminal(c.Stdin) && isTerminal(c.Stdout) && isTerminal(c.Stderr)
	unit := unitName()
	cmd := exec.CommandContext(ctx, "systemd-run", c.arguments(unit, all)...)
	if c.Timeout > 0 {
		// A process that has left the unit may keep the pipes.
		cmd.WaitDelay = stopTimeout
		cmd.Cancel = func() error { return exec.Command("systemctl", "stop", "--quiet", "--no-block", unit).Run() }
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	if !all {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = input(c.Stdin), output(c.Stdout), output(c.Stderr)
		// The terminal sends its signals to this process alone.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	passed := make(chan int, 1)
	go func() {
		last := 0
		for {
			select {
			case s := <-signals:
				last = int(s.(syscall.Signal))
				// If the unit is not there yet, or no longer, there is nobody to tell.
				exec.Command("systemctl", "kill", "--quiet", "--kill-whom=main", fmt.Sprintf("--signal=%d", last), unit).Run()
			case <-ended:
				passed <- last
				return
			}
		}
	}()
	err = cmd.Wait()
	close(ended)
	last := <-passed
	exit := (*exec.ExitError)(nil)
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		err = nil
	case err == nil && last != 0:
		// For systemd a service that ends by such a signal ends well.
		return 128 + last, nil
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	}
	return 0, err
}

// arguments returns the arguments of systemd-run.
func (c Command) arguments(unit string, terminal bool) []string {
	args := []string{
		"--quiet", "--collect", "--wait", "--service-type=exec", "--unit=" + unit,
		"--description=" + c.Args[0] + " of user " + c.Account.Name,
		"--property=User=" + c.Account.Name,
		"--property=Wants=" + c.Account.Manager(), "--property=After=" + c.Account.Manager(),
		"--setenv=HOME=" + c.Account.Home, "--setenv=USER=" + c.Account.Name,
		"--setenv=XDG_RUNTIME_DIR=" + c.Account.RuntimeDir(),
		"--setenv=DBUS_SESSION_BUS_ADDRESS=unix:path=" + c.Account.RuntimeDir() + "/bus",
	}
	if c.Timeout > 0 {
		args = append(args, "--property=RuntimeMaxSec="+c.Timeout.String(), "--property=TimeoutStopSec="+stopTimeout.String())
	}
	if dir, err := os.Getwd(); err == nil {
		// With "-" it does not matter that the user may not enter it.
		args = append(args, "--property=WorkingDirectory=-"+dir)
	}
	for _, variable := range c.Env {
		args = append(args, "--setenv="+variable)
	}
	if terminal {
		args = append(args, "--pty", "--setenv=TERM="+os.Getenv("TERM"))
	} else {
		args = append(args, "--pipe")
	}
	args = append(args, "--", c.Args[0])
	for _, argument := range c.Args[1:] {
		// systemd replaces variables in a command line (systemd.service(5)).
		args = append(args, strings.ReplaceAll(argument, "$", "$$"))
	}
	return args
}

// stopTimeout is how long a command may take to end after Timeout.
const stopTimeout = 5 * time.Second

// maxOutput bounds what Output keeps, in bytes.
const maxOutput = 4 << 20

// Output runs the command without signals, and returns the first 4 MiB of what it wrote
// to standard output and to standard error. Unless each is nil, it is called with the
// last line of each piece of standard error. The error is the last line of standard
// error if the command did not succeed, and "interrupted" if ctx has ended.
func (c Command) Output(ctx context.Context, each func(line string)) (stdout, stderr []byte, err error) {
	var out, said Buffer
	said.each = each
	c.Stdout, c.Stderr = &out, &said
	began := time.Now()
	status, err := c.run(ctx, nil)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err == nil && status != 0 {
		lines := strings.Split(strings.TrimSpace(string(said.text)), "\n")
		last := strings.TrimPrefix(lines[len(lines)-1], "Error: ")
		switch {
		case c.Timeout > 0 && time.Since(began) >= c.Timeout:
			err = fmt.Errorf("not done within %v", c.Timeout)
		case last == "":
			err = fmt.Errorf("exit status %d", status)
		default:
			err = errors.New(last)
		}
	}
	return out.text, said.text, err
}

// Buffer keeps the first 4 MiB of what a user's program writes. It calls each with the last
// whole line of what is written.
type Buffer struct {
	text, line []byte
	each       func(line string)
}

// Write implements io.Writer. It never fails.
func (o *Buffer) Write(b []byte) (int, error) {
	o.text = append(o.text, b[:min(len(b), maxOutput-len(o.text))]...)
	if o.each != nil {
		o.line = append(o.line, b...)
		o.line = o.line[max(0, len(o.line)-1000):]
		if end := bytes.LastIndexByte(o.line, '\n'); end >= 0 {
			start := bytes.LastIndexByte(o.line[:end], '\n') + 1
			o.each(string(o.line[start:end]))
			o.line = o.line[end+1:]
		}
	}
	return len(b), nil
}

// String returns what was kept.
func (o *Buffer) String() string { return string(o.text) }

// input returns what the command reads: of a terminal nothing, for another program
// of a pipeline, such as less(1), reads from it.
func input(r io.Reader) io.Reader {
	if isTerminal(r) {
		return nil
	}
	return r
}

// output returns where the command writes to: to a terminal through a pipe.
func output(w io.Writer) io.Writer {
	if isTerminal(w) {
		return struct{ io.Writer }{w}
	}
	return w
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
