package manager

import (
	"encoding/hex"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/quadlet"
)

// Unit is what systemd knows of a service.
type Unit struct {
	Name                         string
	LoadState, LoadError         string
	ActiveState, SubState        string
	Result                       string // "success" or why it failed
	StateChange                  time.Time
	InvocationID                 string // of the last start, "" if there was none
	MainPID                      int    // 0 if there is none
	Restarts                     int    // automatic ones in a row
	Fragment, Source             string // paths of the unit file and of what it was made from
	Dropins                      []string
	Dropin                       string // ours among them, "" if it is not there
	NeedReload                   bool   // the files changed since systemd read them
	User                         string // User=, as written
	UID                          int    // of the user, -1 if that is not known
	Type, NotifyAccess           string
	Delegate                     bool
	ControlGroup                 string
	Environment                  []string
	OpenFiles                    []string // paths of OpenFile=
	Wants, After                 []string
	Pre, Start, Post, Stop       []Command // as systemd runs them
	StopPost                     []Command
	InactiveExit, ActiveEnter    time.Duration // of the last start, on the clock of this boot
	MainStart                    time.Duration // when the main PID became that
	MainExitCode, MainExitStatus int
	Properties                   Properties
}

// Command is a command line of a unit, and its last run.
type Command struct {
	Path      string
	Arguments []string // from argv[0]
	Flags     []string // of its prefix, such as "privileged" for +

	Started, Ended                   time.Time
	StartedMonotonic, EndedMonotonic time.Duration
	PID                              int
	Code, Status                     int // si_code and si_status, waitid(2); 0 and 0 if it did not end
}

// Name is the program's.
func (c Command) Name() string { return filepath.Base(c.Path) }

// AsRoot reports whether it runs as root whatever User= says.
func (c Command) AsRoot() bool { return slices.Contains(c.Flags, "privileged") }

// IsNotifyMainPID reports whether it is our helper.
func (c Command) IsNotifyMainPID() bool { return c.Name() == "notify-mainpid" }

// Tells reports whether it is our helper and tells systemd the main PID.
func (c Command) Tells() bool {
	return c.IsNotifyMainPID() && !slices.Contains(c.Arguments, "--prepare") && !slices.Contains(c.Arguments, "--forget")
}

// Option returns the value that an option --name has where it is first in the
// arguments, be it written --name=value or --name value, and whether it is there.
func (c Command) Option(name string) (string, bool) {
	for i, a := range c.Arguments {
		if value, ok := strings.CutPrefix(a, name+"="); ok {
			return value, true
		}
		if a == name && i+1 < len(c.Arguments) {
			return c.Arguments[i+1], true
		}
	}
	return "", false
}

const unknownUID = 1<<32 - 1

func newUnit(name string, p Properties) *Unit {
	u := &Unit{
		Name:      name,
		LoadState: p.String("LoadState"), LoadError: loadError(p),
		ActiveState: p.String("ActiveState"), SubState: p.String("SubState"),
		Result: p.String("Result"), StateChange: p.Time("StateChangeTimestamp"),
		InvocationID: invocationID(p),
		MainPID:      intOf(p["MainPID"]), Restarts: intOf(p["NRestarts"]),
		Fragment: p.String("FragmentPath"), Source: p.String("SourcePath"),
		Dropins: p.Strings("DropInPaths"), NeedReload: p.Bool("NeedDaemonReload"),
		User: p.String("User"), UID: -1,
		Type: p.String("Type"), NotifyAccess: p.String("NotifyAccess"),
		Delegate: p.Bool("Delegate"), ControlGroup: p.String("ControlGroup"),
		Environment: p.Strings("Environment"),
		Wants:       p.Strings("Wants"), After: p.Strings("After"),
		InactiveExit: p.Monotonic("InactiveExitTimestampMonotonic"),
		ActiveEnter:  p.Monotonic("ActiveEnterTimestampMonotonic"),
		MainStart:    p.Monotonic("ExecMainStartTimestampMonotonic"),
		MainExitCode: intOf(p["ExecMainCode"]), MainExitStatus: intOf(p["ExecMainStatus"]),
		Properties: p,
	}
	u.Dropin = dropin(u.Dropins)
	for _, c := range []struct {
		name string
		to   *[]Command
	}{
		{"ExecStartPre", &u.Pre}, {"ExecStart", &u.Start}, {"ExecStartPost", &u.Post},
		{"ExecStop", &u.Stop}, {"ExecStopPost", &u.StopPost},
	} {
		// The one with flags came with systemd 243.
		if *c.to = p.Commands(c.name + "Ex"); *c.to == nil {
			*c.to = p.Commands(c.name)
		}
	}
	files, _ := p["OpenFile"].([][]any)
	for _, f := range files {
		if len(f) > 0 {
			u.OpenFiles = append(u.OpenFiles, stringOf(f[0]))
		}
	}
	u.UID = u.uid()
	return u
}

