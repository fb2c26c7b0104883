// Package story tells how the last start of a unit went: who said what, what
// systemd took and what it refused, and how long each step took.
//
// It has two sources. The journal has the words; systemd, over D-Bus, has when
// each command of the unit began and ended. What systemd does without a word, as
// taking over a main PID, is told from the latter. Either may be missing.
package story

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/message"
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

// Event is one line of the story.
type Event struct {
	// At is when it was, from the beginning of the start.
	At time.Duration
	// Source is who said it: systemd, podman, conmon, …
	Source string
	// Text is in the words of the source.
	Text    string
	Verdict Verdict
	// Meaning puts it into other words and says what to do.
	Meaning string
	// Derived says that nobody said it: systemd's state shows it.
	Derived bool

	rank int
}

// Step is a part of the start that takes time.
type Step struct {
	Name   string
	From   time.Duration
	To     time.Duration
	Failed bool
}

// Story is the start of a unit.
type Story struct {
	Unit         string
	User         string
	Cgroup       string
	InvocationID string
	Began        time.Time
	Took         time.Duration
	// Outcome is "started", "failed" or "starting".
	Outcome string
	Events  []Event
	Steps   []Step
	// Reason is why it failed, or what is odd though it did not; Remedy what to
	// do about it.
	Reason string
	Remedy string
	// Since is what the unit is now, if it does not run any more.
	Since string
	// Cut says that there was more than is told.
	Cut bool
}

// Messages of systemd, systemd.directives(7) and the catalog of journalctl(1).
const (
	msgStarting = "7d4958e842da4a758f6c1cdc7b36dcc5"
	msgStarted  = "39f53479d3a045ac8e11786248231fbf"
	msgNotStart = "be02cf6855d2428ba40df7e9d022f03d"
	msgFailed   = "d9b373ed55a64feb8242e02dbe79a49c"
	msgSuccess  = "7ad2d189f7e94e70a38c781354912448" // the unit is over, and did not fail
)

// Tell tells the story out of the journal's entries, which may hold those of
// others, and what systemd knows of the unit, nil for nothing.
func Tell(name string, unit *manager.Unit, entries []journal.Entry) Story {
	t := teller{unit: unit, name: name}
	t.Unit = name
	t.begin(entries)
	if unit != nil {
		t.User = unit.User
		if _, ok := unit.Notifier(); ok {
			t.Cgroup = string(unit.Cgroup())
		}
	}
	// Twice, because who says what is known only after some have said it.
	for range 2 {
		t.Events = nil
		for _, e := range entries {
			t.entry(e)
		}
	}
	t.commands()
	t.end()
	slices.SortStableFunc(t.Events, func(a, b Event) int { return int(a.At - b.At) })
	t.reason()
	return t.Story
}

type teller struct {
	Story
	name string
	unit *manager.Unit // nil unless it tells of the same start
	// zero is the beginning on the clock of this boot.
	zero time.Duration
	// podmans and containers are the PIDs and IDs that are known to be the
	// unit's; with Cgroup=user their messages bear no mark of it.
	podmans    map[string]bool
	containers map[string]bool
	// conmons are PIDs that are conmon's: when the main process ends, systemd
	// notes its PID and times with the command of ExecStart=, as if they were
	// podman's.
	conmons map[int]bool
	ended   time.Duration
	began   bool
}

// begin finds the beginning of the start: systemd's message, or its memory.
func (t *teller) begin(entries []journal.Entry) {
	t.Outcome = "starting"
	t.podmans, t.containers, t.conmons = map[string]bool{}, map[string]bool{}, map[int]bool{}
	for _, e := range entries {
		if e.FromManager() && e.Fields["UNIT"] == t.name && e.Fields["MESSAGE_ID"] == msgStarting {
			t.InvocationID = e.Fields["INVOCATION_ID"]
			t.Began, t.zero, t.began = e.Time, e.Monotonic, true
		}
	}
	u := t.unit
	if u == nil {
		return
	}
	if t.InvocationID != "" && u.InvocationID != t.InvocationID {
		t.unit = nil
		return
	}
	t.InvocationID = u.InvocationID
	if u.InactiveExit > 0 {
		if !t.began {
			t.Began = u.Properties.Time("InactiveExitTimestamp")
		}
		// systemd notes that time when it has started the first command.
		t.zero, t.began = u.InactiveExit, true
		for _, c := range slices.Concat(u.Pre, u.Start) {
			if at := c.StartedMonotonic; at > t.zero-time.Second && at < t.zero {
				t.zero = at
			}
		}
	}
	for _, c := range u.Start {
		if c.PID > 0 {
			t.podmans[strconv.Itoa(c.PID)] = true
		}
	}
}

