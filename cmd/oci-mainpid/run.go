package main

import (
	"errors"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/run"
)

func runCommand(log *logrus.Logger) *cobra.Command {
	c := run.Config{Log: log.Warnf}
	cmd := &cobra.Command{
		Use:   "run [flags] [--] podman run -d --rm --name=NAME ...",
		Short: "Run a container for any init, and say when it is ready",
		Long: `Starts the container, finds its conmon by the hook, says when the container is ready,
and stays as long as the container. The exit status is the container's; TERM and INT
stop it, other signals are passed on to it.`,
		Example:           "  oci-mainpid run -- podman run -d --rm --name=web IMAGE\n  oci-mainpid run --notify=fd:3 -- podman run -d --rm --name=web IMAGE\n  oci-mainpid run --ready=multi-user.target -- podman run -d --rm --name=vm IMAGE-WITH-SYSTEMD",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Command = args
			status, err := c.Run()
			switch {
			case errors.Is(err, run.ErrUsage):
				return usageError(errors.New(strings.TrimSuffix(err.Error(), " ("+run.ErrUsage.Error()+")")))
			case err != nil:
				return err
			case status != 0:
				return exitStatus(status)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows is podman's
	flags.StringVar(&c.Notify, "notify", "auto", "who is told that the container is ready: `HOW` is auto, systemd, fd:N, socket, stop or none")
	flags.StringVar(&c.PIDFile, "pid-file", "", "write conmon's PID to `FILE` once the container is ready")
	flags.StringSliceVar(&c.Ready, "ready", nil, "ready means that each `TARGET` of the systemd in the container is active")
	flags.StringVar(&c.Listen, "listen", "", "hear the systemd of a virtual machine in the container at `ADDRESS`, such as vsock::1234")
	flags.BoolVar(&c.Health, "health", false, "run the container's health checks; ready means healthy")
	flags.DurationVar(&c.Timeout, "timeout", 0, "how long the container may take to become ready, such as 90s; 0 is for ever")
	return cmd
}
