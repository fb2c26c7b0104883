// Command oci-mainpid lets services run their podman containers as a user:
// oci-mainpid(8). Called oci-mainpid-generator it is a systemd generator that
// does the same for Quadlet files: oci-mainpid-generator(8).
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/internal/printable"
	"oci-mainpid-hook/quadlet"
)

// Exit statuses, as in oci-mainpid(8).
const (
	exitFailed = 1
	exitUsage  = 2
)

// errUsage marks errors of the command line, which have the exit status exitUsage.
var errUsage = errors.New("see oci-mainpid --help")

// version is set by the Makefile, see VERSION there.
var version = "built without make, see go version -m"

func usageError(err error) error { return fmt.Errorf("%w (%w)", err, errUsage) }

func main() {
	if filepath.Base(os.Args[0]) == generatorName {
		os.Exit(generator(os.Args[1:]))
	}
	log := newLog(os.Stderr)
	err := dispatch(command(log))
	if err == nil {
		return
	}
	if refused := (notStarted{}); errors.As(err, &refused) {
		journal := message.Log{Program: message.OCIMainPID, Unit: refused.unit}
		journal.Add(message.InvocationID, os.Getenv("INVOCATION_ID"))
		journal.Say(message.NotStarted, err.Error(), nil)
		os.Exit(exitFailed)
	}
	if status := exitStatus(0); errors.As(err, &status) {
		os.Exit(int(status))
	}
	for _, line := range printable.Lines(err.Error()) {
		log.Error(line)
	}
	if errors.Is(err, errUsage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailed)
}

// dispatch is root.Execute, but completion without a shell, or with an unknown one, fails.
func dispatch(root *cobra.Command) error {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(errors.New("no SHELL given"))
			}
			return usageError(fmt.Errorf("unknown shell %q", args[0]))
		}
	}
	return root.Execute()
}

func command(log *logrus.Logger) *cobra.Command {
	// cobra's own --version comes with a -v, and its template with 1.4 MB.
	printVersion := false
	root := &cobra.Command{
		Use:           "oci-mainpid",
		Short:         "Run the containers of system services as a user",
		Long:          "oci-mainpid lets a system service run its podman container as a user,\nwith the container's conmon as the service's main process.",
		SilenceErrors: true,
		SilenceUsage:  true,

		ValidArgsFunction: cobra.NoFileCompletions, // after a word that is no command
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(fmt.Errorf("unknown command %q", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if printVersion {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "oci-mainpid", version)
				return err
			}
			return usageError(errors.New("no command given"))
		},
	}
	root.Flags().BoolVar(&printVersion, "version", false, "print the version")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError(err) })
	addLogFlags(root, log)
	root.AddCommand(generateCommand(log), checkCommand(log), statusCommand(log), explainCommand(log), podmanCommand(log), autoUpdateCommand(log), runCommand(log), userCommand(), adoptCommand(log), cleanCommand(log), refuseCommand(), quadletFilesCommand(), replaceCommand())
	return root
}

// notStarted is the error of the command refuse.
type notStarted struct{ unit, reason string }

func (e notStarted) Error() string { return e.unit + ": not started: " + e.reason }

// refuseCommand returns the command that a refused unit runs: it fails and logs why.
// dropin.Refusal writes it into the unit.
func refuseCommand() *cobra.Command {
	refused := notStarted{}
	cmd := &cobra.Command{
		Use:    "refuse --unit=NAME REASON",
		Short:  "Fail, saying why",
		Hidden: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError(fmt.Errorf("%d arguments, not one REASON", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			refused.reason = args[0]
			return refused
		},
	}
	cmd.Flags().StringVar(&refused.unit, "unit", "unit", "the unit's name")
	return cmd
}

// quadletFilesCommand returns a command for the packages' scripts.
func quadletFilesCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "quadlet-files",
		Short:  "Print the paths of the Quadlet files that ask for a user",
		Hidden: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(fmt.Errorf("%d arguments, not none", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, path := range quadlet.AskingFiles(quadlet.SearchDirs()) {
				fmt.Fprintln(cmd.OutOrStdout(), path)
			}
			return nil
		},
	}
}
