package story

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"oci-mainpid-hook/internal/message"
)

// containerEnd adds an event for a container that ended by itself.
func (t *teller) containerEnd() {
	if t.exit == nil || t.id == "" && t.Outcome != Started {
		// With Cgroup=user systemd does not watch conmon before the start is over.
		for _, e := range t.Events {
			if e.Source == message.Hook && e.rank == rankGone {
				t.Exit = "ended before the hook could look at it"
				t.Events = append(t.Events, Event{At: e.At, Source: container, Text: t.Exit, Verdict: Failed, Derived: true, rank: rankEnded})
				return
			}
		}
		return
	}
	t.Exit = "ended with exit status " + t.exit.status
	if t.exit.killed {
		t.Exit = "lost its conmon, the unit's main process: killed by signal " + t.exit.status
	}
	ev := Event{At: t.exit.at, Source: container, Text: t.Exit, Derived: true}
	caused := t.stopping > 0 && t.stopping <= ev.At || slices.ContainsFunc(t.Events, func(e Event) bool {
		byRoot := e.Source == systemPID1 || isReserved(e.Source)
		return e.At <= ev.At && (e.rank > rankEnded || byRoot && e.rank >= rankTimeout)
	})
	if !caused {
		ev.Verdict, ev.rank = Failed, rankEnded
	}
	t.Events = append(t.Events, ev)
}

// hookMissing adds an event if podman started the container, but no hook delivered the
// PID of its conmon.
func (t *teller) hookMissing() {
	noPID := slices.IndexFunc(t.Events, func(e Event) bool { return e.Source == message.NotifyMainPID && e.rank == rankNoPID })
	hook := slices.ContainsFunc(t.Events, func(e Event) bool { return e.Source == message.Hook && e.Verdict == Failed })
	if noPID < 0 || hook || t.id == "" || t.exit != nil && t.exit.at < t.Events[noPID].At {
		return
	}
	t.Events = append(t.Events, Event{
		At: t.Events[noPID].At, Source: "podman", Verdict: Failed, Derived: true, rank: rankNoHook,
		Text:    "started container " + t.id + ", but no hook gave the PID of its conmon",
		Meaning: "does podman run the hook as this user? oci-mainpid check " + t.name + " says in which hooks_dir oci-mainpid-hook.json must be",
	})
}

// isUp reports whether systemd says that the unit runs.
func (t *teller) isUp() bool {
	return t.unit != nil && (t.unit.ActiveState == "active" || t.unit.ActiveState == "reloading" || t.unit.ActiveState == "refreshing")
}

// waitsForRestart reports whether systemd will start the unit again.
func (t *teller) waitsForRestart() bool {
	return t.unit != nil && strings.HasPrefix(t.unit.SubState, "auto-restart")
}

// now sets Now: what the unit is doing, if it is not active.
func (t *teller) now() {
	u := t.unit
	switch {
	case t.isUp() || t.Outcome == Starting && !t.waitsForRestart():
	case t.waitsForRestart():
		wait, _ := u.Properties.Uint("RestartUSec")
		t.Now = fmt.Sprintf("waits to be started again (RestartSec=%v, restarts so far: %d)", time.Duration(wait)*time.Microsecond, u.Restarts)
	case u != nil && u.ActiveState == "failed":
		t.Now = "failed, with systemd's result " + u.Result
		if !u.StateChange.IsZero() {
			t.Now = "failed since " + u.StateChange.Format("Jan 2 15:04:05") + ", with systemd's result " + u.Result
		}
	case t.Outcome == StartFailed:
	case t.broken > t.Took:
		t.Now = "not running: its last run failed"
	case u != nil && u.Type == "oneshot":
		t.Now = "over, with success: a unit with Type=oneshot ends when its command does"
	case t.stopping > 0:
		t.Now = "stopped: systemd was told to stop it at +" + duration(t.stopping)
	case t.over > 0 && t.Cgroup == "":
		t.Now = "over, since +" + duration(t.over) + ": systemd had no process left to watch"
	case t.over > 0:
		t.Now = "over, since +" + duration(t.over) + ": the container ended with success"
	case u != nil:
		t.Now = u.ActiveState + " (" + u.SubState + ")"
	}
}

// reason sets Reason and Remedy from the event that is closest to the cause.
func (t *teller) reason() {
	failed := t.Outcome == StartFailed
	late := 0 // index of the first event after the start
	if t.Outcome == Started {
		failed = !t.isUp() && (t.broken > t.Took || t.waitsForRestart() || t.unit != nil && t.unit.ActiveState == "failed")
		for failed && late < len(t.Events) && t.Events[late].At <= t.Took {
			late++
		}
	}
	best := blame(t.Events[late:], failed)
	if best < 0 {
		if failed && t.unit != nil && t.unit.Result != "" {
			t.Reason = "systemd's result is " + t.unit.Result
		}
	} else {
		e := &t.Events[late+best]
		t.Reason, t.Remedy = e.Source+": "+e.Text, e.Meaning
		if e.rank == rankEnded && len(t.output) == 0 && !t.logsToJournal() {
			t.Remedy = "what the container wrote is not in the journal; with LogDriver=journald (podman run --log-driver=journald) it is, from the next start on"
		}
		for i := range t.Events { // the remedy is told at the end
			if t.Events[i].Meaning == t.Remedy {
				t.Events[i].Meaning = ""
			}
		}
	}
	if t.failed = failed; failed {
		t.Output = t.output[max(len(t.output)-maxOutput, 0):]
	}
}

// logsToJournal reports whether the unit's podman was told to log to the journal.
func (t *teller) logsToJournal() bool {
	if t.unit == nil {
		return false
	}
	podman, _ := t.unit.Podman()
	driver, _ := podman.Last("log-driver")
	return driver == "journald"
}

// blame returns the index of the event that is closest to the cause of a failure, or -1.
// If nothing failed, it returns a message that systemd refused, unless systemd also
// took a main PID.
func blame(events []Event, failed bool) (best int) {
	best = -1
	for i, e := range events {
		switch {
		case !failed && e.Verdict == Took:
			return -1
		case e.rank == 0:
		case e.Verdict == Refused, failed && e.Verdict == Failed:
			// Of equal ranks the first counts: later ones are mostly its consequences.
			if best < 0 || e.rank > events[best].rank {
				best = i
			}
		}
	}
	return best
}
