package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/confine"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/story"
	"oci-mainpid-hook/internal/terminal"
)

// explainTime is how long explain reads before it prints what it has.
const explainTime = 30 * time.Second

func explainCommand(log *logrus.Logger) *cobra.Command {
	svg := ""
	cmd := &cobra.Command{
		Use:   "explain [--svg=FILE] UNIT",
		Short: "Tell how the last start of a unit went, and why it is down",
		Long: `Tells the last start of UNIT as a story: which message came from whom, what
systemd took and what it refused, and how long each step took. Of a unit that is
down it tells why, and which lines its container wrote last.`,
		Example:           "  oci-mainpid explain web.service\n  oci-mainpid explain --svg=web.svg web.service",
		Args:              oneUnit,
		ValidArgsFunction: completeOneUnit,
		RunE: func(cmd *cobra.Command, args []string) error {
			return explain(cmd.Context(), terminal.New(cmd.OutOrStdout()), serviceName(args[0]), svg, log)
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

func explain(ctx context.Context, o *terminal.Output, name, svg string, log *logrus.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, explainTime)
	defer cancel()
	m, stop, err := connect(&ctx, log)
	if err != nil {
		return err
	}
	defer stop()
	if err := confine.Bound(); err != nil {
		return err
	}
	unit, unitErr := m.Unit(ctx, name)
	// The journal may know a unit that systemd has forgotten, and what systemd does
	// not say in time.
	late := errors.Is(unitErr, context.DeadlineExceeded)
	if unitErr != nil && !late && !errors.Is(unitErr, manager.ErrNoUnit) {
		return unitErr
	}
	began := time.Now()
	s, err := story.Read(ctx, name, unit)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return errors.New("interrupted")
	case errors.Is(err, story.ErrNoStart) && unitErr != nil:
		return unitErr
	case err != nil:
		return err
	case late:
		s.Missing = append(s.Missing, unitErr.Error())
	}
	log.Debugf("read the start with INVOCATION_ID=%s within %v: %d events", s.InvocationID, time.Since(began), len(s.Events))
	s.Write(o)
	if svg == "" {
		return nil
	}
	return writeFile(svg, s.SVG())
}

// connect connects to systemd for a command that ends with SIGINT or SIGTERM.
func connect(ctx *context.Context, log *logrus.Logger) (m *manager.Manager, stop func(), err error) {
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
	log.Debugf("connected to systemd within %v", time.Since(start))
	return m, func() {
		m.Close()
		cancel()
	}, nil
}
