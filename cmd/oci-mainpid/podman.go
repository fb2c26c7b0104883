package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/asuser"
)

// exitStatus is the error of a command that ended with that status and has said why.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func podmanCommand(log *logrus.Logger) *cobra.Command {
	user := ""
	cmd := &cobra.Command{
		Use:   "podman {UNIT|--user=NAME} [--] ARGUMENT...",
		Short: "Run podman as the user of a unit",
		Long: `Runs podman with the ARGUMENTs as the user of UNIT, or as the user NAME, in the
environment that the user's units have and outside of any session. Terminal, exit
status and signals are podman's.`,
		Example:           "  oci-mainpid podman web.service ps\n  oci-mainpid podman web.service exec -it systemd-web sh\n  podman save IMAGE | oci-mainpid podman --user=web load",
		ValidArgsFunction: completePodman(&user),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := asUser(cmd.Context(), user, args, log)
			if err != nil {
				return err
			}
			c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
			status, err := c.Run(cmd.Context())
			switch {
			case errors.Is(err, exec.ErrNotFound):
				return errors.New("systemd-run is missing: install systemd")
			case err != nil:
				return fmt.Errorf("run podman as user %s: %w", c.Account.Name, err)
			case status != 0:
				return exitStatus(status)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "the user `NAME`, or a UID, in place of a unit's")
	cmd.Flags().SetInterspersed(false) // what follows UNIT is podman's
	return cmd
}

// asUser returns the command that runs podman. args are those of the command line:
// UNIT, unless a user is given, then podman's.
func asUser(ctx context.Context, user string, args []string, log *logrus.Logger) (c asuser.Command, err error) {
	if user == "" {
		if len(args) == 0 {
			return c, usageError(errors.New("neither UNIT nor --user=NAME given"))
		}
		m, stop, err := connect(&ctx, log)
		if err != nil {
			return c, err
		}
		defer stop()
		u, err := m.Unit(ctx, serviceName(args[0]))
		if err != nil {
			return c, err
		}
		if u.User == "" || u.User == "root" || u.User == "0" {
			return c, fmt.Errorf("%s: has no User=: its containers are root's: type podman without oci-mainpid, or give --user=NAME", u.Name)
		}
		user, c.Env = u.User, u.PodmanEnvironment()
		args = args[1:]
	} else if os.Geteuid() != 0 {
		return c, errors.New("must be run as root, who may run a program as another user")
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return c, usageError(errors.New("no ARGUMENT for podman given, such as ps"))
	}
	c.Args = append([]string{"podman"}, args...)
	var accounts account.Accounts
	c.Account, err = accounts.Lookup(ctx, user)
	if errors.As(err, new(*account.NoIDsError)) {
		err = nil // podman says so, where it needs them
	}
	return c, err
}

// completePodman completes UNIT, then what podman completes itself, as the user.
func completePodman(user *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if *user == "" && len(args) == 0 {
			return completeUnits(cmd, args, prefix)
		}
		ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
		defer cancel()
		first := 1
		if *user != "" {
			first = 0
		}
		words := append([]string{"__completeNoDesc"}, append(slices.Clone(args[first:]), prefix)...)
		c, err := asUser(ctx, *user, append(slices.Clone(args[:first]), words...), logrus.New())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var out bytes.Buffer
		c.Stdout = &out
		if _, err := c.Run(ctx); err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		// The last line is the directive, as in ":4".
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		directive := cobra.ShellCompDirectiveNoFileComp
		if n := len(lines) - 1; strings.HasPrefix(lines[n], ":") {
			fmt.Sscanf(lines[n], ":%d", &directive)
			lines = lines[:n]
		}
		return lines, directive
	}
}
