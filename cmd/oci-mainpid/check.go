package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/diagnosis"
	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/internal/terminal"
	"oci-mainpid-hook/internal/unitfile"
)

func checkCommand(log *message.Log) *cobra.Command {
	format := ""
	cmd := &cobra.Command{
		Use:   "check [flags] [UNIT...]",
		Short: "Tell whether this machine and units can work, and what to type where not",
		Long: `Tells whether this machine, and each UNIT, or all units that run their container
as a user, can work, and what to type where not. It changes nothing.

The exit status is 1 if something would not work.`,
		Example:           "  oci-mainpid check\n  oci-mainpid check web.service",
		ValidArgsFunction: completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "text" && format != "json" {
				return usageError(fmt.Errorf("--format=%s is neither text nor json", format))
			}
			names := serviceNames(args)
			for _, name := range names {
				if err := unitfile.CheckServiceName(name); err != nil {
					return usageError(err)
				}
				if unitfile.IsTemplate(name) {
					return usageError(fmt.Errorf("%s is a template, name one of its instances", name))
				}
			}
			return check(cmd.Context(), cmd.OutOrStdout(), names, format, log)
		},
	}
	cmd.Flags().StringVar(&format, "format", "text", "`FORMAT` is text or json")
	mustRegister(cmd, "format", "text", "json")
	return cmd
}

// report is what check --format=json writes.
type report struct {
	Works    bool              `json:"works"`
	Failures int               `json:"failures"`
	Warnings int               `json:"warnings"`
	Points   []diagnosis.Point `json:"points"`
}

func check(ctx context.Context, w io.Writer, names []string, format string, log *message.Log) error {
	m, stop, err := connect(&ctx, log)
	if err != nil {
		return err
	}
	defer stop()
	reader, err := diagnosis.NewReader(ctx, m)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		if names, err = m.Ours(ctx); err != nil {
			return err
		}
		for _, name := range reader.Wanted() {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	points := reader.Machine().Points()
	log.Step("looking at these units: %s", strings.Join(names, " "))
	for _, name := range names {
		points = append(points, reader.Unit(ctx, name).Points()...)
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	failures, warnings := diagnosis.Failures(points)
	if format == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report{failures == 0, failures, warnings, points})
	} else {
		o := terminal.New(w)
		diagnosis.Write(o, points, log.Verbose)
		if len(names) == 0 {
			o.Printf("no unit runs its container as a user yet: oci-mainpid generate --help\n")
		}
	}
	if err == nil && failures > 0 {
		err = fmt.Errorf("%d of %d points would keep it from working", failures, len(points))
	}
	return err
}
