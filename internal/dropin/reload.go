package dropin

import (
	"strconv"
	"time"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/unitfile"
)

// Replacement says how the new container of a reload is started.
type Replacement struct {
	// Start is the command line of podman, as the unit has it, with systemd's
	// specifiers and variables. Prefix is ":" if systemd is to replace no variables.
	Start, Prefix string
	// Swap: the old container ends before the new one starts.
	Swap bool
	// Notify: the new container is ready with READY=1, rather than when podman has
	// started it.
	Notify bool
	// Sockets: the new container gets the sockets that the old one has.
	Sockets bool
	// Timeout is how long the new container may take until it is ready.
	Timeout time.Duration
}

// Replace adds the commands of a reload, see package replace. They come after those of
// MainPID.
func (d *Dropin) Replace(a account.Account, p Programs, r Replacement) {
	mainPIDFile, _, operands := d.operands(a.UID)
	unit, quote := d.Unit, unitfile.QuoteArgument
	if unitfile.IsTemplate(d.Unit) {
		unit, quote = "%n", func(text string) string { return text }
	}
	program := unitfile.QuoteArgument(p.OCIMainPID)
	replace := func(action string) string { return program + " replace " + action + " --unit=" + quote(unit) }
	helper := "+" + unitfile.QuoteArgument(p.NotifyMainPID) + " --reload --user=" + strconv.Itoa(a.UID)
	start := "-" + r.Prefix + replace("start") + " --next=" + quote(handover.NextFile(mainPIDFile)) + " --timeout=" + r.Timeout.String()
	if r.Notify {
		start += " --notify"
	}
	if r.Sockets {
		start += " --sockets"
	}
	verify := "-" + helper + " --timeout=5s" + operands
	if r.Swap {
		// The process that stands in for the container outlives the next two lines,
		// which take TimeoutStartSec= each at most.
		standIn := 3*r.Timeout + time.Minute
		d.Set("ExecReload", "-"+helper+" --prepare --stand-in="+standIn.String()+operands)
		d.Set("ExecReload", start+" --swap -- "+r.Start)
		d.Set("ExecReload", "-"+replace("back")+" --next="+quote(handover.NextFile(mainPIDFile)))
		// The first one may be killed.
		d.Set("ExecReload", verify)
	} else {
		d.Set("ExecReload", helper+" --prepare"+operands)
		d.Set("ExecReload", start+" -- "+r.Start)
	}
	d.Set("ExecReload", verify)
	// The first one may be killed.
	d.Set("ExecReload", "-"+replace("finish"))
	d.Set("ExecReload", replace("finish")+" --last")
	d.Set("ExecStopPost", d.StopReload(p))
}

// StopReload returns the command that removes both containers, if a reload was cut off.
func (d *Dropin) StopReload(p Programs) string {
	unit := unitfile.QuoteArgument(d.Unit)
	if unitfile.IsTemplate(d.Unit) {
		unit = "%n"
	}
	return "-" + unitfile.QuoteArgument(p.OCIMainPID) + " replace stop --unit=" + unit
}
