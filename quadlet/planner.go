package quadlet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/handover"
)

// Planner makes plans. It asks the machine once and remembers the answers.
type Planner struct {
	// Maker is the program that the drop-ins' records name as their maker.
	Maker dropin.Maker
	// Dirs are the directories of Quadlet files, UnitDirs the directories of unit
	// files.
	Dirs, UnitDirs []string
	// SocketDirs are searched for socket units after UnitDirs.
	SocketDirs []string
	Accounts   *account.Accounts
	Programs   dropin.Programs
	// Step, if set, is called with each step, for debugging. service may be empty.
	Step func(service, text string)

	// FindQuadlet, Convert and SystemdVersion are the functions of the same names
	// in this package. Tests replace them.
	FindQuadlet    func() (path string, masked bool, err error)
	Convert        func(ctx context.Context, quadlet string, dirs []string) ([]Converted, []string, error)
	SystemdVersion func(ctx context.Context) (int, error)
	// Recorded and ReadRecord are those of package handover. Without them, nobody
	// asks which units run.
	Recorded   func() []string
	ReadRecord func(unit string) (handover.Record, error)

	asked   sync.Once
	machine struct {
		systemdVersion int
		versionErr     error
		sockets        Sockets
	}
}

// NewPlanner returns a Planner for the machine that it runs on.
func NewPlanner(maker dropin.Maker) *Planner {
	return &Planner{
		Maker:          maker,
		Dirs:           SearchDirs(),
		UnitDirs:       UnitDirs,
		Accounts:       &account.Accounts{},
		Programs:       dropin.FindPrograms(),
		FindQuadlet:    FindQuadlet,
		Convert:        Convert,
		SystemdVersion: SystemdVersion,
		Recorded:       handover.Recorded,
		ReadRecord:     handover.ReadRecord,
	}
}

// ask reads what does not depend on a unit: systemd's version and the socket
// units. It does so once.
func (p *Planner) ask(ctx context.Context) {
	p.asked.Do(func() {
		p.machine.systemdVersion, p.machine.versionErr = p.SystemdVersion(ctx)
		p.machine.sockets = ReadSockets(slices.Concat(p.UnitDirs, p.SocketDirs))
	})
}

func (p *Planner) step(service, format string, args ...any) {
	if p.Step != nil {
		p.Step(service, fmt.Sprintf(format, args...))
	}
}

// VersionWarning returns a warning if systemd's version is unknown, else "".
func (p *Planner) VersionWarning(ctx context.Context) string {
	p.ask(ctx)
	if p.machine.versionErr == nil {
		return ""
	}
	return p.machine.versionErr.Error() + "; doing without OpenFile=, as with systemd before 253"
}

// Service decides what the hand-written unit file at path gets if it is to run as
// the user. user is a name or a UID.
func (p *Planner) Service(ctx context.Context, path, user string, options dropin.Options) *Decision {
	p.ask(ctx)
	d := &Decision{Service: filepath.Base(path), Source: path, Options: options.WithDefaults(), maker: p.Maker}
	absolute, err := filepath.Abs(path)
	if err == nil {
		d.Source = absolute
		err = p.service(ctx, d, user)
	}
	if d.Err = err; err != nil {
		d.refuse(p.Programs)
	}
	return d
}

func (p *Planner) service(ctx context.Context, d *Decision, user string) (err error) {
	if err := checkServiceName(d.Service); err != nil {
		return err
	}
	if d.Account, err = p.Accounts.Lookup(ctx, user); err != nil {
		return err
	}
	unit, err := LoadService(d.Source, p.UnitDirs)
	if err != nil {
		return err
	}
	p.step(d.Service, "%s and its drop-ins: Type=%s, ExecStart=%s", d.Source, unit.Get("Service", "Type"), unit.Get("Service", "ExecStart"))
	if have := unit.Get("Service", "User"); have != "" {
		if a, err := p.Accounts.Lookup(ctx, have); !errors.Is(err, account.ErrRoot) && (err != nil || a.UID != d.Account.UID) {
			return fmt.Errorf("has User=%s already, and --user=%s is another user; give one user in both", have, user)
		}
	}
	return p.derive(d, unit, false)
}

// Quadlet decides what the services of all Quadlet files that ask for a user get. It
// takes no longer than ctx. A service whose user is not known by then is refused.
func (p *Planner) Quadlet(ctx context.Context) *Plan {
	plan := p.askingFiles(ctx)
	p.keepStops(plan)
	return plan
}

