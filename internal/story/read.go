package story

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
)

// Bounds of what is read of a start, in entries of the journal. root's entries are read
// by queries of their own, so that users' entries cannot hide them.
const (
	maxStarts  = 50
	maxManager = 1000
	maxRoot    = 500
	maxUsers   = 10000
	maxNewest  = 300
)

// ErrNoStart says that neither the journal nor systemd knows of a start.
var ErrNoStart = errors.New("was not started, as far as the journal goes back; start it first: systemctl start UNIT")

// Read reads the story of the last start of a unit. unit is what systemd knows of the
// unit, nil for nothing. The error is ErrNoStart if there was no start. If ctx ends
// early, the story has what was read before, and Missing says so.
func Read(ctx context.Context, name string, unit *manager.Unit) (Story, error) {
	r := reader{ctx: ctx, name: name}
	began, id := r.lastStart()
	if unit != nil && unit.InvocationID != "" && unit.InvocationID != id {
		// A start that systemd did not log.
		if at := unit.Properties.Time("InactiveExitTimestamp"); at.After(began) {
			began, id = at, unit.InvocationID
		}
	}
	if began.IsZero() {
		if r.err != nil {
			return Story{}, r.err
		}
		return Story{}, fmt.Errorf("%s %w", name, ErrNoStart)
	}
	r.read(unit, began, id)
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return Story{}, err
	}
	slices.SortStableFunc(r.entries, func(a, b journal.Entry) int { return cmp.Compare(a.Monotonic, b.Monotonic) })
	s := Tell(name, unit, r.entries)
	s.Missing = r.missing
	return s, nil
}

// reader collects the entries of a start. It queries by fields that journald sets.
// Anybody can set a field such as UNIT=, so queries combine it with the UID of PID 1,
// root or the unit's user.
type reader struct {
	ctx     context.Context
	name    string
	entries []journal.Entry
	known   map[string]bool // cursors of the entries
	missing []string
	err     error // of the first query that failed
}

// lastStart returns when the last start began, and its invocation ID. The time is zero
// if the journal has no start. The ID is "" for a start that failed before systemd
// gave it one.
func (r *reader) lastStart() (began time.Time, id string) {
	q := journal.Query{
		Matches: []string{"_PID=1", "_UID=0", "UNIT=" + r.name, "MESSAGE_ID=" + msgStarting, "MESSAGE_ID=" + msgNotStart},
		Newest:  true, Most: maxStarts,
	}
	r.query("systemd's messages", q, func(e journal.Entry) bool {
		starting := e.Fields["MESSAGE_ID"] == msgStarting
		switch entryID := e.Fields["INVOCATION_ID"]; {
		case began.IsZero():
			began, id = e.Time, entryID
		case starting && entryID == id:
			began = e.Time
		default:
			return false
		}
		return !starting && id != ""
	})
	return began, id
}

// aside is how long before a start its failed dependencies are searched for.
const aside = 2 * time.Minute

// read reads the entries of the start that began at that time.
func (r *reader) read(unit *manager.Unit, began time.Time, id string) {
	name := r.name
	pid1 := []string{"_PID=1", "_UID=0", "UNIT=" + name}
	if id == "" {
		others := []string{"_PID=1", "_UID=0", "MESSAGE_ID=" + msgNotStart}
		r.collect("systemd's messages", journal.Query{Matches: others, Since: began.Add(-aside), Until: began, Newest: true, Most: maxNewest})
	} else {
		// What PID 1 said before a start that it did not announce.
		r.collect("systemd's messages", journal.Query{Matches: append(pid1, "INVOCATION_ID="+id), Since: began.Add(-early), Until: began, Most: maxManager})
	}
	over := r.bothEnds("systemd's messages", journal.Query{Matches: pid1, Since: began, Most: maxManager}, time.Time{})
	if id == "" {
		return
	}
	r.bothEnds("root's messages", journal.Query{
		Matches: []string{"_UID=0", "_SYSTEMD_INVOCATION_ID=" + id, "+", "_UID=0", "OBJECT_SYSTEMD_UNIT=" + name},
		Since:   began, Most: maxRoot,
	}, over)
	users := []string{"_SYSTEMD_INVOCATION_ID=" + id}
	if unit != nil && unit.UID > 0 {
		uid := strconv.Itoa(unit.UID)
		manager := "user@" + uid + ".service"
		r.bothEnds("systemd's messages about "+manager, journal.Query{Matches: []string{"_PID=1", "_UID=0", "UNIT=" + manager}, Since: began, Most: maxRoot}, over)
		users = append(users, "+", "_UID="+uid, "_SYSTEMD_UNIT="+manager, "+", "_UID="+uid, "INVOCATION_ID="+id, "UNIT="+name)
	}
	r.bothEnds("messages of the unit's user", journal.Query{Matches: users, Since: began, Most: maxUsers}, over)
}

// bothEnds collects the first entries of a query, up to the end of the start, and the
// newest entries. over is the end of the start, zero if it is not known yet. bothEnds
// returns over, or the end of the start that PID 1 logged in these entries.
func (r *reader) bothEnds(what string, q journal.Query, over time.Time) time.Time {
	n, cut := 0, false
	err := r.query(what, q, func(e journal.Entry) bool {
		if !over.IsZero() && e.Time.After(over) {
			cut = true
			return false
		}
		n++
		r.add(e)
		if id := e.Fields["MESSAGE_ID"]; over.IsZero() && !e.Time.Before(q.Since) && e.FromManager() && e.Fields["UNIT"] == r.name && (id == msgStarted || id == msgNotStart) {
			over = e.Time.Add(grace)
		}
		return true
	})
	if n < q.Most && !cut && !errors.Is(err, journal.ErrTooMuch) {
		return over // the query has no more entries
	}
	if n == q.Most {
		r.missing = append(r.missing, fmt.Sprintf("There are more than %d %s from this start; of the rest the last %d were looked at", n, what, maxNewest))
	}
	q.Newest, q.Most = true, maxNewest
	r.collect(what, q)
	return over
}

// collect adds all entries of a query.
func (r *reader) collect(what string, q journal.Query) {
	r.query(what, q, func(e journal.Entry) bool {
		r.add(e)
		return true
	})
}

func (r *reader) add(e journal.Entry) {
	if r.known == nil {
		r.known = map[string]bool{}
	}
	if !r.known[e.Cursor()] {
		r.known[e.Cursor()] = true
		r.entries = append(r.entries, e)
	}
}

// query reads the journal. If that fails, it notes what is missing, and returns why.
func (r *reader) query(what string, q journal.Query, f func(journal.Entry) bool) error {
	if r.ctx.Err() != nil && r.err != nil {
		return r.err // it is noted already
	}
	large := 0
	q.LeftOut = &large
	err := journal.Read(r.ctx, q, f)
	if err != nil {
		if r.err == nil {
			r.err = err
		}
		r.missing = append(r.missing, fmt.Sprintf("Not all of %s could be read: %v", what, err))
	}
	if large > 0 {
		r.missing = append(r.missing, fmt.Sprintf("Of %s, %d entries of more than 1 MiB are left out", what, large))
	}
	return err
}

// LastReason returns the best reason for a unit's failure, at its last start or
// later. It is "" if there is none.
func LastReason(ctx context.Context, unit *manager.Unit) (string, error) {
	s, err := Read(ctx, unit.Name, unit)
	if errors.Is(err, ErrNoStart) {
		return "", nil
	}
	return s.Reason, err
}
