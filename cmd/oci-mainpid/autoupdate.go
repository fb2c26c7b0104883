package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/autoupdate"
	"oci-mainpid-hook/internal/census"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/terminal"
)

func autoUpdateCommand(log *logrus.Logger) *cobra.Command {
	format := ""
	u := &autoupdate.Updater{Accounts: &account.Accounts{}}
	cmd := &cobra.Command{
		Use:   "auto-update [flags] [UNIT...]",
		Short: "Have units run newer images",
		Long: `Does for each UNIT, or for all units that run their container as a user, what
podman-auto-update(1) does for the units of a user's own manager: pulls newer images
for containers with AutoUpdate=, and reloads or restarts their units. A unit that
does not run with the newer image gets the image before.`,
		Example:           "  oci-mainpid auto-update --dry-run\n  oci-mainpid auto-update web.service",
		ValidArgsFunction: completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "table" && format != "json" {
				return usageError(fmt.Errorf("--format=%s is neither table nor json", format))
			}
			updates, err := autoUpdate(cmd.Context(), u, serviceNames(args), log)
			if err != nil {
				return err
			}
			if format == "json" {
				err = terminal.WriteJSON(cmd.OutOrStdout(), updates)
			} else {
				writeUpdates(terminal.New(cmd.OutOrStdout()), updates)
			}
			return errors.Join(err, updateErrors(updates))
		},
	}
	cmd.Flags().BoolVar(&u.DryRun, "dry-run", false, "show what would be updated, change nothing")
	u.Rollback = true
	cmd.Flags().Func("rollback", "whether a unit that does not run with the newer image gets the image before: `WORD` is yes (the default) or no", func(word string) error {
		if u.Rollback = word == "yes"; !u.Rollback && word != "no" {
			return errors.New("is neither yes nor no")
		}
		return nil
	})
	cmd.Flags().StringVar(&format, "format", "table", "`FORMAT` is table or json")
	mustRegister(cmd, "format", "table", "json")
	mustRegister(cmd, "rollback", "yes", "no")
	return cmd
}

// autoUpdate updates the units with these names, or all if there are none.
func autoUpdate(ctx context.Context, u *autoupdate.Updater, names []string, log *logrus.Logger) ([]autoupdate.Update, error) {
	m, stop, err := connect(&ctx, log)
	if err != nil {
		return nil, err
	}
	defer stop()
	if !u.DryRun {
		dir, err := os.Open(handover.Dir) // which only root can open
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, fmt.Errorf("another oci-mainpid auto-update runs (%s is locked)", handover.Dir)
		}
	}
	units, err := unitsToUpdate(ctx, m, names)
	if err != nil {
		return nil, err
	}
	stderr := terminal.New(os.Stderr)
	steps := terminal.NewSteps(stderr)
	defer steps.End()
	u.Manager = m
	u.Say = func(unit, text string) {
		steps.Say(terminal.Clean(unit + ": " + text))
		if !stderr.Terminal {
			about(log, unit).Debug(text)
		}
	}
	updates := u.Run(ctx, units)
	for _, name := range names {
		if !slices.ContainsFunc(updates, func(u autoupdate.Update) bool { return u.Unit == name }) {
			about(log, name).Warn("no container with AutoUpdate= runs")
		}
	}
	return updates, nil
}

// unitsToUpdate returns the active units of users that have a container, of these names
// if there are any.
func unitsToUpdate(ctx context.Context, m *manager.Manager, names []string) ([]autoupdate.Unit, error) {
	all := len(names) == 0
	if all {
		var err error
		if names, err = m.Ours(ctx); err != nil {
			return nil, err
		}
	}
	var units []autoupdate.Unit
	uids, executables := map[int]bool{}, slices.Clone(conmonbridge.Executables)
	for _, name := range names {
		u, err := m.Unit(ctx, name)
		switch {
		case err != nil && all:
			continue // it has just gone
		case err != nil:
			return nil, err
		case !all && (!u.Ours() || u.UID <= 0):
			return nil, fmt.Errorf("%s: does not run its container as a user: type podman auto-update", name)
		case u.ActiveState == "active" && u.Ours() && u.UID > 0:
			units = append(units, autoupdate.Unit{Unit: u})
			uids[u.UID] = true
			executables = append(executables, u.Conmon()...)
		}
	}
	processes, err := census.Take(ctx, uids, executables)
	if err != nil {
		return nil, err
	}
	for i, u := range units {
		start := census.Start{Unit: u.Name, UID: u.UID, InvocationID: u.InvocationID, MainPID: u.MainPID, ControlGroup: u.ControlGroup}
		units[i].Containers, _ = start.Of(processes.Conmons)
	}
	return slices.DeleteFunc(units, func(u autoupdate.Unit) bool { return len(u.Containers) == 0 }), nil
}

// updateErrors returns an error with a line for each unit that could not be updated.
func updateErrors(updates []autoupdate.Update) error {
	var errs []error
	said := map[string]bool{}
	for _, u := range updates {
		if u.Error == "" || said[u.Unit] {
			continue
		}
		said[u.Unit] = true
		state := "not updated"
		if u.Updated == autoupdate.RolledBack {
			state = "rolled back to the image before"
		}
		// A line each.
		errs = append(errs, fmt.Errorf("%s: %s: %s", u.Unit, state, strings.ReplaceAll(u.Error, "\n", " ")))
	}
	return errors.Join(errs...)
}

// writeUpdates writes a table, which fits 80 columns.
func writeUpdates(o *terminal.Output, updates []autoupdate.Update) {
	if len(updates) == 0 {
		io.WriteString(o, "No container of a user's unit with AutoUpdate= runs.\n")
		return
	}
	table := terminal.Table{Columns: []terminal.Column{
		{Title: "UNIT", Least: 12}, {Title: "USER", Least: 6}, {Title: "CONTAINER", Least: 8}, {Title: "IMAGE", Least: 16}, {Title: "POLICY"}, {Title: "UPDATED"},
	}}
	styles := map[autoupdate.Outcome]terminal.Style{
		autoupdate.Updated: terminal.Good, autoupdate.Pending: terminal.Warn, autoupdate.Failed: terminal.Bad, autoupdate.RolledBack: terminal.Bad,
	}
	for _, u := range updates {
		table.Add(terminal.Cell{Text: strings.TrimSuffix(terminal.Clean(u.Unit), ".service")}, terminal.Cell{Text: terminal.Clean(u.User)},
			terminal.Cell{Text: orDash(u.Container)}, terminal.Cell{Text: orDash(u.Image)}, terminal.Cell{Text: orDash(u.Policy)},
			terminal.Cell{Text: string(u.Updated), Style: styles[u.Updated]})
	}
	table.Write(o)
}

// orDash returns clean text for a cell.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return terminal.Clean(text)
}