// entry takes an entry into the story if it is of this start.
func (t *teller) entry(e journal.Entry) {
	f := e.Fields
	at := e.Monotonic - t.zero
	if !t.began || at < -time.Millisecond || t.ended > 0 && at > t.ended+grace {
		return
	}
	at = max(at, 0)
	switch {
	case e.FromManager():
		if f["INVOCATION_ID"] == t.InvocationID && f["UNIT"] == t.name || t.mentions(e.Message) {
			t.manager(e, at)
		}
	case f["_SYSTEMD_INVOCATION_ID"] == t.InvocationID && t.InvocationID != "", saysSo(e, t.name, t.InvocationID, t.unit), t.elsewhere(e):
		t.process(e, at)
	}
}

// grace is how long after the start its last words are waited for.
const grace = 500 * time.Millisecond

// mentions reports whether PID 1 says of another unit what is about one of our
// processes: a message that it took for that unit's.
func (t *teller) mentions(message string) bool {
	m := rejected().FindStringSubmatch(message)
	return m != nil && !strings.HasPrefix(message, t.name+":") && (len(t.podmans) == 0 || t.near(m[1]))
}

// near reports whether a process is one of the unit's podmans, or was started
// right after one, as the child is in which podman joins its user namespace.
func (t *teller) near(pid string) bool {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return false
	}
	for podman := range t.podmans {
		if p, err := strconv.Atoi(podman); err == nil && n >= p && n < p+1000 {
			return true
		}
	}
	return false
}

// elsewhere reports whether a process below the user's manager is one of the
// unit's: its podman, by PID or command line, or of one of its containers.
func (t *teller) elsewhere(e journal.Entry) bool {
	f := e.Fields
	if t.unit == nil || t.unit.UID < 0 || f["_UID"] != strconv.Itoa(t.unit.UID) || !strings.HasPrefix(f["_SYSTEMD_UNIT"], "user@") {
		return false
	}
	if t.podmans[f["_PID"]] {
		return true
	}
	for _, c := range t.unit.Start {
		if cmdline := strings.Join(c.Arguments, " "); cmdline != "" && unquoted(f["_CMDLINE"]) == unquoted(cmdline) {
			t.podmans[f["_PID"]] = true
			return true
		}
	}
	for pid := range t.podmans {
		if strings.Contains(e.Message, "podman-"+pid+".scope") {
			return true
		}
	}
	for id := range t.containers {
		if f["CONTAINER_ID_FULL"] == id || strings.Contains(e.Message, id[:shortID]) || strings.Contains(f["_CMDLINE"], id) {
			return true
		}
	}
	return false
}

// saysSo reports whether one of our own programs says that it is about a start of
// a unit: journald does not know the control group of a process that has ended,
// and with Cgroup=user the hook's is not the unit's. Only root and the unit's user
// can say that; and root's invocation ID alone may come from a file of another
// unit's user (EnvironmentFile=). unit is nil if it is not known.
func saysSo(e journal.Entry, name, invocation string, unit *manager.Unit) bool {
	f := e.Fields
	if invocation == "" || f["INVOCATION_ID"] != invocation || f["UNIT"] != name || ownKind(e) == nil {
		return false
	}
	return f["_UID"] == "0" || unit != nil && f["_UID"] == strconv.Itoa(unit.UID)
}

