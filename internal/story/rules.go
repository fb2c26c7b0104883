package story

import (
	"regexp"
	"sync"

	"oci-mainpid-hook/internal/journal"
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
	author  author
	pattern string
	verdict Verdict
	meaning string
	// expected is the meaning, if not empty, for a unit in which notify-mainpid
	// has the last word: then it is no reason for anything.
	expected string
	// rank orders the reasons for a failure: the higher, the closer to the cause.
	rank int
}

// rules are tried in order. Those of systemd are the texts of src/core/service.c
// and manager.c; that it takes a PID over, it logs at the level debug only.
var rules = []rule{
	{byManager, `Got notification message from PID (\d+), but reception only permitted for`, Refused,
		"systemd takes the sender for a process of another unit, whose main process alone may send: the control group that podman moved itself into is not this unit's. A unit of ours needs no such message: see whether its drop-in is in effect, oci-mainpid check",
		"podman's own message is taken for one of another unit, which does not matter: notify-mainpid speaks for this one", 20},
	{byManager, `Got notification message from PID (\d+), but reception is disabled`, Refused,
		"the unit that systemd takes the sender for has NotifyAccess=none", "", 20},
	{byManager, `New main PID (\d+) does not belong to service, but we'll accept it`, Took,
		"the process is outside the unit's control group, but root asked for it: notify-mainpid", "", 0},
	{byManager, `New main PID (\d+) does not belong to service, refusing`, Refused,
		"podman itself asked for it, and conmon is outside the unit's control group; only root's word counts then, which notify-mainpid gives. Give the unit its drop-in: oci-mainpid generate",
		"podman asked for it, which does not count here; notify-mainpid asks next", 25},
	{byManager, `New main PID (\d+) belongs to service`, Took, "", "", 0},
	{byManager, `Supervising process (\d+) which is not our child`, Took,
		"systemd watches it by a pidfd and still notices when it ends", "", 0},
	{byManager, `New PID (\d+) does not belong to service`, Refused, "what the PID file names is outside the unit's control group", "", 20},
	{byManager, `PID file .* is not owned by root`, Refused,
		"systemd trusts a PID file of a user only if it names a process of the unit; a unit of ours has no PIDFile=: oci-mainpid generate", "", 30},
	{byManager, `Can't open PID file|PID file .* not readable|Permission denied while opening PID file`, Refused,
		"podman may not write the file as this user; a unit of ours has no PIDFile=: oci-mainpid generate", "", 30},
	{byManager, `start(-post|-pre)? operation timed out`, Failed,
		"TimeoutStartSec= was over; an image that has yet to be pulled can take longer", "", 40},
	{byManager, `Failed at step (\w+) spawning`, Failed,
		"systemd could not run the command: FDS is OpenFile=, USER a user that does not exist, EXEC a program that is not there", "", 60},
	{byManager, `Failed to determine user credentials`, Failed, "the user of User= does not exist", "", 60},
	{byManager, `Failed with result 'protocol'`, Failed,
		"podman ended before systemd heard READY=1. Where the message went, systemd says at the log level debug only: systemctl log-level debug, start the unit, systemctl log-level info, and this again", "", 5},
	{byManager, `Failed with result '([a-z-]+)'`, Failed, "", "", 1},
	{byManager, `Control process exited, code=(killed|dumped|exited, status=[1-9])`, Failed, "", "", 2},
	{byManager, `Main process exited, code=(killed|dumped)`, Failed, "", "", 2},
	{byManager, `Main process exited, code=exited, status=([1-9]\d*)`, Failed, "", "", 2},
	{byManager, `Scheduled restart job`, None, "", "", 0},
	{byManager, `Got notification message from PID \d+(:| \()`, None, "", "", 0},

	{byRoot, `^oci-mainpid: .*: not started: `, Refused, "oci-mainpid keeps the unit from starting rather than have it run as root; mend that, then: systemctl daemon-reload", "", 90},
	{byRoot, `notify-mainpid: .*refused: `, Refused, "the process is not what the unit's main process must be: see notify-mainpid(8)", "", 80},
	{byRoot, `notify-mainpid: .*no PID in the mainpid file`, Failed, "the hook did not write: podman did not start a container, or does not run the hook; see oci-mainpid check", "", 30},
	{byRoot, `notify-mainpid: `, Failed, "", "", 70},
	{byUser, `oci-mainpid-hook: `, Failed, "", "", 75},

	{byUser, `cgroup\.procs: Permission denied`, Failed,
		"the kernel lets nobody move a process between two delegated control groups; podman exec and health checks need Cgroup=mixed", "", 50},
	{byUser, `no subuid ranges found|no subgid ranges found|potentially insufficient UIDs or GIDs`, Failed,
		"the user has no subordinate IDs: oci-mainpid check has the command", "", 65},
	{byUser, `newuidmap|newgidmap`, Failed, "newuidmap (package uidmap or shadow-utils) must be installed and setuid", "", 55},
	{byUser, `lstat /run/user/\d+: no such file|mkdir /run/user/\d+: permission denied|XDG_RUNTIME_DIR`, Failed,
		"the user's manager and runtime directory are gone: systemd-logind stops them after the user's last logout; oci-mainpid check says what to do", "", 60},
	{byUser, `short-name .* did not resolve|initializing source docker://|image not known|unable to pull|unable to copy from source`, Failed,
		"podman has no such image for this user: images of root or of another user are not his", "", 62},
	{byUser, `rootlessport .*(bind|listen)|cannot expose privileged port`, Failed,
		"users may not bind ports below net.ipv4.ip_unprivileged_port_start, sysctl(8)", "", 58},
	{byUser, `name ".*" is already in use`, Failed, "a container of an earlier start is still there; write --replace, or ExecStopPost=podman rm -f -i NAME", "", 58},
	{byUser, `unable to find .*conmon|could not find a working conmon`, Failed, "conmon is not installed where podman looks", "", 58},
	{byUser, `^Error: `, Failed, "", "", 45},
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

func find(a author, message string) *rule {
	for i, re := range compiled() {
		if rules[i].author == a && re.MatchString(message) {
			return &rules[i]
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
	r := find(authorOf(entry), entry.Message)
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
func Reason(name string, entries []journal.Entry) string {
	var events []Event
	for _, e := range entries {
		ev := Event{Source: source(e)}
		ev.Text = words(name, ev.Source, e.Message)
		if ev.judge(e, true) {
			events = append(events, ev)
		}
	}
	reason, _, _ := blame(events, true)
	return reason
}
