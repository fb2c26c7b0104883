package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/confine"
	"oci-mainpid-hook/internal/diagnosis"
	"oci-mainpid-hook/internal/terminal"
	"oci-mainpid-hook/internal/unitfile"
)

func checkCommand(log *logrus.Logger) *cobra.Command {
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

func check(ctx context.Context, w io.Writer, names []string, format string, log *logrus.Logger) error {
	m, stop, err := connect(&ctx, log)
	if err != nil {
		return err
	}
	defer stop()
	if err := confine.Bound(); err != nil {
		return err
	}
	points, err := gather(ctx, func(ctx context.Context, g *gathering[diagnosis.Point]) error {
		g.look("this machine")
		reader, err := diagnosis.NewReader(ctx, m)
		if err != nil {
			return err
		}
		g.add(reader.Machine().Points()...)
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
		log.Debugf("looking at these units: %s", strings.Join(names, " "))
		for _, name := range names {
			g.look(name)
			g.add(reader.Unit(ctx, name).Points()...)
		}
		if len(names) == 0 {
			g.add(diagnosis.NoUnits)
		}
		return nil
	})
	if late := (lateError{}); errors.As(err, &late) {
		points = append(points, diagnosis.Point{Level: diagnosis.Fail, What: "time", Found: late.Error(), Fix: "oci-mainpid check UNIT, one after the other"})
		err = nil
	}
	if err != nil {
		return err
	}
	failures, warnings := diagnosis.Failures(points)
	if format == "json" {
		err = terminal.WriteJSON(w, report{failures == 0, failures, warnings, points})
	} else {
		diagnosis.Write(terminal.New(w), points, log.IsLevelEnabled(logrus.DebugLevel))
	}
	if err == nil && failures > 0 {
		err = fmt.Errorf("%d of %d points would keep it from working", failures, len(points))
	}
	return err
}
