package quadlet

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Level is how grave a message is.
type Level int

// The levels that Generator uses.
const (
	Refused Level = iota // a unit is kept from starting
	Error
	Warning
	Step // what it does, for whoever looks for a mistake
)

// Generator writes the drop-ins of all Quadlet files that ask for it, as a
// systemd generator does: systemd.generator(7).
type Generator struct {
	// Dirs are the directories of Quadlet files, UnitDirs those of unit files.
	Dirs, UnitDirs []string
	Accounts       *Accounts
	Programs       Programs
	// Log takes a line for the administrator about a service, "" for none.
	Log func(level Level, service, text string)
	// Verbose has steps logged, too.
	Verbose bool

	// FindQuadlet, Convert and SystemdVersion are the functions of those names.
	FindQuadlet    func() (path string, masked bool, err error)
	Convert        func(quadlet string, dirs []string) ([]Converted, []string, error)
	SystemdVersion func() (int, error)
}

// NewGenerator returns one for this system.
func NewGenerator(programs Programs, log func(level Level, service, text string)) *Generator {
	return &Generator{
		Dirs:           SearchDirs(),
		UnitDirs:       UnitDirs,
		Accounts:       &Accounts{},
		Programs:       programs,
		Log:            log,
		FindQuadlet:    FindQuadlet,
		Convert:        Convert,
		SystemdVersion: SystemdVersion,
	}
}

const generatorMaker = "-generator from "

// Dropins returns the drop-ins, sorted by unit but for those of files of which
// Quadlet makes no service. A unit that cannot be served gets one with which it
// fails to start. What is wrong is logged.
func (g *Generator) Dropins() []*Dropin {
	if !Asks(g.Dirs) {
		return nil
	}
	path, masked, err := g.FindQuadlet()
	if masked {
		g.step("", "Quadlet's generator is masked, so there is nothing to do")
		return nil
	}
	start := time.Now()
	// Quadlet takes longer than all of this together.
	var version int
	var versionErr error
	var sockets Sockets
	var files, foreign map[string]string
	var group sync.WaitGroup
	group.Add(1)
	go func() {
		defer group.Done()
		version, versionErr = g.SystemdVersion()
		sockets = ReadSockets(g.UnitDirs)
		files = quadletFiles(g.Dirs)
		foreign = g.foreign()
	}()
	var services []Converted
	var messages []string
	if err == nil {
		services, messages, err = g.Convert(path, nil)
		g.step("", "%s --dryrun made %d services within %v", path, len(services), time.Since(start))
	}
	family := NewFamily(services, g.Accounts)
	family.Settle()
	for _, w := range family.Warnings() {
		g.Log(Warning, "", w)
	}
	group.Wait()
	g.step("", "systemd is version %d", version)
	dropins := g.orphans(family, files, messages, err)
	if versionErr != nil {
		g.Log(Warning, "", versionErr.Error()+"; doing without OpenFile=, as with systemd before 253")
	}

	var members []*Member
	for _, m := range family.Members() {
		if m.Owner == nil && m.Err == nil {
			continue
		}
		if err := CheckServiceName(m.Name); err != nil {
			g.Log(Error, "", fmt.Sprintf("%s: %v, so systemd ignores it", m.Source, err))
			continue
		}
		if dir := foreign[m.Name]; dir != "" {
			g.Log(Warning, m.Name, fmt.Sprintf("%s has precedence over the unit of %s, which is left alone", filepath.Join(dir, m.Name), m.Source))
			continue
		}
		members = append(members, m)
	}
	results := make([]Result, len(members))
	Parallel(len(members), func(i int) {
		if m := members[i]; m.Err == nil {
			results[i], m.Err = m.Derive(generatorMaker, sockets, version, g.Programs)
		}
	})
	kept := map[int]bool{}
	for i, m := range members {
		for _, w := range results[i].Warnings {
			g.Log(Warning, m.Name, w)
		}
		d := results[i].Dropin
		if m.Err != nil {
			d = g.refuse(m.Name, m.Source, m.Err, m.follows())
		} else {
			g.step(m.Name, "%s: user %s, UID %d, Cgroup=%s", m.Source, m.Owner.Name, m.Owner.UID, m.Cgroup)
			if !kept[m.Owner.UID] {
				kept[m.Owner.UID] = true
				dropins = append(dropins, KeepManager(*m.Owner, generatorMaker+m.Source)...)
			}
		}
		dropins = append(dropins, d)
	}
	return dropins
}

