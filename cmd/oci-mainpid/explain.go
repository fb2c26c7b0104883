package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/internal/story"
	"oci-mainpid-hook/internal/terminal"
)

func explainCommand(steps *message.Log) *cobra.Command {
	svg := ""
	cmd := &cobra.Command{
		Use:   "explain [--svg=FILE] UNIT",
		Short: "Tell how the last start of a unit went, and why it failed",
		Long: `Tells the last start of UNIT as a story: which message came from whom, what
systemd took and what it refused, and how long each step took.`,
		Example:           "  oci-mainpid explain web.service\n  oci-mainpid explain --svg=web.svg web.service",
		Args:              oneUnit,
		ValidArgsFunction: completeOneUnit,
		RunE: func(cmd *cobra.Command, args []string) error {
			return explain(cmd.Context(), terminal.New(cmd.OutOrStdout()), serviceName(args[0]), svg, steps)
		},
	}
	cmd.Flags().StringVar(&svg, "svg", "", "also draw the timeline into `FILE`")
	return cmd
}

func oneUnit(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError(fmt.Errorf("%d arguments, not one UNIT", len(args)))
	}
	return nil
}

func explain(ctx context.Context, o *terminal.Output, name, svg string, steps *message.Log) error {
	m, stop, err := connect(&ctx, steps)
	if err != nil {
		return err
	}
	defer stop()
	unit, err := m.Unit(ctx, name)
	// The journal may know a unit that systemd has forgotten.
	if err != nil && !errors.Is(err, manager.ErrNoUnit) {
		return err
	}
	start := time.Now()
	s, err := story.Read(ctx, name, unit)
	if err != nil {
		return err
	}
	steps.Step("read the start with INVOCATION_ID=%s within %v: %d events", s.InvocationID, time.Since(start), len(s.Events))
	s.Write(o)
	if svg == "" {
		return nil
	}
	return writeFile(svg, s.SVG())
}

// writeFile makes a file, or writes one anew, that root was asked for: where
// somebody else has put a link or a FIFO in its place, it fails.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("write %s: is not a regular file", path)
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Close()
}

// connect connects to systemd for a command that ends with SIGINT or SIGTERM.
func connect(ctx *context.Context, steps *message.Log) (m *manager.Manager, stop func(), err error) {
	if os.Geteuid() != 0 {
		return nil, nil, errors.New("must be run as root: only root may look into the processes of other users")
	}
	var cancel func()
	*ctx, cancel = signal.NotifyContext(*ctx, os.Interrupt, unix.SIGTERM)
	start := time.Now()
	m, err = manager.Connect(*ctx)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	steps.Step("connected to systemd within %v", time.Since(start))
	return m, func() {
		m.Close()
		cancel()
	}, nil
}
