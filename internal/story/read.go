package story

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
)

// maxEntries bounds how much of a start is read.
const maxEntries = 5000

// ErrNoStart says that neither the journal nor systemd knows of a start.
var ErrNoStart = errors.New("was not started, as far as the journal goes back; start it first: systemctl start UNIT")

// Read reads what there is about the last start of a unit. unit is what systemd
// knows of it, nil if that is nothing. The error is ErrNoStart where there was
// no start.
func Read(ctx context.Context, name string, unit *manager.Unit) (Story, error) {
	began, found, err := lastStart(ctx, name)
	if err != nil {
		return Story{}, err
	}
	if unit != nil && unit.InvocationID != "" && (!found || began.Fields["INVOCATION_ID"] != unit.InvocationID) {
		// A start that systemd did not log.
		if at := unit.Properties.Time("InactiveExitTimestamp"); at.After(began.Time) {
			began = journal.Entry{Time: at, Fields: map[string]string{"INVOCATION_ID": unit.InvocationID}}
			found = true
		}
	}
	if !found {
		return Story{}, fmt.Errorf("%s %w", name, ErrNoStart)
	}
	entries, cut, err := startEntries(ctx, name, unit, began)
	if err != nil {
		return Story{}, err
	}
	s := Tell(name, unit, entries)
	s.Cut = cut
	return s, nil
}

// lastStart returns systemd's word that it starts the unit.
func lastStart(ctx context.Context, name string) (last journal.Entry, found bool, err error) {
	q := journal.Query{Matches: []string{"_PID=1", "UNIT=" + name, "MESSAGE_ID=" + msgStarting}, Newest: true, Most: 1}
	err = journal.Read(ctx, q, func(e journal.Entry) bool {
		last, found = e, true
		return false
	})
	return last, found, err
}

// startEntries reads the entries of a start and of what may belong to it.
func startEntries(ctx context.Context, name string, unit *manager.Unit, began journal.Entry) (entries []journal.Entry, cut bool, err error) {
	id := began.Fields["INVOCATION_ID"]
	matches := []string{"INVOCATION_ID=" + id, "UNIT=" + name, "+", "_SYSTEMD_INVOCATION_ID=" + id}
	if unit != nil && unit.UID >= 0 {
		uid := strconv.Itoa(unit.UID)
		matches = append(matches, "+", "_UID="+uid, "_SYSTEMD_UNIT=user@"+uid+".service",
			"+", "_PID=1", "UNIT=user@"+uid+".service")
	}
	q := journal.Query{Matches: matches, Since: began.Time, Most: maxEntries}
	var over time.Time
	err = journal.Read(ctx, q, func(e journal.Entry) bool {
		if !over.IsZero() && e.Time.After(over) {
			return false
		}
		entries = append(entries, e)
		cut = len(entries) == maxEntries
		if e.FromManager() && e.Fields["UNIT"] == name && e.Fields["INVOCATION_ID"] == id {
			switch e.Fields["MESSAGE_ID"] {
			case msgStarted, msgNotStart:
				over = e.Time.Add(grace)
			}
		}
		return true
	})
	return entries, cut, err
}

// recentEntries is how many of a unit's last entries are looked at for the
// reason of a failure.
const recentEntries = 200

// LastReason returns what best says why a unit failed, after its last start too;
// "" if nothing does.
func LastReason(ctx context.Context, unit *manager.Unit) (string, error) {
	if unit.InvocationID == "" {
		return "", nil
	}
	var entries []journal.Entry
	q := journal.Query{
		Matches: []string{"INVOCATION_ID=" + unit.InvocationID, "UNIT=" + unit.Name, "+", "_SYSTEMD_INVOCATION_ID=" + unit.InvocationID},
		Newest:  true, Most: recentEntries,
	}
	err := journal.Read(ctx, q, func(e journal.Entry) bool {
		entries = append(entries, e)
		return true
	})
	slices.Reverse(entries)
	return Reason(unit, entries), err
}
