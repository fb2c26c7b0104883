package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/quadlet"
)

// generation is one run of oci-mainpid generate.
type generation struct {
	user, cgroup, outputDir string
	dryRun, force           bool
	systemdVersion          int

	account        quadlet.Account
	accounts       quadlet.Accounts
	sockets        quadlet.Sockets
	programs       quadlet.Programs
	unitDirs       []string
	findQuadlet    func() (path string, masked bool, err error)
	stdout, stderr io.Writer
	steps          *message.Log
}

func generateCommand(steps *message.Log) *cobra.Command {
	return newGenerateCommand(generation{steps: steps, unitDirs: quadlet.UnitDirs, findQuadlet: quadlet.FindQuadlet, programs: quadlet.FindPrograms()})
}

func newGenerateCommand(g generation) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "generate --user=NAME|UID [flags] FILE...",
		Short: "Write the drop-in that lets a unit run its container as a user",
		Long: `Reads each FILE, a unit file NAME.service that runs podman or a Quadlet file,
and writes NAME.service.d/50-oci-mainpid.conf, with which systemd runs it as the
user and the container's conmon is its main process. A Quadlet file's volumes,
networks and so on get theirs, too, and --user may be left out if the file has
[X-MainPID]. Of several files, none is written if one is refused.`,
		Example: "  oci-mainpid generate --user=web /etc/systemd/system/web.service\n  systemctl daemon-reload && systemctl restart web.service",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(errors.New("no FILE given"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			g.stdout, g.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return g.run(args)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&g.user, "user", "", "the `NAME` or UID of the user that runs the container")
	flags.StringVar(&g.cgroup, "cgroup", "", "where the processes live: `MODE` is mixed (the default), service or user")
	flags.BoolVar(&g.dryRun, "dry-run", false, "print the drop-ins, write nothing")
	flags.StringVar(&g.outputDir, "output-dir", "/etc/systemd/system", "the `DIR` of unit files to write to")
	flags.BoolVar(&g.force, "force", false, "overwrite a drop-in of that name that another program made")
	flags.IntVar(&g.systemdVersion, "systemd-version", 0, "write for systemd `VERSION` rather than the one that is installed")
	return cmd
}

// refusals collects why files are refused, each with the file's name.
type refusals []error

func (r *refusals) add(name string, err error) {
	*r = append(*r, fmt.Errorf("%s: %w", name, err))
}

// run writes the drop-ins of all files, or none.
func (g *generation) run(paths []string) error {
	if _, err := quadlet.ParseCgroup(g.cgroup); err != nil {
		return usageError(fmt.Errorf("--cgroup: %w", err))
	}
	var services, quadlets []string
	for _, path := range paths {
		if quadlet.IsQuadlet(path) {
			quadlets = append(quadlets, path)
		} else {
			services = append(services, path)
		}
	}
	if g.user == "" && len(services) > 0 {
		return usageError(errors.New("--user is missing"))
	}
	var err error
	if g.user != "" {
		if g.account, err = g.accounts.Lookup(g.user); err != nil {
			return fmt.Errorf("--user: %w", err)
		}
		g.steps.Step("user %s is UID %d", g.account.Name, g.account.UID)
	}
	if g.systemdVersion == 0 {
		if g.systemdVersion, err = quadlet.SystemdVersion(); err != nil {
			g.note("%v; the drop-in will do without OpenFile=, as for systemd before 253", err)
		}
	}
	g.steps.Step("writing for systemd %d", g.systemdVersion)
	if _, err := os.Stat(g.programs.NotifyMainPID); err != nil {
		g.note("no unit will start before notify-mainpid is installed: %v", err)
	}
	dirs := slices.Clone(g.unitDirs)
	for _, path := range services {
		dirs = append(dirs, filepath.Dir(path))
	}
	g.sockets = quadlet.ReadSockets(dirs)

	var refused refusals
	var results []quadlet.Result
	for _, path := range services {
		r, err := g.service(path)
		if err != nil {
			refused.add(filepath.Base(path), err)
			continue
		}
		results = append(results, r)
	}
	if len(quadlets) > 0 {
		results = append(results, g.quadlets(quadlets, &refused)...)
	}
	for _, r := range results {
		if g.dryRun || g.force {
			break
		}
		if err := quadlet.Check(r.Dropin.Path(g.outputDir)); err != nil {
			refused.add(r.Dropin.Unit, err)
		}
	}
	if len(refused) > 0 {
		return errors.Join(refused...)
	}
	return g.write(results)
}

func (g *generation) write(results []quadlet.Result) error {
	var dropins []*quadlet.Dropin
	kept := map[int]bool{}
	for _, r := range results {
		g.report(r)
		dropins = append(dropins, r.Dropin)
		if a := r.Account; !kept[a.UID] {
			kept[a.UID] = true
			dropins = append(dropins, quadlet.KeepManager(a, fmt.Sprintf("%sfiles of user %s", maker, a.Name))...)
		}
	}
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
	if !g.dryRun {
		g.nextStep(results)
	}
	return nil
}

