// Package status shows the services that run their containers as a user, as systemd
// sees them and as podman sees them, and whether the two agree.
package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/census"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/leftover"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/internal/run"
	"oci-mainpid-hook/internal/story"
	"oci-mainpid-hook/internal/terminal"
)

// Service is the status of one service. Its texts may be a user's and need cleaning,
// see package printable.
type Service struct {
	Unit string `json:"unit"`
	User string `json:"user"`
	// Cgroup is the mode. It is empty for a unit without a container, such as that
	// of a volume.
	Cgroup      string     `json:"cgroup,omitempty"`
	LoadState   string     `json:"load_state"`
	ActiveState string     `json:"active_state"`
	SubState    string     `json:"sub_state"`
	Result      string     `json:"result"`
	Since       *time.Time `json:"since,omitempty"`
	Restarts    int        `json:"restarts"`
	// MainPID is the unit's main PID for systemd, 0 if there is none.
	MainPID int     `json:"main_pid"`
	Conmon  *Conmon `json:"conmon,omitempty"`
	// Agrees says whether systemd's main process is podman's conmon. It is nil if
	// neither runs.
	Agrees *bool `json:"agrees,omitempty"`
	// Problem says what is wrong now, LastError why the unit failed last.
	Problem   string `json:"problem,omitempty"`
	LastError string `json:"last_error,omitempty"`
	// Refused is when notify-mainpid last refused the PID of a main process, since the
	// boot.
	Refused *time.Time `json:"refused,omitempty"`
	// LeftOver are conmons of earlier starts, which systemd does not watch.
	LeftOver []Conmon `json:"left_over,omitempty"`
	// OfRoot are root's conmons that were started for the unit.
	OfRoot []Conmon `json:"of_root,omitempty"`
	// Inside is what the systemd in the container says, of a unit with Ready=.
	Inside *run.Inside `json:"inside,omitempty"`
	// Claiming are conmons of other users that name the unit. Any user can have such a
	// conmon, so it may have nothing to do with the unit.
	Claiming []Claim `json:"claiming,omitempty"`
	// Remedy is what to type because of Problem, empty if that depends.
	Remedy string `json:"-"`
}

// Claim is a conmon of a user who is not the unit's.
type Claim struct {
	UID int `json:"uid"`
	Conmon
}

// maxElsewhere bounds how many conmons OfRoot and Claiming have each.
const maxElsewhere = 10

// Conmon is podman's view of a service.
type Conmon struct {
	PID int `json:"pid"`
	// Recorded is conmon's PID in podman's own file, 0 if that is not known.
	Recorded    int    `json:"recorded,omitempty"`
	Container   string `json:"container"`
	ContainerID string `json:"container_id"`
	// Replaced says that conmon's file was replaced since it started.
	Replaced bool `json:"replaced,omitempty"`
}

func newConmon(c census.Conmon) Conmon {
	return Conmon{PID: c.PID, Recorded: c.Recorded, Container: c.Container, ContainerID: c.ContainerID, Replaced: c.Replaced}
}

// errNoConmon is the problem of an active unit whose conmon does not run.
var errNoConmon = errors.New("no conmon of this start runs")

// Of returns the status of one unit. all is every conmon that runs.
func Of(u *manager.Unit, all []census.Conmon) Service {
	file := u.Env(handover.EnvMainPIDFile)
	s := statusOf(u, all, census.ReadPID(cmp.Or(handover.UserDirOf(file), handover.Dir), file), census.Start.Verify)
	s.elsewhere(u, all)
	if u.Origin.Options.Ready != "" && s.Conmon != nil {
		if inside, err := run.ReadInside(u.UID, s.Conmon.Container); err == nil {
			s.Inside = &inside
		}
	}
	if record, err := handover.ReadRecord(u.Name); err == nil {
		s.changed(u, record, leftover.Lives)
	}
	return s
}

