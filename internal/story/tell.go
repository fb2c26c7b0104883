package story

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
)

// teller makes the events of a story from the messages of the cast.
type teller struct {
	Story
	*cast
	unit  *manager.Unit // as systemd has it now, nil if it does not know the unit
	ended time.Duration // when the start was over, 0 if it is not over
	// lastLine is the last message of each process.
	lastLine map[int]string
	output   []string
	// id is the container's ID, which podman prints when it has started the container.
	id string
	// exit says how the main process ended, according to PID 1.
	exit *exit
	// stopping, over and broken are the times at which systemd began to stop the unit,
	// said that it ended with success, and said that it failed. 0 is never.
	stopping, over, broken time.Duration
}

// exit is how a main process ended.
type exit struct {
	at     time.Duration
	killed bool
	status string // a number, or the number and name of a signal
}

// tell makes the whole story.
func (t *teller) tell(entries []journal.Entry) {
	t.lastLine = map[int]string{}
	for _, e := range entries {
		switch at := max(e.Monotonic-t.start.zero, 0); {
		case !t.takesPart(e):
		case e.FromManager():
			t.manager(e, at)
		default:
			t.process(e, at)
		}
	}
	t.dependency(entries)
	t.commands()
	t.end()
	t.containerEnd()
	t.hookMissing()
	t.sort()
	t.now()
	t.reason()
	t.shorten()
}

func (t *teller) sort() {
	slices.SortStableFunc(t.Events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
}

// manager adds the event of a message of PID 1's.
func (t *teller) manager(e journal.Entry, at time.Duration) {
	ev := Event{At: at, Source: systemPID1, Text: t.named(words(t.name, systemPID1, e.Message))}
	if !ev.applyRule(e, t.Cgroup != "") {
		return
	}
	if e.Fields["UNIT"] == t.name {
		t.milestone(e, at)
	}
	t.Events = append(t.Events, ev)
}

var mainExited = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^\S+: Main process exited, code=(exited|killed|dumped), status=(\d+(/\S+)?)`)
})

// milestone notes what a message of PID 1's says about the unit's state.
func (t *teller) milestone(e journal.Entry, at time.Duration) {
	switch e.Fields["MESSAGE_ID"] {
	case msgStarted:
		if t.ended == 0 {
			t.Outcome, t.ended = Started, at
		}
	case msgNotStart:
		if t.ended == 0 {
			t.Outcome, t.ended = StartFailed, at
		}
	case msgStopping:
		t.stopping = at
	case msgSuccess:
		t.over = at
	case msgFailed:
		t.broken = at
	}
	if m := mainExited().FindStringSubmatch(e.Message); m != nil {
		t.exit = &exit{at: at, killed: m[1] != "exited", status: m[2]}
		if !t.exit.killed {
			t.exit.status, _, _ = strings.Cut(m[2], "/") // its name is that of an init script's exit status
		}
	}
}

var sender = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`from PID (\d+)`) })

// named adds a command's name to its PID in a text of PID 1's about notifications.
func (t *teller) named(text string) string {
	m := sender().FindStringSubmatchIndex(text)
	if m == nil {
		return text
	}
	pid, err := strconv.Atoi(text[m[2]:m[3]])
	if err != nil {
		return text
	}
	if name := t.commandOf(pid); name != "" {
		return text[:m[3]] + " (" + name + ")" + text[m[3]:]
	}
	return text
}

// process adds the event of a message of a process of the unit's.
func (t *teller) process(e journal.Entry, at time.Duration) {
	f := e.Fields
	ev := Event{At: at, Source: t.sourceOf(e)}
	ev.Text = words(t.name, ev.Source, strings.TrimRight(e.Message, "\n"))
	switch {
	case ev.Source == container:
		t.output = append(t.output, ev.Text)
	case ev.Source == "podman" && isContainerID(e.Message):
		t.id = e.Message[:shortID]
		ev.Text = "ID " + t.id
	case f["PODMAN_EVENT"] != "":
		ev.Text = strings.TrimSpace(f["PODMAN_TYPE"] + " " + f["PODMAN_EVENT"] + " " + f["PODMAN_NAME"])
	}
	t.lastLine[e.PID()] = ev.Text
	if ev.applyRule(e, t.Cgroup != "") {
		t.Events = append(t.Events, ev)
	}
}

// words removes from a message the unit and source that the columns before it show.
func words(name, source, text string) string {
	text = strings.TrimPrefix(text, source+": ")
	text = strings.TrimPrefix(text, name+": ")
	return longID().ReplaceAllStringFunc(text, func(id string) string { return id[:shortID] })
}

var longID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[0-9a-f]{64}`) })

// dependency adds the event of the failed unit because of which this unit did not
// start.
func (t *teller) dependency(entries []journal.Entry) {
	i := slices.IndexFunc(t.Events, func(e Event) bool {
		return e.Source == systemPID1 && strings.HasPrefix(e.Text, "Dependency failed for ")
	})
	if i < 0 {
		return
	}
	var required []string
	if t.unit != nil {
		for _, setting := range []string{"Requires", "Requisite", "BindsTo"} {
			required = append(required, t.unit.Properties.Strings(setting)...)
		}
	}
	var failed *journal.Entry
	for _, e := range entries {
		f := e.Fields
		if !e.FromManager() || f["MESSAGE_ID"] != msgNotStart || f["JOB_RESULT"] != "failed" || f["UNIT"] == t.name || e.Monotonic > t.start.zero+t.Events[i].At {
			continue
		}
		// Prefer a unit that this unit requires. Else take the last one, which a
		// required unit requires.
		if failed == nil || slices.Contains(required, f["UNIT"]) || !slices.Contains(required, failed.Fields["UNIT"]) {
			failed = &e
		}
	}
	if failed == nil {
		return
	}
	other := failed.Fields["UNIT"]
	show := "systemctl status " + other
	if strings.HasSuffix(other, ".service") {
		show = "oci-mainpid explain " + other
	}
	t.Events[i].Meaning = other + " did not start; to see why: " + show
	t.Events = append([]Event{{Source: systemPID1, Text: failed.Message, Verdict: Failed}}, t.Events...)
}

// end finds when the start was over, and ends the steps that were still open.
func (t *teller) end() {
	if u := t.current; u != nil && t.ended == 0 {
		switch {
		case u.ActiveEnter > t.start.zero:
			t.ended, t.Outcome = u.ActiveEnter-t.start.zero, Started
		case u.ActiveState == "failed" || u.ActiveState == "inactive":
			t.ended, t.Outcome = u.Properties.Monotonic("InactiveEnterTimestampMonotonic")-t.start.zero, StartFailed
		}
	}
	t.Took = t.ended
	if t.Took <= 0 {
		for _, e := range t.Events {
			t.Took = max(t.Took, e.At)
		}
	}
	for i := range t.Steps {
		if s := &t.Steps[i]; s.To < s.From {
			s.To = max(t.Took, s.From)
		}
	}
	// If systemd logged it, it need not be derived from systemd's state.
	said := slices.ContainsFunc(t.Events, func(e Event) bool { return e.Verdict == Took && !e.Derived })
	t.Events = slices.DeleteFunc(t.Events, func(e Event) bool { return said && e.Verdict == Took && e.Derived })
	slices.SortStableFunc(t.Steps, func(a, b Step) int { return cmp.Compare(a.From, b.From) })
}
