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

// Verdict says what became of what an event is about.
type Verdict string

// The verdicts.
const (
	None    Verdict = ""
	Took    Verdict = "took"    // systemd accepted it
	Refused Verdict = "refused" // systemd or notify-mainpid did not accept it
	Failed  Verdict = "failed"
)

// Outcome is how a start ended.
type Outcome string

// The outcomes.
const (
	Starting    Outcome = "starting" // the start has not ended yet
	Started     Outcome = "started"
	StartFailed Outcome = "failed"
)

// Event is one line of the story.
type Event struct {
	// At is the time since the beginning of the start.
	At time.Duration
	// Source is the program that said it, such as systemd, podman or conmon.
	Source string
	// Text is what the source said, in its own words.
	Text    string
	Verdict Verdict
	// Meaning says what Text means, and what to do.
	Meaning string
	// Derived says that there was no message: systemd's state shows the event.
	Derived bool
	// Again is how often the source said the same later, Last the time of the last
	// repetition.
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
	// LastReload is the last reload of a unit with Reload=, nil if there was none.
	LastReload *Reload
	// Now is what the unit is doing, if it is not active.
	Now string
	// Reason says why the unit failed, or what is odd although it did not fail.
	// Remedy says what to do about it.
	Reason string
	Remedy string
	failed bool // Reason is the reason of a failure
	// Exit says how the container ended, to follow the words "the container". It is
	// "" if that is not known.
	Exit string
	// Output are the last lines that the container wrote to the journal.
	Output []string
	// LeftOut says how many messages the story leaves out, by source.
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
	msgSuccess  = "7ad2d189f7e94e70a38c781354912448" // the unit ended, and did not fail
)

// grace is how long after its end the messages of a start still count.
const grace = 500 * time.Millisecond

// Tell makes the story from the journal's entries and from what systemd knows of the
// unit, nil for nothing. Entries that are not about the start do not matter.
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
	t.LastReload = lastReload(unit)
	return t.Story
}
