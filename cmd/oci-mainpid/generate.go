package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/census"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/leftover"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/unitfile"
	"oci-mainpid-hook/quadlet"
)

// generation is one run of oci-mainpid generate.
type generation struct {
	planner         *quadlet.Planner
	user, outputDir string
	options         dropin.Options
	dryRun, force   bool
	removes         bool // rather than writes
	systemdVersion  int  // 0 for the version that is installed
	// running returns those of the services that run and were not started by a
	// drop-in of ours.
	running func(ctx context.Context, services []string) []string
	// connect connects to systemd. If it is nil, no unit is stopped.
	connect func(ctx *context.Context) (m *manager.Manager, stop func(), err error)

	stdout io.Writer
	log    *logrus.Logger
}

func generateCommand(log *logrus.Logger) *cobra.Command {
	planner := quadlet.NewPlanner(dropin.Generate)
	planner.Step = func(service, text string) { about(log, service).Debug(text) }
	return newGenerateCommand(generation{planner: planner, log: log, running: recordRunning, connect: func(ctx *context.Context) (*manager.Manager, func(), error) {
		return connect(ctx, log)
	}})
}

// recordRunning returns those of the services that run and were not started by a
// drop-in of ours. It records what root's containers of these are: a restart after the
// daemon-reload, without the stop that generate prints, then ends them. Without systemd
// there are none.
func recordRunning(ctx context.Context, services []string) []string {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	m, err := manager.Connect(ctx)
	if err != nil {
		return nil
	}
	defer m.Close()
	return slices.DeleteFunc(services, func(name string) bool {
		u, err := m.Unit(ctx, name)
		if err != nil || u.ActiveState == "inactive" || u.ActiveState == "failed" {
			return true
		}
		if record, err := handover.ReadRecord(name); err == nil {
			return record.UID != 0
		}
		if record, ok := startOfRoot(ctx, u); ok {
			handover.WriteRecord(name, record) // without it, generate prints the stop all the same
		}
		return false
	})
}

// startOfRoot returns what a unit runs as root, and whether it runs a container that is
// outside of the unit.
func startOfRoot(ctx context.Context, u *manager.Unit) (handover.Record, bool) {
	if u.UID != 0 {
		return handover.Record{}, false
	}
	all, err := census.Take(ctx, map[int]bool{0: true}, conmonbridge.Executables)
	if err != nil {
		return handover.Record{}, false
	}
	start := census.Start{Unit: u.Name, InvocationID: u.InvocationID, MainPID: u.MainPID, ControlGroup: u.ControlGroup}
	current, _ := start.Of(all.Conmons)
	c, ok := start.Main(current)
	if !ok {
		return handover.Record{}, false
	}
	r := handover.Record{
		Conmon: c.PID, Start: c.Start, InvocationID: c.InvocationID, ContainerID: c.ContainerID, Container: c.Container,
		Cgroups: leftover.Cgroups(c.PID, 0),
	}
	return r, len(r.Cgroups) > 0
}

func newGenerateCommand(g generation) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "generate [--user=NAME|UID] [flags] UNIT|FILE...",
		Short: "Write the drop-in that lets a unit run its container as a user",
		Long: `Reads each FILE and writes NAME.service.d/50-oci-mainpid.conf, with which systemd
runs the service as a user and has the container's conmon as its main process.
FILE is a unit file NAME.service that runs podman, for which --user is needed, or a
Quadlet file, which has User= in [Service]. UNIT is the name of a service, whose
file is then looked up. The volumes, networks and so on that a Quadlet file
references get their drop-ins, too. If one of several files is refused, no drop-in
is written.`,
		Example:           "  oci-mainpid generate --user=web web\n  systemctl daemon-reload && systemctl restart web.service",
		ValidArgsFunction: completeUnitFiles,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(errors.New("no UNIT and no FILE given"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			g.stdout = cmd.OutOrStdout()
			if g.removes {
				return g.remove(cmd.Context(), args)
			}
			return g.run(cmd.Context(), args)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&g.user, "user", "", "the `NAME` or UID of the user that runs the container")
	flags.Func("cgroup", "where the processes live: `MODE` is mixed (the default), service or user", func(value string) error {
		return g.options.Set("Cgroup", value)
	})
	flags.Func("ready", "the unit is ready when each `TARGET` of the systemd in the container is active", func(value string) error {
		return g.options.Set("Ready", value)
	})
	flags.Func("reload", "what systemctl reload does: `HOW` is no (the default), or it puts another container in the place of the one that runs: beside, while that serves, or swap, after that has ended", func(value string) error {
		return g.options.Set("Reload", value)
	})
	flags.BoolVar(&g.dryRun, "dry-run", false, "print the drop-ins, write nothing")
	flags.StringVar(&g.outputDir, "output-dir", "/etc/systemd/system", "the `DIR` of unit files to write to")
	flags.BoolVar(&g.force, "force", false, "overwrite a drop-in of that name that another program made")
	flags.BoolVar(&g.removes, "remove", false, "stop the units, and remove what was written for them")
	flags.IntVar(&g.systemdVersion, "systemd-version", 0, "write for systemd `VERSION` rather than the one that is installed")
	mustRegister(cmd, "cgroup", string(dropin.Mixed), string(dropin.Service), string(dropin.User))
	mustRegister(cmd, "reload", string(dropin.NoReload), string(dropin.Beside), string(dropin.Swap))
	mustRegister(cmd, "systemd-version")
	mustRegister(cmd, "ready", "multi-user.target", "graphical.target")
	mustRegisterFunc(cmd, "user", func() []string { return g.planner.Accounts.Names() })
	if err := cmd.MarkFlagDirname("output-dir"); err != nil {
		panic(err) // there is no such flag
	}
	return cmd
}

