package dropin

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/unitfile"
)

// Options are what an administrator chooses for a unit: keys of [X-MainPID] in a
// Quadlet file, flags of oci-mainpid generate for a hand-written unit. An option that
// is not chosen is empty, see WithDefaults.
type Options struct {
	Cgroup Cgroup
	// Ready are the targets of the systemd in the container that must be active before
	// the unit is, separated by commas. Without any, the unit is ready as podman says.
	Ready  string
	Reload Reload
}

// Cgroup says in which control groups a unit's processes live.
type Cgroup string

const (
	// Mixed: conmon is in the unit's control group, the container below the user's
	// manager.
	Mixed Cgroup = "mixed"
	// Service: conmon and the container are in the unit's control group.
	Service Cgroup = "service"
	// User: conmon and the container are below the user's manager.
	User Cgroup = "user"
)

// Reload says how systemctl reload puts another container in the place of the one that
// runs.
type Reload string

const (
	// NoReload: the unit cannot be reloaded, or only as its own file says.
	NoReload Reload = "no"
	// Beside: the new container starts while the old one serves.
	Beside Reload = "beside"
	// Swap: the new container starts after the old one has ended.
	Swap Reload = "swap"
)

// Reloads reports whether systemctl reload replaces the unit's container.
func (o Options) Reloads() bool { return o.Reload == Beside || o.Reload == Swap }

// option is a key of Options.
type option struct {
	name string
	set  func(o *Options, value string) error
	get  func(o Options) string
}

// maxTargets bounds Ready=.
const maxTargets = 20

// options has every key, with the names of oci-mainpid.unit(5). A new key is an entry
// here and a field of Options.
var options = []option{
	{
		name: "Cgroup",
		set: func(o *Options, value string) error {
			switch c := Cgroup(value); c {
			case "", Mixed, Service, User:
				o.Cgroup = c
				return nil
			}
			return fmt.Errorf("Cgroup=%.40s is none of mixed, service, user", value)
		},
		get: func(o Options) string { return string(o.Cgroup) },
	},
	{
		name: "Ready",
		set: func(o *Options, value string) error {
			if value == "" {
				o.Ready = ""
				return nil
			}
			targets := strings.FieldsFunc(o.Ready+" "+value, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
			if len(targets) > maxTargets {
				return fmt.Errorf("Ready= has more than %d targets", maxTargets)
			}
			for _, name := range targets {
				if err := unitfile.CheckTargetName(name); err != nil {
					return fmt.Errorf("Ready=: %w", err)
				}
			}
			slices.Sort(targets)
			o.Ready = strings.Join(slices.Compact(targets), ",")
			return nil
		},
		get: func(o Options) string { return o.Ready },
	},
	{
		name: "Reload",
		set: func(o *Options, value string) error {
			switch r := Reload(value); r {
			case "", NoReload, Beside, Swap:
				o.Reload = r
				return nil
			}
			return fmt.Errorf("Reload=%.40s is none of no, beside, swap", value)
		},
		get: func(o Options) string { return string(o.Reload) },
	},
}

// ErrNoOption says that there is no option of that name.
var ErrNoOption = errors.New("no such option")

// Set sets the option of that name. An empty value unsets it. The error is ErrNoOption,
// or says which values the option takes.
func (o *Options) Set(name, value string) error {
	for _, k := range options {
		if k.name == name {
			return k.set(o, value)
		}
	}
	return fmt.Errorf("%s=: %w, only %s", name, ErrNoOption, OptionNames())
}

// OptionNames returns the names of all options, for a message.
func OptionNames() string {
	var names []string
	for _, k := range options {
		names = append(names, k.name+"=")
	}
	return strings.Join(names, ", ")
}

// Or returns the options; those that are not chosen are taken from other.
func (o Options) Or(other Options) Options {
	for _, k := range options {
		if k.get(o) == "" {
			k.set(&o, k.get(other))
		}
	}
	return o
}

// WithDefaults returns the options; those that are not chosen have their defaults.
func (o Options) WithDefaults() Options { return o.Or(Options{Cgroup: Mixed}) }
