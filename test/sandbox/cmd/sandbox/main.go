// Command sandbox boots and manages throw-away Debian machines, see package
// sandbox.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"oci-mainpid-hook/test/sandbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// run carries out a command line, and returns the status to exit with. It writes to
// stderr why that is not 0.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	understood := false
	root := command()
	root.SetArgs(args)
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		understood = true
		if os.Geteuid() != 0 {
			return sandbox.ErrNotRoot
		}
		return nil
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !understood {
		fmt.Fprintf(stderr, "sandbox: %v (see %s --help)\n", err, cmd.CommandPath())
		return 2
	}
	return report(err, stderr)
}

// report returns the status to exit with, and writes to stderr why that is not 0, unless
// a command in a machine has done so.
func report(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	if status := exitStatus(0); errors.As(err, &status) {
		return int(status)
	}
	fmt.Fprintln(stderr, "sandbox:", strings.TrimPrefix(err.Error(), "sandbox: "))
	return 1
}

// exitStatus is how a command in a machine has ended, as a shell says it: the command's
// status, or 128 and the signal. The command has said why.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func command() *cobra.Command {
	suites := strings.Trim(fmt.Sprint(sandbox.Suites()), "[]")
	root := &cobra.Command{
		Use:   "sandbox",
		Short: "Boot and manage throw-away Debian machines",
		Long: "sandbox boots and manages throw-away Debian machines, and needs root.\n" +
			"Suites: " + suites + ".\n" +
			"Root file systems and disks are kept in $" + sandbox.CacheVariable + ",\nor else in /var/cache/oci-mainpid-sandbox.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q", args[0])
			}
			return errors.New("no command given")
		},
		Run: func(*cobra.Command, []string) {}, // never: Args fails
	}
	root.CompletionOptions.DisableDefaultCmd = true
	runCommand := &cobra.Command{
		Use:   "run NAME COMMAND [ARG...]",
		Short: "Run a command in a machine, as root",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runIn(cmd.Context(), args[0], args[1], args[2:]...)
		},
	}
	runCommand.Flags().SetInterspersed(false)
	root.AddCommand(&cobra.Command{
		Use:   "build SUITE...",
		Short: "Make the root file systems of the suites",
		Args:  cobra.MinimumNArgs(1),
		RunE:  func(cmd *cobra.Command, suites []string) error { return build(cmd.Context(), suites) },
	}, bootCommand(), runCommand, &cobra.Command{
		Use:   "shell NAME",
		Short: "Run a shell in a machine",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// A session and a terminal of the machine's own.
			return runIn(cmd.Context(), args[0], "systemd-run", "--quiet", "--pty", "--wait", "--collect",
				"--property=PAMName=login", "--setenv=TERM="+os.Getenv("TERM"), "/bin/bash", "-l")
		},
	}, &cobra.Command{
		Use:   "list",
		Short: "List the machines: name, suite, state, root directory",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return list() },
	}, powerOffCommand())
	return root
}

func build(ctx context.Context, suites []string) error {
	for _, s := range suites {
		if err := sandbox.Build(ctx, sandbox.Suite(s), os.Stderr); err != nil {
			return err
		}
	}
	return nil
}

func bootCommand() *cobra.Command {
	c := sandbox.Config{Progress: os.Stderr}
	cmd := &cobra.Command{
		Use:   "boot SUITE",
		Short: "Boot a machine, and print its name",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Suite = sandbox.Suite(args[0])
			m, err := sandbox.Boot(cmd.Context(), c)
			if err != nil {
				return err
			}
			fmt.Println(m.Name)
			return nil
		},
	}
	cmd.Flags().StringVar(&c.Name, "name", "", "`NAME` of the machine")
	cmd.Flags().BoolVar(&c.Whole, "whole", false, "with a kernel of its own, in qemu")
	return cmd
}

func runIn(ctx context.Context, machine, name string, args ...string) error {
	m, err := sandbox.Attach(machine)
	if err != nil {
		return err
	}
	cmd := m.Command(ctx, name, args...)
	if isTerminal(os.Stdin) {
		// The command has to be in the terminal's process group to read from
		// it, and gets the terminal's signals itself.
		cmd.SysProcAttr, cmd.Cancel, cmd.WaitDelay = nil, nil, 0
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return exitStatus(128 + int(ws.Signal()))
	}
	return exitStatus(exit.ExitCode())
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func list() error {
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

func powerOffCommand() *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use:   "poweroff NAME...",
		Short: "Power machines off, and remove all that is left of them",
		Args: func(_ *cobra.Command, names []string) error {
			if all == (len(names) > 0) {
				return errors.New("name machines, or give --all")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, names []string) error {
			if all {
				machines, err := sandbox.List()
				return errors.Join(err, powerOff(cmd.Context(), machines))
			}
			var machines []*sandbox.Machine
			for _, name := range names {
				m, err := sandbox.Attach(name)
				if err != nil {
					return err
				}
				machines = append(machines, m)
			}
			return powerOff(cmd.Context(), machines)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all machines, without a NAME")
	return cmd
}

func powerOff(ctx context.Context, machines []*sandbox.Machine) error {
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