// unquoted makes the journal's way to write a command line comparable.
func unquoted(s string) string { return strings.NewReplacer(`"`, "", `'`, "", `\`, "").Replace(s) }

const shortID = 12

// isContainerID reports whether text is a container's ID as podman prints it.
func isContainerID(text string) bool {
	if len(text) != 64 {
		return false
	}
	return strings.Trim(text, "0123456789abcdef") == ""
}

// manager tells what PID 1 said.
func (t *teller) manager(e journal.Entry, at time.Duration) {
	ev := Event{At: at, Source: "systemd", Text: t.named(words(t.name, "systemd", e.Message))}
	if !ev.judge(e, t.Cgroup != "") {
		return
	}
	if e.Fields["UNIT"] == t.name && e.Fields["JOB_TYPE"] != "stop" {
		switch e.Fields["MESSAGE_ID"] {
		case msgStarted:
			t.Outcome, t.ended = "started", at
		case msgNotStart:
			t.Outcome, t.ended = "failed", at
			ev.Verdict = Failed
		case msgFailed:
			ev.Verdict = Failed
		case msgSuccess:
			if t.Outcome == "started" {
				t.Since = "over, since +" + duration(at) + ": systemd had no process left to watch"
			}
		}
	}
	t.Events = append(t.Events, ev)
}

var sender = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`from PID (\d+)`) })

// named says behind a PID that PID 1 had a message from which process that is.
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

// commandOf returns which of the unit's commands a process is, "" if none.
func (t *teller) commandOf(pid int) string {
	if t.unit == nil || pid == 0 {
		return ""
	}
	for _, c := range slices.Concat(t.unit.Pre, t.unit.Start, t.unit.Post) {
		if c.PID == pid && !t.conmons[pid] {
			return c.Name()
		}
	}
	return ""
}

// process tells what a process of the unit said.
func (t *teller) process(e journal.Entry, at time.Duration) {
	f := e.Fields
	ev := Event{At: at, Source: source(e)}
	switch name := t.commandOf(e.PID()); {
	case comm(e) == "conmon":
		t.conmons[e.PID()] = true
	// The identifier may be SyslogIdentifier= of the unit.
	case name != "" && !isOwn(ev.Source):
		ev.Source = name
	case f["_TRANSPORT"] == "stdout" && isContainerID(e.Message):
		ev.Source = "podman"
	}
	ev.Text = words(t.name, ev.Source, e.Message)
	switch {
	case ev.Source == "podman" && isContainerID(e.Message):
		t.containers[e.Message] = true
		ev.Text = "ID " + e.Message[:shortID]
	case f["PODMAN_EVENT"] != "":
		if isContainerID(f["PODMAN_ID"]) && f["PODMAN_TYPE"] != "image" {
			t.containers[f["PODMAN_ID"]] = true
		}
		ev.Text = strings.TrimSpace(f["PODMAN_TYPE"] + " " + f["PODMAN_EVENT"] + " " + f["PODMAN_NAME"])
	}
	if !ev.judge(e, t.Cgroup != "") {
		return
	}
	t.Events = append(t.Events, ev)
}

const (
	notifyMainPID = message.NotifyMainPID
	hookName      = message.Hook
)

// own are our programs, by what their messages start with. Those of the first
// two are root's; the hook's come by way of the runtime, podman or conmon.
var own = []struct {
	name   string
	asRoot bool
}{{notifyMainPID, true}, {message.OCIMainPID, true}, {hookName, false}}

func isOwn(source string) bool {
	for _, p := range own {
		if p.name == source {
			return true
		}
	}
	return false
}

// source names who wrote an entry.
func source(e journal.Entry) string {
	f := e.Fields
	if e.FromManager() {
		return "systemd"
	}
	if k := ownKind(e); k != nil {
		return k.Program
	}
	for _, p := range own {
		if strings.HasPrefix(e.Message, p.name+": ") && (f["_UID"] == "0" || !p.asRoot) {
			return p.name
		}
	}
	switch {
	case strings.Contains(e.Message, hookName+": "):
		return hookName
	case f["CONTAINER_NAME"] != "":
		return "container"
	case f["_TRANSPORT"] == "stdout" && f["_COMM"] != "":
		return comm(e) // the identifier is that of the unit
	case f["SYSLOG_IDENTIFIER"] == "systemd":
		return "systemd --user" // or somebody who calls himself that
	case f["SYSLOG_IDENTIFIER"] != "":
		return f["SYSLOG_IDENTIFIER"]
	}
	return comm(e)
}

// comm is the name of the process, which is in parentheses until it executes;
// podman executes itself again in its user namespace.
func comm(e journal.Entry) string {
	name := strings.Trim(e.Fields["_COMM"], "()")
	if name == "exe" {
		name = "podman"
	}
	return name
}

// words leaves out of a message what the columns before it say.
func words(name, source, message string) string {
	message = strings.TrimPrefix(message, source+": ")
	message = strings.TrimPrefix(message, name+": ")
	return longID().ReplaceAllStringFunc(message, func(id string) string { return id[:shortID] })
}

var longID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[0-9a-f]{64}`) })

// end finds when the start was over and bounds what was open.
func (t *teller) end() {
	if u := t.unit; u != nil && t.ended == 0 && t.began {
		switch {
		case u.ActiveEnter > t.zero:
			t.ended, t.Outcome = u.ActiveEnter-t.zero, "started"
		case u.ActiveState == "failed" || u.ActiveState == "inactive":
			t.ended, t.Outcome = u.Properties.Monotonic("InactiveEnterTimestampMonotonic")-t.zero, "failed"
		}
	}
	if t.ended <= 0 {
		for _, e := range t.Events {
			t.ended = max(t.ended, e.At)
		}
	}
	t.Took = t.ended
	for i := range t.Steps {
		if s := &t.Steps[i]; s.To < s.From {
			s.To = max(t.ended, s.From)
		}
	}
	// What systemd says itself needs no telling from its state.
	said := slices.ContainsFunc(t.Events, func(e Event) bool { return e.Verdict == Took && !e.Derived })
	t.Events = slices.DeleteFunc(t.Events, func(e Event) bool { return said && e.Verdict == Took && e.Derived })
	slices.SortStableFunc(t.Steps, func(a, b Step) int { return int(a.From - b.From) })
	if u := t.unit; u != nil && t.Outcome == "started" && t.Since == "" && u.ActiveState != "active" && u.Result != "" {
		t.Since = fmt.Sprintf("%s (%s) since %s, result %s", u.ActiveState, u.SubState, u.StateChange.Format("Jan 2 15:04:05"), u.Result)
	}
}

// reason finds what best says why it failed: the word of the one who knows most.
func (t *teller) reason() {
	blamed := -1
	if t.Reason, t.Remedy, blamed = blame(t.Events, t.Outcome == "failed"); blamed >= 0 {
		t.Events[blamed].Meaning = "" // the remedy is told at the end
	}
	if t.Reason == "" && t.Outcome == "failed" && t.unit != nil {
		t.Reason = "systemd's result is " + t.unit.Result
	}
}
