package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/cleanup"
	"oci-mainpid-hook/internal/terminal"
)

func cleanCommand(log *logrus.Logger) *cobra.Command {
	format, yes := "", false
	cmd := &cobra.Command{
		Use:   "clean [flags]",
		Short: "Show what units have left behind, and remove it",
		Long: `Shows containers, directories, drop-ins and users' managers that units have left
behind and that nothing needs any more. With --yes it removes them.`,
		Example:           "  oci-mainpid clean\n  oci-mainpid clean --yes",
		ValidArgsFunction: cobra.NoFileCompletions,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(fmt.Errorf("%d arguments, not none", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "table" && format != "json" {
				return usageError(fmt.Errorf("--format=%s is neither table nor json", format))
			}
			items, err := clean(cmd.Context(), yes, log)
			if items == nil {
				return err
			}
			if format == "json" {
				err = errors.Join(terminal.WriteJSON(cmd.OutOrStdout(), items), err)
			} else {
				writeItems(terminal.New(cmd.OutOrStdout()), items, yes)
			}
			for _, item := range items {
				if item.Error != "" {
					err = errors.Join(err, fmt.Errorf("%s %s: not removed: %s", item.Kind, item.Name, strings.ReplaceAll(item.Error, "\n", " ")))
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "remove what is shown")
	cmd.Flags().StringVar(&format, "format", "table", "`FORMAT` is table or json")
	mustRegister(cmd, "format", "table", "json")
	return cmd
}

// clean returns what is left over. With yes it has removed what it could.
func clean(ctx context.Context, yes bool, log *logrus.Logger) ([]cleanup.Item, error) {
	m, stop, err := connect(&ctx, log)
	if err != nil {
		return nil, err
	}
	defer stop()
	items, err := gather(ctx, func(ctx context.Context, g *gathering[cleanup.Item]) error {
		g.look("units and processes")
		items, err := cleanup.Find(ctx, m)
		g.add(items...)
		return err
	})
	if err != nil || !yes {
		return items, err
	}
	return items, cleanup.Remove(ctx, m, items)
}

// writeItems writes a table, which fits 80 columns.
func writeItems(o *terminal.Output, items []cleanup.Item, yes bool) {
	if len(items) == 0 {
		o.Printf("Nothing is left over.\n")
		return
	}
	table := terminal.Table{Columns: []terminal.Column{
		{Title: "KIND"}, {Title: "UNIT", Least: 12}, {Title: "USER", Least: 6}, {Title: "WHY", Least: 16}, {Title: "REMOVED"},
	}}
	for _, item := range items {
		removed := terminal.Cell{Text: "no"}
		switch {
		case item.Removed:
			removed = terminal.Cell{Text: "yes", Style: terminal.Good}
		case yes:
			removed = terminal.Cell{Text: "failed", Style: terminal.Bad}
		}
		table.Add(terminal.Cell{Text: string(item.Kind)}, terminal.Cell{Text: orDash(strings.TrimSuffix(item.Unit, ".service"))},
			terminal.Cell{Text: orDash(item.User)}, terminal.Cell{Text: item.Why}, removed)
		table.Note(terminal.Cell{Text: terminal.Clean(item.Name)})
	}
	table.Write(o)
	if !yes {
		o.Printf("To remove this, type: oci-mainpid clean --yes\n")
	}
}