func (p *Planner) askingFiles(ctx context.Context) *Plan {
	if !Asks(p.Dirs) {
		return &Plan{}
	}
	path, masked, err := p.FindQuadlet()
	if masked {
		p.step("", "Quadlet's generator is masked, so there is nothing to do")
		return &Plan{}
	}
	return p.quadlet(ctx, path, err, nil, dropin.Options{})
}

// QuadletFiles decides what the services of the given Quadlet files get, and the
// services of all files that these reference. An option that is chosen replaces the
// option in the files. The error says why Quadlet's generator cannot be run.
func (p *Planner) QuadletFiles(ctx context.Context, paths []string, options dropin.Options) (*Plan, error) {
	path, masked, err := p.FindQuadlet()
	if err == nil && masked {
		err = errors.New("Quadlet's generator is masked")
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return p.quadlet(ctx, path, nil, paths, options), nil
}

func (p *Planner) quadlet(ctx context.Context, path string, failure error, only []string, options dropin.Options) *Plan {
	// Quadlet's generator takes longest, so the rest is read beside it.
	var files, foreign map[string]string
	var group sync.WaitGroup
	group.Add(1)
	go func() {
		defer group.Done()
		p.ask(ctx)
		files = quadletFiles(p.Dirs)
		foreign = p.foreign()
	}()
	start := time.Now()
	var services []Converted
	var messages []string
	if failure == nil {
		var dirs []string
		if only != nil {
			dirs = p.elsewhere(only)
		}
		services, messages, failure = p.Convert(ctx, path, dirs)
		p.step("", "%s --dryrun made %d services within %v", path, len(services), time.Since(start))
		for _, m := range messages {
			p.step("", "Quadlet says: %s", m)
		}
	}
	group.Wait()
	p.step("", "systemd is version %d", p.machine.systemdVersion)

	plan := &Plan{}
	members := p.members(services)
	for _, name := range only {
		m := members[filepath.Base(name)]
		if m == nil || !sameFile(m.Source, name) {
			continue
		}
		m.request.options = options.Or(m.request.options)
		if m.decision == nil {
			m.decision = p.decision(m, fmt.Errorf("has no user; write User=NAME in [Service] of %s", name))
		}
	}
	p.lookUp(ctx, members)
	p.compare(plan, members)
	p.add(plan, members, foreign, only)
	if only == nil {
		p.orphans(plan, members, files, messages, failure)
	} else {
		p.missing(plan, members, only, messages, failure)
	}
	slices.SortFunc(plan.Decisions, func(a, b *Decision) int { return strings.Compare(a.Service, b.Service) })
	return plan
}

// elsewhere returns the directories of the files, or none if Quadlet reads all of
// these directories anyway.
func (p *Planner) elsewhere(paths []string) []string {
	var dirs []string
	all := true
	for _, path := range paths {
		dir, err := filepath.Abs(filepath.Dir(path))
		if err == nil {
			dir, err = filepath.EvalSymlinks(dir)
		}
		if err != nil {
			continue // reading the file says why
		}
		all = all && slices.Contains(p.Dirs, dir)
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	if all {
		return nil
	}
	return dirs
}

// sameFile reports whether two paths lead to the same file.
func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// preferred are the directories whose units have precedence over the units of
// generators, systemd.unit(5).
var preferred = []string{"/etc/systemd/system", "/run/systemd/system"}

// foreign returns the units in the preferred directories, each with its directory.
func (p *Planner) foreign() map[string]string {
	found := map[string]string{}
	for _, dir := range p.UnitDirs {
		if !slices.Contains(preferred, dir) {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if name := e.Name(); found[name] == "" && !e.IsDir() {
				found[name] = dir
			}
		}
	}
	return found
}

// Parallel calls f with every number from 0 to n-1, on all processors. It returns
// when all calls have.
func Parallel(n int, f func(i int)) {
	var group sync.WaitGroup
	var next atomic.Int64
	const batch = 16
	for range min(runtime.GOMAXPROCS(0), n/batch+1) {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				end := int(next.Add(batch))
				for i := end - batch; i < min(end, n); i++ {
					f(i)
				}
				if end >= n {
					return
				}
			}
		}()
	}
	group.Wait()
}
