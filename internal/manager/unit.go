package manager

import (
	"context"
	"encoding/hex"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/unitfile"
)

// Unit is what systemd knows of a service.
type Unit struct {
	Name                         string
	LoadState, LoadError         string
	ActiveState, SubState        string
	Result                       string // "success" or why it failed
	StateChange                  time.Time
	InvocationID                 string // of the last start, "" if there was none
	MainPID                      int    // 0 if there is no main process
	Restarts                     int    // automatic restarts in a row
	Fragment, Source             string // paths of the unit file, and of the file that it was made from
	Dropins                      []string
	Dropin                       string // our drop-in among Dropins, or ""
	Origin                       dropin.Origin
	OriginErr                    error  // dropin.ErrForeign, or why Origin could not be read
	NeedReload                   bool   // the files changed since systemd read them
	User                         string // User=, as written
	UID                          int    // of the user, -1 if it is not known
	Type, NotifyAccess           string
	Delegate                     bool
	ControlGroup                 string
	Environment                  []string
	OpenFiles                    []string // paths of OpenFile=
	Wants, After                 []string
	Pre, Start, Post, Stop       []Command // as systemd runs them
	StopPost, Reload             []Command
	InactiveExit, ActiveEnter    time.Duration // of the last start, on the clock of this boot
	MainStart                    time.Duration // when the main process started
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

// Name returns the program's name without directories.
func (c Command) Name() string { return filepath.Base(c.Path) }

// AsRoot reports whether systemd runs the command as root, whatever User= says.
func (c Command) AsRoot() bool { return slices.Contains(c.Flags, "privileged") }

// IsNotifyMainPID reports whether the program is notify-mainpid.
func (c Command) IsNotifyMainPID() bool { return c.Name() == "notify-mainpid" }

// NotifiesMainPID reports whether the command is notify-mainpid, called to notify
// systemd of the main PID rather than to prepare or forget files.
func (c Command) NotifiesMainPID() bool {
	return c.IsNotifyMainPID() && !slices.Contains(c.Arguments, "--prepare") && !slices.Contains(c.Arguments, "--forget")
}

// Replaces reports whether the command is one of those that put another container in the
// place of the unit's, oci-mainpid replace.
func (c Command) Replaces() bool {
	return c.Name() == "oci-mainpid" && len(c.Arguments) > 1 && c.Arguments[1] == "replace"
}

// option returns the value of an option of notify-mainpid, written --name=value or
// --name value, and whether the option is given.
func (c Command) option(name string) (string, bool) {
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

func newUnit(name string, p Properties, accounts *account.Accounts) *Unit {
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
	if u.Dropin = ourDropin(u.Dropins); u.Dropin != "" {
		u.Origin, u.OriginErr = readOrigin(u.Dropin)
	}
	for _, c := range []struct {
		name string
		to   *[]Command
	}{
		{"ExecStartPre", &u.Pre}, {"ExecStart", &u.Start}, {"ExecStartPost", &u.Post},
		{"ExecStop", &u.Stop}, {"ExecStopPost", &u.StopPost}, {"ExecReload", &u.Reload},
	} {
		// Since systemd 243 there are properties with the commands' flags.
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
	u.UID = u.uid(accounts)
	return u
}

func readOrigin(path string) (dropin.Origin, error) {
	text, err := unitfile.Read(path)
	if err != nil {
		return dropin.Origin{}, err
	}
	return dropin.ParseOrigin(text)
}

// uid returns the UID that systemd found when it started the unit. If the unit was not
// started, it returns the UID in the drop-in's record, in notify-mainpid's --user=, or
// in User=.
func (u *Unit) uid(accounts *account.Accounts) int {
	if uid, ok := u.Properties.Uint("UID"); ok && uid != unknownUID {
		return int(uid)
	}
	if u.Origin.UID != 0 {
		return u.Origin.UID
	}
	name := u.User
	if notifier, ok := u.Notifier(); ok && name != "" {
		if user, ok := notifier.option("--user"); ok {
			name = user
		}
	}
	if name == "" {
		return 0
	}
	if uid, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(uid)
	}
	if a, err := accounts.Lookup(context.Background(), name); err == nil || a.Name != "" {
		return a.UID
	}
	return -1
}

// loadError returns the text of LoadError, a pair of a D-Bus error's name and text.
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

// Ours reports whether the unit is ours: it has our drop-in or runs notify-mainpid.
func (u *Unit) Ours() bool { return ours(u.Dropins, u.Post) }

// Refused returns the reason why our drop-in keeps the unit from starting, or "".
func (u *Unit) Refused() string {
	for _, c := range u.Start {
		if c.Name() == "oci-mainpid" && len(c.Arguments) > 2 && c.Arguments[1] == "refuse" {
			return c.Arguments[len(c.Arguments)-1]
		}
	}
	return ""
}

// Podman returns the podman of ExecStart=. ok is false if ExecStart= is another
// program.
func (u *Unit) Podman() (p podmancmd.Podman, ok bool) {
	for _, c := range u.Start {
		if len(c.Arguments) == 0 {
			continue
		}
		if p, ok := podmancmd.ParseArguments(c.Path, c.Arguments[1:]); ok {
			return p, true
		}
	}
	return podmancmd.Podman{}, false
}

// Notifier returns the command that notifies systemd of the main PID.
func (u *Unit) Notifier() (c Command, ok bool) {
	i := slices.IndexFunc(u.Post, Command.NotifiesMainPID)
	if i < 0 {
		return Command{}, false
	}
	return u.Post[i], true
}

// Cgroup returns the mode in the drop-in's record. It is "" if the record has no mode,
// or if the unit has no drop-in of ours.
func (u *Unit) Cgroup() dropin.Cgroup { return u.Origin.Options.Cgroup }

// Kube reports whether the unit runs a kube file, so that the main process is the
// conmon of the service container.
func (u *Unit) Kube() bool {
	notifier, _ := u.Notifier()
	require, _ := notifier.option("--require")
	return require == string(conmonbridge.RequireKube)
}

// Conmon returns the paths that the executable of the unit's conmon may have: --conmon=
// in the command line of notify-mainpid(8), or else the paths where podman looks.
func (u *Unit) Conmon() []string {
	notifier, _ := u.Notifier()
	if path, ok := notifier.option("--conmon"); ok {
		return []string{path}
	}
	return conmonbridge.Executables
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

// PodmanEnvironment returns the variables of the unit that say where podman's
// configuration and storage are.
func (u *Unit) PodmanEnvironment() []string {
	return slices.DeleteFunc(slices.Clone(u.Environment), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		switch {
		case name == "HOME", name == "TMPDIR", name == "REGISTRY_AUTH_FILE":
		case name == "XDG_CONFIG_HOME", name == "XDG_DATA_HOME":
		case strings.HasPrefix(name, "CONTAINERS_"), strings.HasPrefix(name, "STORAGE_"):
		default:
			return true
		}
		return false
	})
}
