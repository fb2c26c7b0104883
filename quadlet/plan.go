// Package quadlet decides what a unit that runs podman needs so that it runs as a
// user, with conmon as its main process. It reads Quadlet files,
// podman-systemd.unit(5), and unit files of systemd's own.
package quadlet

import (
	"slices"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
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
	// Networks are podman's networks that the service needs and that no unit makes.
	Networks []string
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
	// Masked are the services that must not start and can have no drop-in of their
	// own, see unitfile.IsPrefix.
	Masked []string
	// Gone are units that run with a drop-in of ours and would now get none.
	Gone []*dropin.Gone
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