// elsewhere adds the conmons that name the unit and are not its user's.
func (s *Service) elsewhere(u *manager.Unit, all []census.Conmon) {
	if !u.Ours() || u.UID == 0 {
		return // root's own
	}
	ofRoot, claiming := census.Start{Unit: u.Name, UID: u.UID, InvocationID: u.InvocationID}.Elsewhere(all)
	for _, c := range ofRoot {
		// A unit that runs may have a command of root's, beside its user's.
		if (c.InvocationID != u.InvocationID || s.Conmon == nil) && len(s.OfRoot) < maxElsewhere {
			s.OfRoot = append(s.OfRoot, newConmon(c))
		}
	}
	for _, c := range claiming[:min(len(claiming), maxElsewhere)] {
		s.Claiming = append(s.Claiming, Claim{c.UID, newConmon(c)})
	}
	if len(s.OfRoot) == 0 {
		return
	}
	c := s.OfRoot[0]
	if u.ActiveState == "active" && s.Conmon == nil {
		no := false
		s.Agrees = &no
	}
	s.Problem = fmt.Sprintf("container %s still runs as root, from before the unit had a user (conmon %d)", c.Container, c.PID)
	s.Remedy = "kill " + strconv.Itoa(c.PID)
	if isID(c.ContainerID) {
		s.Remedy = fmt.Sprintf("podman rm -f %.12s", c.ContainerID)
	}
	if u.ActiveState != "inactive" && u.ActiveState != "failed" {
		s.Remedy += " && systemctl restart " + terminal.Quote(u.Name)
	}
}

