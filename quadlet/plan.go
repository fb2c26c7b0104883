// Package quadlet decides what a unit that runs podman needs so that it runs as a
// user, with conmon as its main process. It reads Quadlet files,
// podman-systemd.unit(5), and unit files of systemd's own.
package quadlet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

// Decision says what one service gets: a drop-in that serves it, or one that refuses
// to start it.
type Decision struct {
	// Service is the service's name. Source is the path of its Quadlet file or unit
	// file.
	Service, Source string
	// Account is the user that the service runs as, and Options says how. Both are
	// meaningless if Err is set.
	Account account.Account
	Options dropin.Options
	// Err says why the service must not start.
	Err error
	// Dropin serves the service, or refuses it if Err is set.
	Dropin *dropin.Dropin
	// Warnings do not keep the service from starting.
	Warnings []string
	// SameContainer is another service of the user whose container has the same name:
	// each start removes the other's container.
	SameContainer string
	// Repeated are the settings of the unit that the drop-in replaces by changed
	// copies. A later change of such a setting in the unit has no effect.
	Repeated []string

	maker dropin.Maker
	// containerName is that of the container, if the file gives one.
	containerName string
}

// origin is the record of the decision in its drop-in.
func (d *Decision) origin() dropin.Origin {
	o := dropin.Origin{Maker: d.maker, Source: d.Source}
	if d.Err == nil {
		o.User, o.UID, o.Options = d.Account.Name, d.Account.UID, d.Options
	}
	return o
}

// refuse makes the drop-in with which the service fails to start.
func (d *Decision) refuse(p dropin.Programs) {
	d.Dropin = dropin.Refusal(d.Service, d.origin(), p, d.Err)
}

// Plan has the decisions about all services that ask for a user.
type Plan struct {
	// Decisions are sorted by service. There is none for a Quadlet file whose
	// service the administrator has replaced by a unit file.
	Decisions []*Decision
	// Warnings and Errors are about files without a decision.
	Warnings, Errors []string
}

// Of returns the decision about a service, or nil if there is none.
func (p *Plan) Of(service string) *Decision {
	i := slices.IndexFunc(p.Decisions, func(d *Decision) bool { return d.Service == service })
	if i < 0 {
		return nil
	}
	return p.Decisions[i]
}

// Dropins returns the drop-ins to write. refusing ones keep a service from starting
// and must be written first. serving ones include those that keep the managers of
// the users running.
func (p *Plan) Dropins() (refusing, serving []*dropin.Dropin) {
	kept := map[int]bool{}
	for _, d := range p.Decisions {
		if d.Err != nil {
			refusing = append(refusing, d.Dropin)
			continue
		}
		serving = append(serving, d.Dropin)
		if !kept[d.Account.UID] {
			kept[d.Account.UID] = true
			serving = append(serving, dropin.KeepManager(d.Account, d.maker)...)
		}
	}
	return refusing, serving
}

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

// member is a service that Quadlet makes, with its request and the Quadlet files
// that it references.
type member struct {
	Converted
	request
	decision   *Decision // nil unless the file asks
	references []reference
}

