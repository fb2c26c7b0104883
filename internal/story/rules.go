package story

import (
	"regexp"
	"sync"

	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/message"
)

// author is who must have written a message for a rule to apply: a container
// can print whatever it likes.
type author int

const (
	byManager author = iota // PID 1
	byRoot                  // a program of ours that the unit runs as root
	byPodman                // podman, conmon, the runtime
	byHook
	byOthers // no rule applies
)

// rule says what a message means.
type rule struct {
	author author
	// pattern matches the text. A pattern for our own programs is for messages that
	// reached the journal without their kind. A pattern for PID 1 matches at the
	// beginning of the text only, after the unit's name, because PID 1 may quote
	// others.
	pattern string
	verdict Verdict
	meaning string
	// expected, if not empty, is the meaning for a unit in which notify-mainpid sets
	// the main PID. There the message is no reason for a failure.
	expected string
	// rank orders the reasons for a failure: the higher, the closer to the cause.
	rank int
	// kind is the kind of a message of our own programs, else nil.
	kind *message.Kind
}

// Ranks that code outside of the rules uses, too.
const (
	rankExit    = 3  // a command of ours failed; what it wrote says why
	rankGone    = 20 // the hook found no process of the container
	rankNoPID   = 30 // no PID came from the hook
	rankTimeout = 40 // systemd waited long enough
	rankNoHook  = 43 // podman started the container, and the hook was not run
	rankEnded   = 72 // the container ended by itself
	rankAuthors = 85 // a command that the unit's author added
)

// rules are tried in order. The patterns for systemd are texts in its src/core/service.c
// and manager.c. That systemd takes a PID over it logs at the level debug only.
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
		"TimeoutStartSec= was over; an image that has yet to be pulled can take longer", "", rankTimeout, nil},
	{byManager, `Watchdog timeout`, Failed,
		"nothing sent WATCHDOG=1 in time, so systemd killed the main process. A container can send it only with Notify=yes (podman run --sdnotify=container); else remove WatchdogSec=", "", 82, nil},
	{byManager, `A process of this unit has been killed by the OOM killer`, Failed,
		"there was not enough memory: see MemoryMax= of the unit and what the container needs", "", 81, nil},
	{byManager, `Start request repeated too quickly`, Failed,
		"systemd has given up after too many starts, StartLimitBurst=: mend the reason, then systemctl reset-failed and systemctl start", "", 1, nil},
	{byManager, `Dependency failed for `, Failed, "a unit that this one requires did not start", "", 88, nil},
	{byManager, `Failed to load environment files`, Failed, "a file of EnvironmentFile= is not there, or cannot be read; with a - before its name it may be missing", "", 88, nil},
	{byManager, `Failed to (spawn|run) '`, Failed, "systemd could not start the command", "", 87, nil},
	{byPodman, `Failed at step (\w+) spawning`, Failed,
		"systemd could not run the command: FDS is OpenFile=, USER a user that does not exist, EXEC a program that is not there", "", 60, nil},
	{byPodman, `Failed to determine user credentials`, Failed, "the user of User= does not exist", "", 60, nil},
	{byManager, `Failed with result 'protocol'`, Failed,
		"podman ended before systemd heard READY=1. Where the message went, systemd says at the log level debug only: systemctl log-level debug, start the unit, systemctl log-level info, and this again", "", 5, nil},
	{byManager, `Failed with result '([a-z-]+)'`, Failed, "", "", 1, nil},
	{byManager, `Control process exited, code=(killed|dumped|exited, status=[1-9])`, Failed, "", "", 2, nil},
	{byManager, `Main process exited, code=(killed|dumped)`, Failed, "", "", 2, nil},
	{byManager, `Main process exited, code=exited, status=([1-9]\d*)`, Failed, "", "", 2, nil},
	{byManager, `Failed to start `, Failed, "", "", 0, nil},
	{byManager, `Scheduled restart job`, None, "", "", 0, nil},
	{byManager, `Got notification message from PID \d+(:| \()`, None, "", "", 0, nil},

	{byRoot, `^oci-mainpid: .*: not started: `, Refused, "oci-mainpid keeps the unit from starting; correct that, then: systemctl daemon-reload", "", 90, &message.NotStarted},
	{byRoot, `notify-mainpid: .*refused: `, Refused, "the process is not what the unit's main process must be: see notify-mainpid(8)", "", 80, &message.Refused},
	{byRoot, `notify-mainpid: .*no PID in the mainpid file`, Failed, "the hook did not write: podman did not start a container, or does not run the hook; see oci-mainpid check", "", rankNoPID, &message.NoMainPID},
	{byRoot, `notify-mainpid: .*ended what was left of`, None, "", "", 0, &message.LeftOverEnded},
	{byRoot, `notify-mainpid: .* is the main process$`, Took, "", "", 0, &message.MainProcess},
	{byRoot, `notify-mainpid: `, Failed, "", "", 70, &message.HelperFailed},
	{byRoot, `notify-mainpid: `, Failed, "", "", 70, &message.NotTold},
	// The container had ended before the hook could look at its process.
	{byHook, `process \d+: no such process`, Failed, "", "", rankGone, nil},
	{byHook, `.`, Failed, "", "", 75, &message.HookFailed},

	{byPodman, `cgroup\.procs: Permission denied`, Failed,
		"the kernel lets nobody move a process between two delegated control groups; podman exec and health checks need Cgroup=mixed", "", 50, nil},
	{byPodman, `Failed to bind port (\d+) \(Address already in use\)|Listen failed for HOST (TCP|UDP) port \S+: Address already in use|bind: address already in use`, Failed,
		"another process listens on that port: ss -ltnp shows which. Stop it, or publish another port", "", 66, nil},
	{byPodman, `Failed to bind port (\d+) \(Permission denied\)|Listen failed for HOST (TCP|UDP) port \S+: Permission denied|rootlessport .*(bind|listen)|cannot expose privileged port`, Failed,
		"users may not bind ports below net.ipv4.ip_unprivileged_port_start, sysctl(8): publish a higher port, or lower that limit", "", 66, nil},
	{byPodman, `cannot resolve /\S+: lstat|^stat /\S+/\.config: |mkdir /\S+/\.(local|config|cache)\b.*: permission denied`, Failed,
		"the user's home directory is not there, or is not the user's: oci-mainpid check has the command that makes it", "", 63, nil},
	{byPodman, `no subuid ranges found|no subgid ranges found|potentially insufficient UIDs or GIDs`, Failed,
		"the user has no subordinate IDs: oci-mainpid check has the command", "", 65, nil},
	{byPodman, `newuidmap|newgidmap`, Failed, "newuidmap (package uidmap or shadow-utils) must be installed and setuid", "", 55, nil},
	{byPodman, `lstat /run/user/\d+: no such file|mkdir /run/user/\d+: permission denied|XDG_RUNTIME_DIR`, Failed,
		"the user's manager and runtime directory are gone: systemd-logind stops them after the user's last logout; oci-mainpid check says what to do", "", 60, nil},
	{byPodman, `level=warning msg="Failed, retrying`, Failed, "", "", 61, nil},
	{byPodman, `short-name .* did not resolve|initializing source docker://|image not known|unable to pull|unable to copy from source`, Failed,
		"podman has no such image for this user: images of root or of another user are not theirs", "", 62, nil},
	{byPodman, `name ".*" is already in use`, Failed, "a container of an earlier start is still there; write --replace, or ExecStopPost=podman rm -f -i NAME", "", 58, nil},
	{byPodman, `unable to find .*conmon|could not find a working conmon`, Failed, "conmon is not installed where podman looks", "", 58, nil},
	{byPodman, `^Error: `, Failed, "", "", 45, nil},
}