// run writes the drop-ins of all files. If one file is refused, it writes none.
func (g *generation) run(ctx context.Context, args []string) error {
	var services, quadlets []string
	for _, arg := range args {
		path := g.planner.File(arg)
		if quadlet.IsQuadlet(path) {
			quadlets = append(quadlets, path)
		} else {
			services = append(services, path)
			g.planner.SocketDirs = append(g.planner.SocketDirs, filepath.Dir(path))
		}
	}
	switch {
	case g.user == "" && len(services) > 0:
		return usageError(errors.New("--user is missing"))
	case g.user != "" && len(quadlets) > 0:
		return usageError(fmt.Errorf("--user is for unit files; the user of a Quadlet file is in the file: write User=%s in [Service] of %s", g.user, quadlets[0]))
	}
	if g.user != "" {
		account, err := g.planner.Accounts.Lookup(ctx, g.user)
		if err != nil {
			return fmt.Errorf("--user: %w", err)
		}
		g.log.Debugf("user %s is UID %d", account.Name, account.UID)
	}
	if g.systemdVersion != 0 {
		g.planner.SystemdVersion = func(context.Context) (int, error) { return g.systemdVersion, nil }
	}
	if warning := g.planner.VersionWarning(ctx); warning != "" {
		g.log.Warn(warning)
	}
	if _, err := os.Stat(g.planner.Programs.NotifyMainPID); err != nil {
		g.log.Warnf("no unit will start before notify-mainpid is installed: %v", err)
	}
	plan := &quadlet.Plan{}
	if len(quadlets) > 0 {
		var err error
		if plan, err = g.planner.QuadletFiles(ctx, quadlets, g.options); err != nil {
			return err
		}
		for _, warning := range slices.Concat(plan.Errors, plan.Warnings) {
			g.log.Warn(warning)
		}
	}
	for _, path := range services {
		plan.Decisions = append(plan.Decisions, g.planner.Service(ctx, path, g.user, g.options))
	}
	var refused []error
	for _, d := range plan.Decisions {
		err := d.Err
		if err == nil && !g.dryRun && !g.force {
			err = dropin.Check(d.Dropin.Path(g.outputDir))
		}
		if err != nil {
			refused = append(refused, fmt.Errorf("%s: %w", filepath.Base(d.Source), err))
		}
	}
	if len(refused) > 0 {
		return errors.Join(refused...)
	}
	return g.write(ctx, plan)
}

func (g *generation) write(ctx context.Context, plan *quadlet.Plan) error {
	var services []string
	for _, d := range plan.Decisions {
		for _, warning := range d.Warnings {
			about(g.log, d.Service).Warn(warning)
		}
		if len(d.Repeated) > 0 {
			about(g.log, d.Service).Infof("the drop-in replaces %s= of the unit; after editing the unit, run oci-mainpid generate again", strings.Join(d.Repeated, "= and "))
		}
		if !unitfile.IsTemplate(d.Service) {
			services = append(services, d.Service)
		}
	}
	_, dropins := plan.Dropins()
	for _, d := range dropins {
		if g.dryRun {
			fmt.Fprintf(g.stdout, "# %s\n%s\n", d.Path(g.outputDir), d.Text())
			continue
		}
		if err := d.Write(g.outputDir); err != nil {
			return fmt.Errorf("%s: %w", d.Unit, err)
		}
		fmt.Fprintln(g.stdout, "wrote", d.Path(g.outputDir))
	}
	if g.dryRun {
		return nil
	}
	steps := []string{"systemctl daemon-reload"}
	if len(services) > 0 {
		steps = append(steps, "systemctl restart "+strings.Join(services, " "))
	}
	if running := g.running(ctx, slices.Clone(services)); len(running) > 0 {
		// After the daemon-reload the stop commands are the user's.
		steps = append([]string{"systemctl stop " + strings.Join(running, " ")}, steps...)
	}
	fmt.Fprintln(g.stdout, "run:", strings.Join(steps, " && "))
	return nil
}

// about returns the log for lines about a service. service is "" for lines about none.
func about(log *logrus.Logger, service string) *logrus.Entry {
	if service == "" {
		return logrus.NewEntry(log)
	}
	return log.WithField(unitField, service)
}