// maker is for the first line of the drop-ins.
const maker = " generate from "

// service derives the drop-in of a hand-written unit.
func (g *generation) service(path string) (quadlet.Result, error) {
	name := filepath.Base(path)
	if err := quadlet.CheckServiceName(name); err != nil {
		return quadlet.Result{}, err
	}
	unit, err := quadlet.LoadService(path, g.unitDirs)
	if err != nil {
		return quadlet.Result{}, err
	}
	g.steps.Step("%s and its drop-ins: Type=%s, ExecStart=%s", path, unit.Get("Service", "Type"), unit.Get("Service", "ExecStart"))
	if have := unit.Get("Service", "User"); have != "" {
		if a, err := g.accounts.Lookup(have); err != nil || a != g.account {
			return quadlet.Result{}, fmt.Errorf("has User=%s already, --user=%s differs", have, g.user)
		}
	}
	cgroup, err := quadlet.ParseCgroup(g.cgroup)
	if err != nil {
		return quadlet.Result{}, err
	}
	return quadlet.Derive(quadlet.Request{
		Name:           name,
		Unit:           unit,
		Maker:          maker + path,
		Account:        g.account,
		Cgroup:         cgroup,
		Sockets:        g.sockets.Of(name, unit),
		SystemdVersion: g.systemdVersion,
		Programs:       g.programs,
	})
}

// quadlets derives the drop-ins of Quadlet files and of all that they name.
func (g *generation) quadlets(paths []string, refused *refusals) []quadlet.Result {
	fail := func(err error) []quadlet.Result {
		for _, path := range paths {
			refused.add(filepath.Base(path), err)
		}
		return nil
	}
	generator, masked, err := g.findQuadlet()
	if err == nil && masked {
		err = errors.New("Quadlet's generator is masked")
	}
	if err != nil {
		return fail(err)
	}
	dirs, err := g.quadletDirs(paths)
	if err != nil {
		return fail(err)
	}
	start := time.Now()
	converted, messages, err := quadlet.Convert(generator, dirs)
	if err != nil {
		return fail(err)
	}
	g.steps.Step("%s --dryrun made %d services within %v", generator, len(converted), time.Since(start))
	for _, m := range messages {
		g.steps.Step("Quadlet says: %s", m)
	}
	family := quadlet.NewFamily(converted, &g.accounts)
	var members []*quadlet.Member
	for _, path := range paths {
		name := filepath.Base(path)
		unit, err := quadlet.Load(path)
		m := family.File(name)
		switch {
		case err != nil:
		case m == nil:
			err = quadlet.NoService(name, unit, messages)
		case !same(m.Source, path):
			err = fmt.Errorf("Quadlet reads %s rather than %s", m.Source, path)
		default:
			err = family.Ask(m, g.user, quadlet.Cgroup(g.cgroup))
		}
		if err != nil {
			refused.add(name, err)
			continue
		}
		members = append(members, m)
	}
	family.Settle()
	for _, w := range family.Warnings() {
		g.note("warning: %s", w)
	}
	var results []quadlet.Result
	for _, m := range family.Related(members...) {
		err := m.Err
		var r quadlet.Result
		if err == nil {
			r, err = m.Derive(maker, g.sockets, g.systemdVersion, g.programs)
		}
		if err != nil {
			refused.add(m.File(), err)
			continue
		}
		results = append(results, r)
	}
	return results
}

// quadletDirs returns the directories of the files, or none if Quadlet reads
// these anyway.
func (g *generation) quadletDirs(paths []string) ([]string, error) {
	search := quadlet.SearchDirs()
	var dirs []string
	elsewhere := false
	for _, path := range paths {
		dir, err := filepath.Abs(filepath.Dir(path))
		if err == nil {
			dir, err = filepath.EvalSymlinks(dir)
		}
		if err != nil {
			return nil, err
		}
		elsewhere = elsewhere || !slices.Contains(search, dir)
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	if !elsewhere {
		return nil, nil
	}
	return dirs, nil
}

// same reports whether two paths name one file.
func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// report says what a reader of the drop-in should know.
func (g *generation) report(r quadlet.Result) {
	for _, w := range r.Warnings {
		g.note("%s: warning: %s", r.Dropin.Unit, w)
	}
	if len(r.Repeated) > 0 {
		g.note("%s: the drop-in gives %s= again, changed; after editing the unit run oci-mainpid generate again", r.Dropin.Unit, strings.Join(r.Repeated, "= and "))
	}
}

func (g *generation) note(format string, args ...any) {
	fmt.Fprintf(g.stderr, "oci-mainpid: "+format+"\n", args...)
}

// nextStep says how what was written takes effect.
func (g *generation) nextStep(results []quadlet.Result) {
	restart := ""
	for _, r := range results {
		if !quadlet.IsTemplate(r.Dropin.Unit) {
			restart += " " + r.Dropin.Unit
		}
	}
	if restart != "" {
		restart = " && systemctl restart" + restart
	}
	fmt.Fprintf(g.stdout, "run: systemctl daemon-reload%s\n", restart)
}