var compiled = sync.OnceValue(func() []*regexp.Regexp {
	list := make([]*regexp.Regexp, len(rules))
	for i, r := range rules {
		if r.author == byManager {
			r.pattern = `^(\S+: )?(` + r.pattern + `)`
		}
		list[i] = regexp.MustCompile(r.pattern)
	}
	return list
})

var rejected = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^\S+: Got notification message from PID (\d+), but reception`)
})

// find returns the rule for an entry of a source, by the entry's kind or its text.
func find(e journal.Entry, source string) *rule {
	a, own := authorOf(e, source), ownKind(e)
	for i, re := range compiled() {
		r := &rules[i]
		switch {
		case r.author != a:
		case r.kind != nil && own != nil && r.kind.ID == own.ID, (r.kind == nil || own == nil) && re.MatchString(e.Message):
			return r
		}
	}
	return nil
}

// authorOf returns who wrote an entry, as far as rules ask.
func authorOf(e journal.Entry, source string) author {
	switch {
	case e.FromManager():
		return byManager
	case isReserved(source):
		return byRoot
	case source == message.Hook:
		return byHook
	case isPodmans(source):
		return byPodman
	}
	return byOthers
}

// applyRule gives the event the verdict and the meaning of the rule for its entry. ours
// says that notify-mainpid sets the unit's main PID. applyRule returns false for a
// message at the level debug without a rule: systemd logs it for developers.
func (e *Event) applyRule(entry journal.Entry, ours bool) bool {
	r := find(entry, e.Source)
	if r == nil {
		return entry.Fields["PRIORITY"] != debug
	}
	e.Verdict, e.Meaning, e.rank = r.verdict, r.meaning, r.rank
	if ours && r.expected != "" {
		e.Meaning, e.rank = r.expected, 0
	}
	return true
}

// debug is the priority of messages for developers, syslog(3).
const debug = "7"