// isID reports whether text is the ID of a container, which may be typed.
func isID(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

// changed says so if what runs is not what the unit's files say now. lives is
// leftover.Lives.
func (s *Service) changed(u *manager.Unit, record handover.Record, lives func(handover.Record) bool) {
	_, notifies := u.Notifier()
	if notifies && (u.Origin.UID == 0 || record.UID == u.Origin.UID) || !u.Ours() || !lives(record) {
		return
	}
	no := false
	s.Agrees = &no
	user := "root"
	if record.UID != 0 {
		user = "UID " + strconv.Itoa(record.UID)
	}
	s.Problem = fmt.Sprintf("container %s still runs as %s: ", record.Container, user)
	name := terminal.Quote(u.Name)
	s.Remedy = "systemctl restart " + name
	switch reason := u.Refused(); {
	case reason != "":
		s.Problem += reason
		s.Remedy = "systemctl stop " + name
	case notifies:
		s.Problem += fmt.Sprintf("the unit's user has become %s since it was started", u.Origin.User)
	default:
		s.Problem += "the unit has no user any more"
	}
	s.Problem += "; " + s.Remedy + " ends it"
}

// statusOf is Of. told is the PID in the mainpid file, and verify is
// census.Start.Verify.
func statusOf(u *manager.Unit, all []census.Conmon, told int, verify func(census.Start, census.Conmon) error) Service {
	s := Service{
		Unit: u.Name, User: u.User, LoadState: u.LoadState, ActiveState: u.ActiveState, SubState: u.SubState,
		Result: u.Result, Restarts: u.Restarts, MainPID: u.MainPID,
	}
	if s.User == "" {
		s.User = "root"
	}
	if !u.StateChange.IsZero() {
		s.Since = &u.StateChange
	}
	if u.LoadState != "loaded" {
		s.Problem = strings.TrimSuffix(u.LoadState+": "+u.LoadError, ": ")
		return s
	}
	if reason := u.Refused(); reason != "" {
		// A unit that is refused runs as no user.
		s.User, s.Problem = "", reason
		return s
	}
	start := census.Start{
		Unit: u.Name, UID: u.UID, InvocationID: u.InvocationID,
		MainPID: u.MainPID, Told: told, ControlGroup: u.ControlGroup, Executables: u.Conmon(), Kube: u.Kube(),
	}
	current, leftOver := start.Of(all)
	if _, ok := u.Notifier(); ok {
		s.Cgroup = string(u.Cgroup())
	} else if len(current)+len(leftOver) == 0 {
		return s // the unit need not have a container
	}
	for _, c := range leftOver {
		s.LeftOver = append(s.LeftOver, newConmon(c))
	}
	conmon, found := start.Main(current)
	if found {
		c := newConmon(conmon)
		s.Conmon = &c
	}
	if u.ActiveState != "active" {
		if found && (u.ActiveState == "inactive" || u.ActiveState == "failed") {
			// The unit is down, so conmon is left over although this start made it.
			s.LeftOver, s.Conmon = append(s.LeftOver, *s.Conmon), nil
		}
		if len(s.LeftOver) > 0 {
			s.Problem = leftOverText(s.LeftOver)
		}
		return s
	}
	err := agree(u, s.Conmon)
	if err == nil {
		err = verify(start, conmon)
	}
	agrees := err == nil
	s.Agrees = &agrees
	if err != nil {
		s.Problem = err.Error()
	} else if len(s.LeftOver) > 0 {
		s.Problem = leftOverText(s.LeftOver)
	}
	return s
}

// agree compares systemd's main process with podman's conmon.
func agree(u *manager.Unit, c *Conmon) error {
	switch {
	case c == nil && u.MainPID == 0:
		return errNoConmon
	case c == nil:
		return fmt.Errorf("systemd's main process is %d, but %w", u.MainPID, errNoConmon)
	case u.MainPID == 0:
		return fmt.Errorf("systemd has no main process, podman's conmon is %d", c.PID)
	case u.MainPID != c.PID:
		return fmt.Errorf("systemd's main process is %d, podman's conmon is %d", u.MainPID, c.PID)
	case c.Recorded != 0 && c.Recorded != c.PID:
		return fmt.Errorf("systemd's main process is %d, podman wrote down %d as the container's conmon", c.PID, c.Recorded)
	}
	return nil
}

func leftOverText(conmons []Conmon) string {
	c := conmons[0]
	text := fmt.Sprintf("container %s still runs, of an earlier start (conmon %d)", c.Container, c.PID)
	if n := len(conmons) - 1; n > 0 {
		text += fmt.Sprintf(", and %d more", n)
	}
	return text
}

// Read reads the status of the services with these names, or of all our services if
// names is empty. It calls look with what it is about to read, and add with the
// services that it has read, in the order of their names. leftOut says which processes
// were not read. If systemd does not know a name, the error is manager.ErrNoUnit.
func Read(ctx context.Context, m *manager.Manager, names []string, look func(at string), add func(...Service)) (leftOut []census.LeftOut, err error) {
	look("the units")
	if len(names) == 0 {
		if names, err = m.Ours(ctx); err != nil {
			return nil, err
		}
	}
	units, executables := []*manager.Unit{}, slices.Clone(conmonbridge.Executables)
	for _, name := range names {
		u, err := m.Unit(ctx, name)
		if err != nil {
			return nil, err
		}
		units = append(units, u)
		for _, path := range u.Conmon() {
			if !slices.Contains(executables, path) {
				executables = append(executables, path)
			}
		}
	}
	look("the processes")
	processes, err := census.Take(ctx, nil, executables) // other users' may name a unit, too
	if err != nil {
		return nil, err
	}
	look("the journal")
	refused := refusals(ctx)
	began := time.Now()
	for _, u := range units {
		look(u.Name)
		s := Of(u, processes.Conmons)
		if at, ok := refused[u.Name]; ok {
			s.Refused = &at
		}
		if (u.Result != "success" && u.Result != "" || u.ActiveState == "failed") && u.Refused() == "" {
			s.LastError = systemdsResult(u) + "; see: oci-mainpid explain " + u.Name
			if time.Since(began) < reasonsTimeout {
				s.LastError = lastError(ctx, u)
			}
		}
		add(s)
	}
	// What is left out of users without a unit here is what they claim.
	return slices.DeleteFunc(processes.LeftOut, func(l census.LeftOut) bool {
		return l.UID != 0 && !slices.ContainsFunc(units, func(u *manager.Unit) bool { return u.UID == l.UID })
	}), nil
}

// maxRefusals is how many refusals of all units are read.
const maxRefusals = 1000

// refusals returns when notify-mainpid last refused the PID of each unit's main
// process, since the boot. What the journal does not say within reasonsTimeout is
// missing.
func refusals(ctx context.Context) map[string]time.Time {
	ctx, cancel := context.WithTimeout(ctx, reasonsTimeout)
	defer cancel()
	last := map[string]time.Time{}
	journal.Read(ctx, journal.Query{
		Matches: []string{"MESSAGE_ID=" + message.Refused.ID, "_UID=0"}, Boot: true, Newest: true, Most: maxRefusals,
	}, func(e journal.Entry) bool {
		if unit := e.Fields["UNIT"]; last[unit].IsZero() {
			last[unit] = e.Time
		}
		return true
	})
	return last
}

// lastError returns why the unit failed last: in the journal's words, or else in
// systemd's.
func lastError(ctx context.Context, u *manager.Unit) string {
	if reason, err := story.LastReason(ctx, u); err == nil && reason != "" {
		return reason
	}
	return systemdsResult(u)
}

func systemdsResult(u *manager.Unit) string { return "systemd's result is " + u.Result }

// reasonsTimeout is how long Read asks the journal why units failed, and as long again
// for refusals. It takes a tenth of a second for each failure.
const reasonsTimeout = 3 * time.Second