// uid is what systemd found out when it started the unit, or else what the unit
// says: to notify-mainpid, or by User=.
func (u *Unit) uid() int {
	if uid, ok := u.Properties.Uint("UID"); ok && uid != unknownUID {
		return int(uid)
	}
	if u.User == "" {
		return 0
	}
	names := []string{u.User}
	if tells, ok := u.Tells(); ok {
		if name, ok := tells.Option("--user"); ok {
			names = []string{name, u.User}
		}
	}
	for _, name := range names {
		if uid, err := strconv.ParseUint(name, 10, 31); err == nil {
			return int(uid)
		}
		if account, err := user.Lookup(name); err == nil && name != "" {
			if uid, err := strconv.Atoi(account.Uid); err == nil {
				return uid
			}
		}
	}
	return -1
}

// loadError is a pair, of a D-Bus error's name and what it says.
func loadError(p Properties) string {
	if pair, ok := p["LoadError"].([]any); ok && len(pair) == 2 {
		return stringOf(pair[1])
	}
	return ""
}

func invocationID(p Properties) string {
	id, _ := p["InvocationID"].([]byte)
	if len(id) != 16 {
		return ""
	}
	return hex.EncodeToString(id)
}

// Ours reports whether the unit is one of ours.
func (u *Unit) Ours() bool { return ours(u.Dropins, u.Post) }

// Refused returns why oci-mainpid keeps the unit from starting, or "".
func (u *Unit) Refused() string {
	for _, c := range u.Start {
		if c.Name() == "oci-mainpid" && len(c.Arguments) > 2 && c.Arguments[1] == "refuse" {
			return c.Arguments[len(c.Arguments)-1]
		}
	}
	return ""
}

// Podman returns the unit's podman, of ExecStart=; ok is false where that is
// another program.
func (u *Unit) Podman() (c Command, ok bool) {
	for _, c := range u.Start {
		if c.Name() == "podman" {
			return c, true
		}
	}
	return Command{}, false
}

// Tells returns the command that tells systemd the main PID.
func (u *Unit) Tells() (c Command, ok bool) {
	i := slices.IndexFunc(u.Post, Command.Tells)
	if i < 0 {
		return Command{}, false
	}
	return u.Post[i], true
}

// Cgroup returns where the unit's processes live, as it is set: the drop-in does
// not name the mode, but its settings are those of one only.
func (u *Unit) Cgroup() quadlet.Cgroup {
	podman, _ := u.Podman()
	cgroups, _ := podman.Option("--cgroups")
	switch {
	case !u.Delegate:
		return quadlet.User
	case cgroups == "split":
		return quadlet.Service
	}
	return quadlet.Mixed
}

// Kube reports whether one podman starts several containers, of which the
// service container is the unit's.
func (u *Unit) Kube() bool {
	tells, _ := u.Tells()
	require, _ := tells.Option("--require")
	return require == string(conmonbridge.RequireKube)
}

// Env returns the value of a variable in the unit's environment.
func (u *Unit) Env(name string) string {
	for i := len(u.Environment) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(u.Environment[i], name+"="); ok {
			return value
		}
	}
	return ""
}