func (g *Generator) step(service, format string, args ...any) {
	if g.Verbose {
		g.Log(Step, service, fmt.Sprintf(format, args...))
	}
}

// Parallel calls f with every number below n, on as many processors as there are.
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

// Derive derives the drop-in of a member that has an owner.
func (m *Member) Derive(maker string, sockets Sockets, systemdVersion int, p Programs) (Result, error) {
	return Derive(Request{
		Name:           m.Name,
		Unit:           m.Unit,
		Quadlet:        true,
		Maker:          maker + m.Source,
		Account:        *m.Owner,
		Cgroup:         m.Cgroup,
		Sockets:        sockets.Of(m.Name, m.Unit),
		SystemdVersion: systemdVersion,
		Programs:       p,
	})
}

func (g *Generator) refuse(service, source string, reason error, skip bool) *Dropin {
	g.Log(Refused, service, "will not start: "+reason.Error())
	return Refusal(service, generatorMaker+source, g.Programs, reason, skip)
}

// orphans handles the files that ask for a user and of which Quadlet makes no
// service: it says why, and should Quadlet's next run make one after all, that
// does not run as root.
func (g *Generator) orphans(family *Family, files map[string]string, messages []string, failure error) []*Dropin {
	var dropins []*Dropin
	if failure != nil {
		g.Log(Error, "", failure.Error())
	}
	maps.DeleteFunc(files, func(name, _ string) bool { return family.File(name) != nil })
	for _, name := range sortedKeys(files) {
		path := files[name]
		u, err := loadQuadlet(path, g.Dirs)
		if err != nil {
			g.Log(Error, "", fmt.Sprintf("%s: %v", name, err))
			continue
		}
		asked := readRequest(u)
		if !asked.present {
			continue
		}
		service := serviceName(name, u)
		if CheckServiceName(service) != nil || UnitFile(g.UnitDirs, service) != "" {
			continue
		}
		reason := failure
		if reason == nil {
			reason = NoService(name, u, messages)
		}
		dropins = append(dropins, g.refuse(service, path, reason, false))
	}
	return dropins
}

// complaint splits a message of Quadlet's about a file that it refuses, in the
// words of now, converting "FILE": TEXT, or of podman 4.4, Error converting
// 'FILE', ignoring: TEXT.
func complaint(message string) (file, text string, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(message, "Error "), "converting ")
	if !ok || rest == "" {
		return "", "", false
	}
	file, rest, ok = strings.Cut(rest[1:], rest[:1])
	_, text, found := strings.Cut(rest, ": ")
	return file, text, ok && found
}

// NoService is the error for a file of which Quadlet makes no service, with what
// Quadlet said about it.
func NoService(name string, u *Unit, messages []string) error {
	text := ""
	for _, m := range messages {
		if file, complaint, ok := complaint(m); ok && file == name {
			text += ": " + complaint
		}
	}
	if user := u.Get("Service", "User"); user != "" && strings.Contains(text, "User") {
		text += fmt.Sprintf("; instead of User= in [Service] write [%s] with User=%s", section, user)
	}
	return fmt.Errorf("Quadlet makes no service of %s%s", name, text)
}

// preferred is where units are that systemd prefers to those of generators,
// systemd.unit(5).
var preferred = []string{"/etc/systemd/system", "/run/systemd/system"}

// foreign returns the units in those directories, each with its directory.
func (g *Generator) foreign() map[string]string {
	found := map[string]string{}
	for _, dir := range g.UnitDirs {
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

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
