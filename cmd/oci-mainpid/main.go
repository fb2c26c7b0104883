// Command oci-mainpid lets services run their podman containers as a user:
// oci-mainpid(8). Called oci-mainpid-generator it is a systemd generator that
// does the same for Quadlet files: oci-mainpid-generator(8).
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// Exit statuses, as in oci-mainpid(8).
const (
	exitFailed = 1
	exitUsage  = 2
)

// errUsage marks what is wrong with the command line rather than with a file.
var errUsage = errors.New("see oci-mainpid --help")

func usageError(err error) error { return fmt.Errorf("%w (%w)", err, errUsage) }

func main() {
	if filepath.Base(os.Args[0]) == generatorName {
		os.Exit(generator(os.Args[1:]))
	}
	err := command().Execute()
	if err == nil {
		return
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(os.Stderr, "oci-mainpid: %s\n", strings.TrimSuffix(line, "\n"))
	}
	if errors.Is(err, errUsage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailed)
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "oci-mainpid",
		Short:         "Run the containers of system services as a user",
		Long:          "oci-mainpid lets a system service run its podman container as a user,\nwith the container's conmon as the service's main process.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(fmt.Errorf("unknown command %q", args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return usageError(errors.New("no command given"))
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError(err) })
	root.AddCommand(generateCommand(), checkCommand(), statusCommand(), explainCommand(), refuseCommand())
	return root
}

// refuseCommand is what a unit runs that must not start. The drop-ins of package
// quadlet name it.
func refuseCommand() *cobra.Command {
	unit := ""
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
			return fmt.Errorf("%s: not started: %s", unit, args[0])
		},
	}
	cmd.Flags().StringVar(&unit, "unit", "unit", "the unit's name")
	return cmd
}
