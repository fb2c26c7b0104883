// Command sandbox boots and manages throw-away Debian machines, see package
// sandbox.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/test/sandbox"
)

const usage = `Usage:
  sandbox build SUITE...              make the root file systems of the suites
  sandbox boot [--name NAME] [--whole] SUITE
                                      boot a machine and print its name; --whole: with
                                      a kernel of its own, in qemu
  sandbox run NAME COMMAND [ARG...]   run a command in it, as root
  sandbox shell NAME                  run a shell in it
  sandbox list                        list the machines: name, suite, state, root directory
  sandbox poweroff NAME... | --all    power machines off and remove all that is left of them

Suites: %s.
Root file systems and disks are kept in $%s,
or else in /var/cache/oci-mainpid-sandbox. All of this needs root.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		os.Exit(exitStatus(exit))
	case errors.Is(err, errUsage):
		printUsage(os.Stderr)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "sandbox:", strings.TrimPrefix(err.Error(), "sandbox: "))
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func printUsage(w *os.File) {
	var names []string
	for _, s := range sandbox.Suites() {
		names = append(names, string(s))
	}
	fmt.Fprintf(w, usage, strings.Join(names, ", "), sandbox.CacheVariable)
}

// exitStatus is a shell's: that of the command, or 128 and the signal.
func exitStatus(err *exec.ExitError) int {
	if ws, ok := err.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return err.ExitCode()
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	name, args := args[0], args[1:]
	switch name {
	case "-h", "-help", "--help", "help":
		printUsage(os.Stdout)
		return nil
	}
	if os.Geteuid() != 0 {
		return sandbox.ErrNotRoot
	}
	switch name {
	case "build":
		return build(ctx, args)
	case "boot":
		return boot(ctx, args)
	case "run":
		return command(ctx, args)
	case "shell":
		if len(args) != 1 {
			return errUsage
		}
		// A session and a terminal of the machine's own.
		return command(ctx, []string{args[0], "systemd-run", "--quiet", "--pty", "--wait", "--collect",
			"--property=PAMName=login", "--setenv=TERM=" + os.Getenv("TERM"), "/bin/bash", "-l"})
	case "list":
		return list(args)
	case "poweroff":
		return powerOff(ctx, args)
	}
	return errUsage
}

func build(ctx context.Context, suites []string) error {
	if len(suites) == 0 {
		return errUsage
	}
	for _, s := range suites {
		if err := sandbox.Build(ctx, sandbox.Suite(s), os.Stderr); err != nil {
			return err
		}
	}
	return nil
}

func boot(ctx context.Context, args []string) error {
	var c sandbox.Config
	flags := flag.NewFlagSet("boot", flag.ContinueOnError)
	flags.SetOutput(os.Stderr)
	flags.StringVar(&c.Name, "name", "", "name of the machine")
	flags.BoolVar(&c.Whole, "whole", false, "a kernel of its own")
	// The suite may stand before the flags and after them.
	for len(args) > 0 {
		if !strings.HasPrefix(args[0], "-") {
			if c.Suite != "" {
				return errUsage
			}
			c.Suite, args = sandbox.Suite(args[0]), args[1:]
			continue
		}
		if flags.Parse(args) != nil {
			return errUsage
		}
		args = flags.Args()
	}
	if c.Suite == "" {
		return errUsage
	}
	c.Progress = os.Stderr
	m, err := sandbox.Boot(ctx, c)
	if err != nil {
		return err
	}
	fmt.Println(m.Name)
	return nil
}

func command(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	m, err := sandbox.Attach(args[0])
	if err != nil {
		return err
	}
	cmd := m.Command(ctx, args[1], args[2:]...)
	if isTerminal(os.Stdin) {
		// The command has to be in the terminal's process group to read from
		// it, and gets the terminal's signals itself.
		cmd.SysProcAttr, cmd.Cancel, cmd.WaitDelay = nil, nil, 0
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func list(args []string) error {
	if len(args) != 0 {
		return errUsage
	}
	machines, err := sandbox.List()
	if err != nil {
		return err
	}
	for _, m := range machines {
		state := "ended"
		if m.Running() {
			state = "running"
		}
		fmt.Printf("%s\t%s\t%s\t%s\n", m.Name, m.Suite, state, m.Root())
	}
	return nil
}

func powerOff(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	var machines []*sandbox.Machine
	if len(args) == 1 && args[0] == "--all" {
		var err error
		if machines, err = sandbox.List(); err != nil {
			return err
		}
	} else {
		for _, name := range args {
			m, err := sandbox.Attach(name)
			if err != nil {
				return err
			}
			machines = append(machines, m)
		}
	}
	errs := make(chan error)
	for _, m := range machines {
		go func() { errs <- m.PowerOff(ctx) }()
	}
	var err error
	for range machines {
		err = errors.Join(err, <-errs)
	}
	return err
}
