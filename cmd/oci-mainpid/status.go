package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/confine"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/status"
	"oci-mainpid-hook/internal/terminal"
)

func statusCommand(log *logrus.Logger) *cobra.Command {
	format, watch := "", false
	cmd := &cobra.Command{
		Use:   "status [flags] [UNIT...]",
		Short: "Show the units that run their container as a user, and their main processes",
		Long: `Shows each UNIT, or all units that run their container as a user: as systemd has
it and as podman has it, and whether systemd's main process is podman's conmon.`,
		Example:           "  oci-mainpid status\n  oci-mainpid status --watch web.service",
		ValidArgsFunction: completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			write, err := statusWriter(format, cmd.OutOrStdout())
			if err != nil {
				return err
			}
			if watch && format == "prometheus" {
				return usageError(errors.New("--watch goes with the formats table and json only"))
			}
			return showStatus(cmd.Context(), serviceNames(args), watch, write, log)
		},
	}
	cmd.Flags().StringVar(&format, "format", "table", "`FORMAT` is table, json, or prometheus for node_exporter's textfile collector")
	cmd.Flags().BoolVar(&watch, "watch", false, "show again whenever something changes, until interrupted")
	mustRegister(cmd, "format", "table", "json", "prometheus")
	return cmd
}

// clearScreen moves the cursor to the top left and erases the screen,
// console_codes(4).
const clearScreen = "\x1b[H\x1b[2J"

// statusWriter returns the function that writes the format.
func statusWriter(format string, w io.Writer) (func(services []status.Service, watch bool) error, error) {
	switch format {
	case "table":
		o := terminal.New(w)
		return func(services []status.Service, watch bool) error {
			o.Resize()
			var b bytes.Buffer
			page := *o
			page.Writer = &b
			if watch && o.Terminal {
				b.WriteString(clearScreen)
			}
			status.WriteTable(&page, services, time.Now())
			if watch && !o.Terminal {
				b.WriteByte('\n')
			}
			_, err := w.Write(b.Bytes())
			return err
		}, nil
	case "json":
		return func(services []status.Service, watch bool) error {
			if !watch {
				return terminal.WriteJSON(w, services)
			}
			var b bytes.Buffer
			err := terminal.WriteJSON(&b, services)
			if err == nil { // a line for each change
				var line bytes.Buffer
				err = json.Compact(&line, b.Bytes())
				b = line
			}
			if err == nil {
				_, err = w.Write(append(b.Bytes(), '\n'))
			}
			return err
		}, nil
	case "prometheus":
		return func(services []status.Service, _ bool) error { return status.WritePrometheus(w, services) }, nil
	}
	return nil, usageError(fmt.Errorf("--format=%s is none of table, json, prometheus", format))
}

// settle is how long to wait for more changes after one, so that they are shown
// together.
const settle = 100 * time.Millisecond

func showStatus(ctx context.Context, names []string, watch bool, write func([]status.Service, bool) error, log *logrus.Logger) error {
	m, stop, err := connect(&ctx, log)
	if err != nil {
		return err
	}
	defer stop()
	read := func() ([]status.Service, error) {
		return gather(ctx, func(ctx context.Context, g *gathering[status.Service]) error {
			leftOut, err := status.Read(ctx, m, names, g.look, g.add)
			for _, l := range leftOut {
				log.Warn(l)
			}
			return err
		})
	}
	if !watch {
		if err := confine.Bound(); err != nil {
			return err
		}
		services, err := read()
		if err == nil || errors.As(err, new(lateError)) {
			err = errors.Join(write(services, false), err)
		}
		return err
	}
	changes, err := m.Watch(ctx)
	if err != nil {
		return err
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	var shown []status.Service
	for {
		services, err := read()
		if err == nil && (shown == nil || !reflect.DeepEqual(services, shown)) {
			err = write(services, true)
		}
		if ctx.Err() != nil {
			return nil // --watch ends with SIGINT
		}
		if err != nil {
			return err
		}
		shown = services
		switch await(ctx, m, services, len(names) == 0, changes, resized) {
		case again:
		case redraw:
			shown = nil
		case interrupted:
			return nil
		case lost:
			return errors.New("the connection to systemd is lost")
		}
	}
}

// What await returns.
type reason int

const (
	again       reason = iota // a unit has changed
	redraw                    // the terminal has changed
	interrupted               // ctx has ended
	lost                      // the connection to systemd has ended
)

// await waits until the status must be shown again or the command must end, and returns
// the reason. With all, it counts as a change that a unit becomes ours.
func await(ctx context.Context, m *manager.Manager, shown []status.Service, all bool, changes <-chan string, resized <-chan os.Signal) reason {
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return interrupted
		case <-resized:
			return redraw
		case <-due:
			return again
		case name, ok := <-changes:
			switch {
			case ctx.Err() != nil:
				return interrupted
			case !ok:
				return lost
			}
			relevant := name == "" || slices.ContainsFunc(shown, func(s status.Service) bool { return s.Unit == name })
			if !relevant && all {
				ours, err := m.IsOurs(ctx, name)
				relevant = err == nil && ours
			}
			if relevant && due == nil {
				due = time.After(settle)
			}
		}
	}
}
