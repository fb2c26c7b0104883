// Package story tells how the last start of a unit went, and why the unit is down
// now: who said what, what systemd took and what it refused, and how long each
// step took.
//
// It has two sources. The journal has the words. systemd, over D-Bus, has the
// times at which each command of the unit began and ended, which show what systemd
// does without a word, such as taking over a main PID. Either may be missing.
//
// A story is made in two passes. The first finds out who takes part in the start:
// see cast. The second makes events out of what they said: see teller.
package story

import (
	"time"

	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
)

// Verdict is what became of something.
type Verdict string

// The verdicts.
const (
	None    Verdict = ""
	Took    Verdict = "took"    // systemd accepted it
	Refused Verdict = "refused" // systemd or notify-mainpid did not
	Failed  Verdict = "failed"
)

// Outcome is how a start ended.
type Outcome string

// The outcomes.
const (
	Starting    Outcome = "starting" // it has not ended yet
	Started     Outcome = "started"
	StartFailed Outcome = "failed"
)

// Event is one line of the story.
type Event struct {
	// At is the time since the beginning of the start.
	At time.Duration
	// Source is who said it: systemd, podman, conmon, …
	Source string
	// Text is in the words of the source.
	Text    string
	Verdict Verdict
	// Meaning says in other words what Text means, and what to do.
	Meaning string
	// Derived marks what nobody said and systemd's state shows.
	Derived bool
	// Again is how often the source said the same later, Last when it did so for
	// the last time.
	Again int
	Last  time.Duration

	rank int
}

// Step is a part of the start that takes time.
type Step struct {
	Name   string
	From   time.Duration
	To     time.Duration
	Failed bool
}

// Story is the last start of a unit, and its end if the unit is down.
type Story struct {
	Unit         string
	User         string
	Cgroup       string
	InvocationID string
	Began        time.Time
	Took         time.Duration
	Outcome      Outcome
	Events       []Event
	Steps        []Step
	// Now is what the unit is doing, if it is not active.
	Now string
	// Reason is why the unit failed, or what is odd though it did not; Remedy is
	// what to do about it.
	Reason string
	Remedy string
	failed bool // Reason is that of a failure
	// Exit says how the container ended, after the words "the container"; "" if
	// that is not known.
	Exit string
	// Output are the last lines that the container wrote to the journal.
	Output []string
	// LeftOut says how many messages are not told, by source.
	LeftOut map[string]int
	// Missing says what could not be read, and why.
	Missing []string
}

// Messages of systemd, systemd.directives(7) and the catalog of journalctl(1).
const (
	msgStarting = "7d4958e842da4a758f6c1cdc7b36dcc5"
	msgStarted  = "39f53479d3a045ac8e11786248231fbf"
	msgNotStart = "be02cf6855d2428ba40df7e9d022f03d"
	msgStopping = "de5b426a63be47a7b6ac3eaac82e2f6f"
	msgFailed   = "d9b373ed55a64feb8242e02dbe79a49c"
	msgSuccess  = "7ad2d189f7e94e70a38c781354912448" // the unit is over, and did not fail
)

// grace is how long after the start its last words are waited for.
const grace = 500 * time.Millisecond

// Tell tells the story out of the journal's entries, which may hold those of
// others, and what systemd knows of the unit, nil for nothing.
func Tell(name string, unit *manager.Unit, entries []journal.Entry) Story {
	cast := identify(name, unit, entries)
	t := teller{cast: cast, unit: unit}
	t.Unit, t.InvocationID, t.Began, t.Outcome = name, cast.start.invocationID, cast.start.began, Starting
	if unit != nil {
		t.User = unit.User
		if _, ok := unit.Notifier(); ok {
			t.Cgroup = string(unit.Cgroup())
		}
	}
	t.tell(entries)
	return t.Story
}
