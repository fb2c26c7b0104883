package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/internal/replace"
	"oci-mainpid-hook/sdnotify"
)

// replaceCommand returns the commands that a unit with Reload= runs as its user when it
// is reloaded. dropin.Replace writes them into the unit.
func replaceCommand() *cobra.Command {
	unit := ""
	cmd := &cobra.Command{
		Use:    "replace",
		Short:  "Put another container in the place of a unit's",
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			return usageError(errors.New("neither start, back, finish nor stop given"))
		},
	}
	var start replace.Options
	timeout, last := time.Minute, false
	// action returns one of the commands.
	action := func(name, short string, args cobra.PositionalArgs, run func(ctx context.Context, r *reload, args []string) error) *cobra.Command {
		c := &cobra.Command{
			Use: name, Short: short, Args: args,
			RunE: func(cmd *cobra.Command, args []string) error {
				r := &reload{}
				ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
				defer stop()
				var err error
				if r.unit, err = replace.Open(unit); err == nil {
					err = run(ctx, r, args)
				}
				return err
			},
		}
		c.Flags().StringVar(&unit, "unit", "", "the unit's name")
		return c
	}
	starting := action("start", "Start the new container and wait until it is ready", cobra.MinimumNArgs(1), func(ctx context.Context, r *reload, args []string) error {
		ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the new container was not ready within %v", timeout))
		defer cancel()
		start.Args = args
		return r.failed("not reloaded", r.unit.Start(ctx, start))
	})
	starting.Flags().StringVar(&start.NextFile, "next", "", "the file for the PID of the new conmon")
	starting.Flags().BoolVar(&start.Notify, "notify", false, "wait for READY=1 of the new container")
	starting.Flags().BoolVar(&start.Sockets, "sockets", false, "give the new container the sockets of the old one")
	starting.Flags().BoolVar(&start.Swap, "swap", false, "end the old container first")
	starting.Flags().DurationVar(&timeout, "timeout", timeout, "how long the new container may take")
	next := ""
	returning := action("back", "Start the old container again if the new one is not ready", cobra.NoArgs, func(ctx context.Context, r *reload, _ []string) error {
		return r.failed("not reloaded", r.unit.Back(ctx, next))
	})
	returning.Flags().StringVar(&next, "next", "", "the file for the PID of the conmon")
	finishing := action("finish", "Remove the container that is not the main process's", cobra.NoArgs, func(ctx context.Context, r *reload, _ []string) error {
		container, err := r.unit.Finish(ctx, last)
		if err == nil && container != "" {
			r.say(message.Reloaded, "container "+container+" is in the place of the one before, which has ended", nil)
			r.status("")
		}
		return r.failed("not reloaded", err)
	})
	finishing.Flags().BoolVar(&last, "last", false, "forget the reload")
	stopping := action("stop", "Remove both containers if a reload was cut off", cobra.NoArgs, func(ctx context.Context, r *reload, _ []string) error {
		return r.failed("a reload that was cut off has left a container", r.unit.Stop(ctx))
	})
	cmd.AddCommand(starting, returning, finishing, stopping)
	return cmd
}

// reload tells of a reload.
type reload struct{ unit *replace.Unit }

// failed logs an error of the reload, unless that is logged already, and returns the exit
// status.
func (r *reload) failed(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, replace.ErrFailed):
		r.say(message.ReloadFailed, what+": "+err.Error(), err)
		r.status(what + ": " + err.Error())
	}
	return exitStatus(exitFailed)
}

// say sends a message about the unit.
func (r *reload) say(kind message.Kind, text string, cause error) {
	log := message.Log{Program: message.OCIMainPID, Unit: r.unit.Name}
	log.Add(message.InvocationID, os.Getenv("INVOCATION_ID"))
	log.Say(kind, r.unit.Name+": "+text, cause)
	log.Flush()
}

// status sets what systemctl status shows.
func (r *reload) status(text string) {
	client, err := sdnotify.FromEnvironment()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// Where systemd does not hear of it, the log has it.
	client.Send(ctx, sdnotify.Status(message.Line(text)))
}
