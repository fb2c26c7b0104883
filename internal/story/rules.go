package story

import (
	"regexp"
	"sync"

	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/message"
)

// author is who must have written a message for a rule to apply: a container
// can print whatever it likes.
type author int

const (
	byManager author = iota // PID 1
	byRoot                  // a program that the unit runs as root
	byUser                  // podman, conmon, the runtime, the hook
)

// rule says what a message means.
type rule struct {
	author author
	// pattern is of the text; of our own programs it is how they put it where no
	// journal took it with its kind.
	pattern string
	verdict Verdict
	meaning string
	// expected is the meaning, if not empty, for a unit in which notify-mainpid
	// has the last word: then it is no reason for anything.
	expected string
	// rank orders the reasons for a failure: the higher, the closer to the cause.
	rank int
	// kind is that of one of our own messages, nil for those of others.
	kind *message.Kind
}

// rules are tried in order. Those of systemd are the texts of src/core/service.c
// and manager.c; that it takes a PID over, it logs at the level debug only.
var rules = []rule{
	{byManager, `Got notification message from PID (\d+), but reception only permitted for`, Refused,
		"systemd takes the sender for a process of another unit, whose main process alone may send: the control group that podman moved itself into is not this unit's. A unit of ours needs no such message: see whether its drop-in is in effect, oci-mainpid check",
		"podman's own message is taken for one of another unit, which does not matter: notify-mainpid speaks for this one", 20, nil},
	{byManager, `Got notification message from PID (\d+), but reception is disabled`, Refused,
		"the unit that systemd takes the sender for has NotifyAccess=none", "", 20, nil},
	{byManager, `New main PID (\d+) does not belong to service, but we'll accept it`, Took,
		"the process is outside the unit's control group, but root asked for it: notify-mainpid", "", 0, nil},
	{byManager, `New main PID (\d+) does not belong to service, refusing`, Refused,
		"podman itself asked for it, and conmon is outside the unit's control group; only root's word counts then, which notify-mainpid gives. Give the unit its drop-in: oci-mainpid generate",
		"podman asked for it, which does not count here; notify-mainpid asks next", 25, nil},
	{byManager, `New main PID (\d+) belongs to service`, Took, "", "", 0, nil},
	{byManager, `Supervising process (\d+) which is not our child`, Took,
		"systemd watches it by a pidfd and still notices when it ends", "", 0, nil},
	{byManager, `New PID (\d+) does not belong to service`, Refused, "what the PID file names is outside the unit's control group", "", 20, nil},
	{byManager, `PID file .* is not owned by root`, Refused,
		"systemd trusts a PID file of a user only if it names a process of the unit; a unit of ours has no PIDFile=: oci-mainpid generate", "", 30, nil},
	{byManager, `Can't open PID file|PID file .* not readable|Permission denied while opening PID file`, Refused,
		"podman may not write the file as this user; a unit of ours has no PIDFile=: oci-mainpid generate", "", 30, nil},
	{byManager, `start(-post|-pre)? operation timed out`, Failed,
		"TimeoutStartSec= was over; an image that has yet to be pulled can take longer", "", 40, nil},
	{byManager, `Failed at step (\w+) spawning`, Failed,
		"systemd could not run the command: FDS is OpenFile=, USER a user that does not exist, EXEC a program that is not there", "", 60, nil},
	{byManager, `Failed to determine user credentials`, Failed, "the user of User= does not exist", "", 60, nil},
	{byManager, `Failed with result 'protocol'`, Failed,
		"podman ended before systemd heard READY=1. Where the message went, systemd says at the log level debug only: systemctl log-level debug, start the unit, systemctl log-level info, and this again", "", 5, nil},
	{byManager, `Failed with result '([a-z-]+)'`, Failed, "", "", 1, nil},
	{byManager, `Control process exited, code=(killed|dumped|exited, status=[1-9])`, Failed, "", "", 2, nil},
	{byManager, `Main process exited, code=(killed|dumped)`, Failed, "", "", 2, nil},
	{byManager, `Main process exited, code=exited, status=([1-9]\d*)`, Failed, "", "", 2, nil},
	{byManager, `Scheduled restart job`, None, "", "", 0, nil},
	{byManager, `Got notification message from PID \d+(:| \()`, None, "", "", 0, nil},

	{byRoot, `^oci-mainpid: .*: not started: `, Refused, "oci-mainpid keeps the unit from starting rather than have it run as root; mend that, then: systemctl daemon-reload", "", 90, &message.NotStarted},
	{byRoot, `notify-mainpid: .*refused: `, Refused, "the process is not what the unit's main process must be: see notify-mainpid(8)", "", 80, &message.Refused},
	{byRoot, `notify-mainpid: .*no PID in the mainpid file`, Failed, "the hook did not write: podman did not start a container, or does not run the hook; see oci-mainpid check", "", 30, &message.NoMainPID},
	{byRoot, `notify-mainpid: .* is the main process$`, Took, "", "", 0, &message.MainProcess},
	{byRoot, `notify-mainpid: `, Failed, "", "", 70, &message.HelperFailed},
	{byRoot, `notify-mainpid: `, Failed, "", "", 70, &message.NotTold},
	{byUser, `oci-mainpid-hook: `, Failed, "", "", 75, &message.HookFailed},

	{byUser, `cgroup\.procs: Permission denied`, Failed,
		"the kernel lets nobody move a process between two delegated control groups; podman exec and health checks need Cgroup=mixed", "", 50, nil},
	{byUser, `no subuid ranges found|no subgid ranges found|potentially insufficient UIDs or GIDs`, Failed,
		"the user has no subordinate IDs: oci-mainpid check has the command", "", 65, nil},
	{byUser, `newuidmap|newgidmap`, Failed, "newuidmap (package uidmap or shadow-utils) must be installed and setuid", "", 55, nil},
	{byUser, `lstat /run/user/\d+: no such file|mkdir /run/user/\d+: permission denied|XDG_RUNTIME_DIR`, Failed,
		"the user's manager and runtime directory are gone: systemd-logind stops them after the user's last logout; oci-mainpid check says what to do", "", 60, nil},
	{byUser, `short-name .* did not resolve|initializing source docker://|image not known|unable to pull|unable to copy from source`, Failed,
		"podman has no such image for this user: images of root or of another user are not his", "", 62, nil},
	{byUser, `rootlessport .*(bind|listen)|cannot expose privileged port`, Failed,
		"users may not bind ports below net.ipv4.ip_unprivileged_port_start, sysctl(8)", "", 58, nil},
	{byUser, `name ".*" is already in use`, Failed, "a container of an earlier start is still there; write --replace, or ExecStopPost=podman rm -f -i NAME", "", 58, nil},
	{byUser, `unable to find .*conmon|could not find a working conmon`, Failed, "conmon is not installed where podman looks", "", 58, nil},
	{byUser, `^Error: `, Failed, "", "", 45, nil},
}

