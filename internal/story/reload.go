package story

import (
	"slices"
	"time"

	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/terminal"
)

// Reload is a reload that put another container in the place of the unit's.
type Reload struct {
	Began time.Time
	Took  time.Duration
	// Ended says that it is over, Failed that the container of before goes on.
	Ended, Failed bool
	Steps         []Step
}

// lastReload returns the unit's last reload, by the times that systemd remembers, nil if
// there was none.
func lastReload(u *manager.Unit) *Reload {
	if u == nil || !slices.ContainsFunc(u.Reload, manager.Command.Replaces) {
		return nil
	}
	first, last := u.Reload[0], u.Reload[len(u.Reload)-1]
	zero := first.StartedMonotonic
	if zero == 0 {
		return nil
	}
	r := &Reload{Began: first.Started}
	for _, c := range u.Reload {
		if c.StartedMonotonic < zero {
			continue // of an earlier reload
		}
		to := max(c.EndedMonotonic, c.StartedMonotonic)
		r.Took = max(r.Took, to-zero)
		r.Steps = append(r.Steps, Step{Name: reloadStep(c), From: c.StartedMonotonic - zero, To: to - zero, Failed: c.Status != 0 || c.Code > 1})
	}
	r.Ended = last.StartedMonotonic >= zero && last.EndedMonotonic >= last.StartedMonotonic
	r.Failed = r.Ended && (last.Status != 0 || last.Code > 1)
	return r
}

// reloadStep says what a command of a reload does.
func reloadStep(c manager.Command) string {
	has := func(argument string) bool { return slices.Contains(c.Arguments, argument) }
	switch {
	case c.NotifiesMainPID():
		return "verify and move"
	case c.IsNotifyMainPID():
		return "prepare"
	case !c.Replaces():
		return stepName(c)
	case has("start") && has("--swap"):
		return "end old one, start new"
	case has("start"):
		return "start the new one"
	case has("back"):
		return "back, if that failed"
	case has("--last"):
		return "forget the reload"
	}
	return "end the old one"
}

func (r Reload) write(o *terminal.Output) {
	outcome, style := "goes on, since "+duration(r.Took), terminal.Warn
	switch {
	case r.Failed:
		outcome, style = "failed after "+duration(r.Took)+": the container of before goes on", terminal.Bad
	case r.Ended:
		outcome, style = "took "+duration(r.Took), terminal.Good
	}
	o.Printf("\nThe last reload %s\n%s\n\n", o.Paint(style, outcome), o.Paint(terminal.Faint, r.Began.Format("Mon 2006-01-02 15:04:05 MST")))
	Story{Took: max(r.Took, 1), Steps: r.Steps}.timeline(o)
}