// refuse refuses the service. The first reason counts.
func (m *member) refuse(err error) {
	if m.decision != nil && m.decision.Err == nil {
		m.decision.Err = err
	}
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

// members reads the request of each service. Its keys are the names of the Quadlet
// files.
func (p *Planner) members(services []Converted) map[string]*member {
	members := make(map[string]*member, len(services))
	byService := map[string]*member{}
	for _, c := range services {
		m := &member{Converted: c, request: readRequest(c.File(), c.Unit), references: references(c.Unit)}
		if c.Err != nil {
			if text, err := os.ReadFile(c.Source); err == nil {
				m.asks, m.err = textAsks(text), c.Err
			}
		}
		members[c.File()] = m
		if m.asks {
			m.decision = p.decision(m, m.err)
		}
		if other := byService[m.Name]; other != nil {
			err := fmt.Errorf("%s and %s both make %s; give one of them another name, or ServiceName=", other.File(), m.File(), m.Name)
			m.refuse(err)
			other.refuse(err)
		}
		byService[m.Name] = m
	}
	return members
}

func (p *Planner) decision(m *member, err error) *Decision {
	return &Decision{Service: m.Name, Source: m.Source, Err: err, maker: p.Maker}
}

// lookUp finds the users' accounts.
func (p *Planner) lookUp(ctx context.Context, members map[string]*member) {
	var users []string
	for _, m := range members {
		if m.decision != nil && m.user != "" {
			users = append(users, m.user)
		}
	}
	p.Accounts.LookupAll(ctx, users)
	for _, m := range members {
		if m.decision == nil || m.decision.Err != nil {
			continue
		}
		m.decision.Account, m.decision.Err = p.Accounts.Lookup(ctx, m.user)
	}
}

// compare refuses a service that references a file of another user: podman would
// not find, say, the volume.
func (p *Planner) compare(plan *Plan, members map[string]*member) {
	for _, name := range slices.Sorted(maps.Keys(members)) {
		m := members[name]
		if user := p.insideUser(m.Unit); m.decision == nil && user != "" {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s: User=%s in [Container] is the user inside of the container; to run podman as the user %[2]s of this machine, write User=%[2]s in [Service]", m.Name, user))
		}
		if m.byPID1 && m.decision == nil {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s: User=%s in [Service] is left to systemd; to have oci-mainpid serve the unit, write a user's name", m.Name, m.Unit.Get("Service", "User")))
		}
		options := m.request.options
		for _, r := range m.references {
			to := members[r.file]
			if to == nil {
				continue
			}
			if r.key == "Pod" {
				options = options.Or(to.request.options)
			}
			switch {
			case m.decision == nil && to.decision == nil || to.decision != nil && to.decision.Err != nil:
			case m.decision == nil && r.key == "Pod":
				m.decision = p.decision(m, fmt.Errorf("its Pod=%s runs as %s; write User=%[2]s in [Service] of %s, too", r.file, to.user, m.File()))
			case m.decision == nil:
				plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s: runs as root, but %s=%s runs as %s, so podman will not find it", m.Name, r.key, r.file, to.user))
			case to.decision == nil:
				m.refuse(fmt.Errorf("runs as %s, but %s=%s runs as root; write User=%[1]s in [Service] of %[3]s, too", m.user, r.key, r.file))
			case m.decision.Err == nil && m.decision.Account.UID != to.decision.Account.UID:
				m.refuse(fmt.Errorf("runs as %s, but %s=%s runs as %s; write the same User= in [Service] of both", m.user, r.key, r.file, to.user))
			}
		}
		if m.decision != nil && kinds[filepath.Ext(name)].runs {
			m.decision.Options = options.WithDefaults()
		}
	}
}

// insideUser returns the User= of [Container] if a user of this machine has the same
// name, which looks like a mistake. Else it returns "".
func (p *Planner) insideUser(u *unitfile.File) string {
	name, _, _ := strings.Cut(unquoteValue(u.Get("X-Container", "User")), ":")
	if _, err := strconv.Atoi(name); err == nil || name == "" || name == "root" {
		return ""
	}
	here := account.Accounts{Etc: p.Accounts.Etc, Getent: "-"}
	if a, err := here.Lookup(context.Background(), name); err != nil && a.Name == "" {
		return ""
	}
	return name
}

// add derives the drop-ins of the members and adds the decisions to the plan. If
// only has files, it adds these files and what they reference.
func (p *Planner) add(plan *Plan, members map[string]*member, foreign map[string]string, only []string) {
	var chosen []*member
	for _, name := range slices.Sorted(maps.Keys(p.related(members, only))) {
		m := members[name]
		if m.decision == nil {
			continue
		}
		if err := unitfile.CheckServiceName(m.Name); err != nil {
			plan.Errors = append(plan.Errors, fmt.Sprintf("%s: %v, so systemd ignores it", m.Source, err))
			continue
		}
		if dir := foreign[m.Name]; dir != "" {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s: %s has precedence over the unit of %s, which is left alone", m.Name, filepath.Join(dir, m.Name), m.Source))
			continue
		}
		chosen = append(chosen, m)
	}
	Parallel(len(chosen), func(i int) {
		m := chosen[i]
		d := m.decision
		if d.Err == nil {
			d.Err = p.derive(d, m.Unit, true)
		}
		if d.Err != nil {
			d.refuse(p.Programs)
		}
	})
	compareContainers(chosen)
	for _, m := range chosen {
		if err := checkServiceName(m.Name); err != nil {
			// systemd would apply the refusing drop-in to other units, too.
			plan.Errors = append(plan.Errors, fmt.Sprintf("%s: %v", m.Source, err))
			continue
		}
		plan.Decisions = append(plan.Decisions, m.decision)
		if m.decision.Err == nil {
			p.step(m.Name, "%s: user %s, UID %d, Cgroup=%s", m.Source, m.decision.Account.Name, m.decision.Account.UID, m.decision.Options.Cgroup)
		}
	}
}

// compareContainers warns of services of one user whose containers have one name.
func compareContainers(members []*member) {
	type container struct {
		uid  int
		name string
	}
	first := map[container]*Decision{}
	for _, m := range members {
		d := m.decision
		if d.Err != nil || d.containerName == "" {
			continue
		}
		key := container{d.Account.UID, d.containerName}
		other := first[key]
		if other == nil {
			first[key] = d
			continue
		}
		for _, pair := range [][2]*Decision{{d, other}, {other, d}} {
			pair[0].SameContainer = pair[1].Service
			pair[0].Warnings = append(pair[0].Warnings, fmt.Sprintf("its container has the name %s, as that of %s has: each start removes the other's container; write another ContainerName=", d.containerName, pair[1].Service))
		}
	}
}

// related returns the members of the files, all members that these reference, and
// all containers of their pods. Without files it returns all members.
func (p *Planner) related(members map[string]*member, files []string) map[string]bool {
	found := map[string]bool{}
	var queue []string
	for _, file := range files {
		if m := members[filepath.Base(file)]; m != nil && sameFile(m.Source, file) {
			queue = append(queue, m.File())
		}
	}
	if files == nil {
		queue = slices.Collect(maps.Keys(members))
	}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if members[name] == nil || found[name] {
			continue
		}
		found[name] = true
		for _, r := range members[name].references {
			queue = append(queue, r.file)
		}
		for _, other := range members {
			if slices.Contains(other.references, reference{"Pod", name}) {
				queue = append(queue, other.File())
			}
		}
	}
	return found
}