var compiled = sync.OnceValue(func() []*regexp.Regexp {
	list := make([]*regexp.Regexp, len(rules))
	for i, r := range rules {
		list[i] = regexp.MustCompile(r.pattern)
	}
	return list
})

var rejected = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`Got notification message from PID (\d+), but reception`)
})

// find returns the rule for an entry: that of its kind, or by its text.
func find(e journal.Entry) *rule {
	a, own := authorOf(e), ownKind(e)
	for i, re := range compiled() {
		r := &rules[i]
		switch {
		case r.author != a:
		case own != nil && r.kind != nil && r.kind.ID == own.ID, own == nil && re.MatchString(e.Message):
			return r
		}
	}
	return nil
}

// ownKind returns the kind of a message of our own programs, nil if it is of
// another. Only root can speak for those that root runs.
func ownKind(e journal.Entry) *message.Kind {
	for i, k := range message.Kinds {
		if k.ID == e.Fields["MESSAGE_ID"] && (k.Program == message.Hook || e.Fields["_UID"] == "0") {
			return &message.Kinds[i]
		}
	}
	return nil
}

// authorOf returns who wrote an entry, as far as rules ask.
func authorOf(e journal.Entry) author {
	switch {
	case e.FromManager():
		return byManager
	case e.Fields["_UID"] == "0":
		return byRoot
	}
	return byUser
}

// judge says what became of what an event is about, and what it means. It
// returns false for a message that is not worth telling: one that systemd logged
// for its developers, and that no rule knows.
func (e *Event) judge(entry journal.Entry, ours bool) bool {
	r := find(entry)
	if r == nil {
		return entry.Fields["PRIORITY"] != debug
	}
	e.Verdict, e.Meaning, e.rank = r.verdict, r.meaning, r.rank
	if ours && r.expected != "" {
		e.Meaning, e.rank = r.expected, 0
	}
	return true
}

// debug is the priority of such messages, syslog(3).
const debug = "7"

// blame returns the event that is closest to the cause of a failure. Where the
// start did not fail, what systemd refused is worth a word unless it took a main
// PID as well.
func blame(events []Event, failed bool) (reason, remedy string, best int) {
	best = -1
	for i, e := range events {
		switch {
		case !failed && e.Verdict == Took:
			return "", "", -1
		case e.rank == 0:
		case e.Verdict == Refused, failed && e.Verdict == Failed:
			// Of equals, the first: what follows is mostly its consequence.
			if best < 0 || e.rank > events[best].rank {
				best = i
			}
		}
	}
	if best < 0 {
		return "", "", -1
	}
	e := events[best]
	return e.Source + ": " + e.Text, e.Meaning, best
}

// Reason returns what best says why a unit failed, out of the entries of its
// last start; "" if nothing does.
func Reason(unit *manager.Unit, entries []journal.Entry) string {
	var events []Event
	for _, e := range entries {
		// That it is about this start, others can say too.
		if ownKind(e) != nil && e.Fields["_SYSTEMD_INVOCATION_ID"] != unit.InvocationID && !saysSo(e, unit.Name, unit.InvocationID, unit) {
			continue
		}
		ev := Event{Source: source(e)}
		ev.Text = words(unit.Name, ev.Source, e.Message)
		if ev.judge(e, true) {
			events = append(events, ev)
		}
	}
	reason, _, _ := blame(events, true)
	return reason
}