// orphans refuses each file that asks for a user and of which Quadlet made no
// service. Should Quadlet's generator make the service after all, it does not start.
func (p *Planner) orphans(plan *Plan, members map[string]*member, files map[string]string, messages []string, failure error) {
	if failure != nil {
		plan.Errors = append(plan.Errors, failure.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if members[name] != nil {
			continue
		}
		path := files[name]
		unit, err := loadQuadlet(path, p.Dirs)
		if err != nil {
			plan.Errors = append(plan.Errors, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		if !asks(unit) {
			continue
		}
		d := &Decision{Service: serviceName(name, unit), Source: path, Err: failure, maker: p.Maker}
		if checkServiceName(d.Service) != nil || UnitFile(p.UnitDirs, d.Service) != "" {
			continue
		}
		if d.Err == nil {
			d.Err = noService(name, messages)
		}
		d.refuse(p.Programs)
		plan.Decisions = append(plan.Decisions, d)
	}
}

// missing refuses each given file of which Quadlet makes no service, be it because
// Quadlet reads another file of the same name.
func (p *Planner) missing(plan *Plan, members map[string]*member, paths, messages []string, failure error) {
	for _, path := range paths {
		name := filepath.Base(path)
		unit, err := unitfile.Load(path)
		m := members[name]
		switch {
		case err != nil:
		case failure != nil:
			err = failure
		case m == nil:
			err = noService(name, messages)
		case !sameFile(m.Source, path):
			err = fmt.Errorf("Quadlet reads %s rather than %s", m.Source, path)
		default:
			continue
		}
		if unit == nil {
			unit = &unitfile.File{}
		}
		d := &Decision{Service: serviceName(name, unit), Source: path, Err: err, maker: p.Maker}
		d.refuse(p.Programs)
		plan.Decisions = append(plan.Decisions, d)
	}
}

// complaint splits a message of Quadlet's generator about one file into the file and
// the text. Such messages are
//
//	converting "FILE": TEXT
//	error loading "FILE", TEXT
//	Error converting 'FILE', ignoring: TEXT (podman 4.4)
func complaint(message string) (file, text string, ok bool) {
	message = strings.TrimPrefix(strings.TrimPrefix(message, "Error "), "error ")
	for _, verb := range []string{"converting ", "loading "} {
		rest, ok := strings.CutPrefix(message, verb)
		if !ok || rest == "" || rest[0] != '"' && rest[0] != '\'' {
			continue
		}
		file, rest, ok = strings.Cut(rest[1:], rest[:1])
		rest = strings.TrimPrefix(rest, ", ignoring")
		if text = strings.TrimLeft(rest, ":, "); ok && text != "" {
			return file, text, true
		}
	}
	return "", "", false
}

// noService returns the error for a file of which Quadlet makes no service, with
// what Quadlet said about it. If Quadlet cannot read one file, it makes no service of
// any file in that directory, so the error names the unreadable file.
func noService(name string, messages []string) error {
	text := ""
	for _, m := range messages {
		file, words, ok := complaint(m)
		switch {
		case !ok:
		case filepath.Base(file) == name:
			text += ": " + words
		case strings.Contains(m, "loading"):
			text += fmt.Sprintf(": it cannot read %s (%s)", file, words)
		}
	}
	return fmt.Errorf("Quadlet makes no service of %s%s", name, text)
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
