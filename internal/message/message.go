// Package message has the messages of this project's programs about units: the
// kinds, each with its MESSAGE_ID (systemd.journal-fields(7)), and Log, which sends
// them to systemd's journal with fields to search for.
//
// The catalog that explains each kind, for journalctl --catalog, is
// dist/catalog/oci-mainpid.catalog; oci-mainpid-messages(7) describes the fields.
package message

// Kind is a kind of message.
type Kind struct {
	// ID is the MESSAGE_ID, made with systemd-id128(1). It must never change.
	ID string
	// Program is the only program that sends messages of this kind.
	Program string
	// Priority is a priority of syslog(3).
	Priority int
	// Documentation is the manual page that says more, as a URI.
	Documentation string
}

// Priorities of syslog(3).
const (
	priorityError   = 3
	priorityWarning = 4
	priorityInfo    = 6
	priorityDebug   = 7
)

// The programs, by the names with which their messages begin.
const (
	NotifyMainPID = "notify-mainpid"
	Hook          = "oci-mainpid-hook"
	OCIMainPID    = "oci-mainpid"
	Generator     = "oci-mainpid-generator"
)

// The kinds. All except MainProcess and Reloaded ask the administrator to do something.
var (
	// MainProcess: conmon has become the unit's main process.
	MainProcess = Kind{"5138bdb3717a4476b39ca0ba09dc8820", NotifyMainPID, priorityInfo, "man:notify-mainpid(8)"}
	// Refused: the PID in the mainpid file is not that of the unit's conmon.
	Refused = Kind{"0abfdc9a6f5c4bb09f910f6f8fbcfb92", NotifyMainPID, priorityError, "man:notify-mainpid(8)"}
	// NoMainPID: the hook wrote no PID.
	NoMainPID = Kind{"7f9dd91971f148b98c462af984afbbf3", NotifyMainPID, priorityError, "man:notify-mainpid(8)"}
	// NotTold: systemd did not take the message about the main process.
	NotTold = Kind{"011539b14d1a445d9d87761a6a0bd3ba", NotifyMainPID, priorityError, "man:notify-mainpid(8)"}
	// HelperFailed: notify-mainpid could not do its work for another reason.
	HelperFailed = Kind{"32f5758b780a4b94b9ba7816bf407004", NotifyMainPID, priorityError, "man:notify-mainpid(8)"}
	// LeftOverEnded: a stop had left processes of the container, which were killed.
	LeftOverEnded = Kind{"d1c6a0c7e7f0477a8f0e6c5d0b3ba94e", NotifyMainPID, priorityWarning, "man:notify-mainpid(8)"}
	// HookFailed: the hook could not deliver the PID.
	HookFailed = Kind{"95ed36b842384a5483a87fe5883dae53", Hook, priorityError, "man:oci-mainpid-hook(8)"}
	// UnitRefused: the generator keeps a unit from starting.
	UnitRefused = Kind{"6474c8632ae147d58e30d0dec4bf05cb", Generator, priorityError, "man:oci-mainpid.unit(5)"}
	// UnitWarning: a unit may not do what its Quadlet file seems to say.
	UnitWarning = Kind{"f8a2372e3d4347cf9f046d74d7089fe5", Generator, priorityWarning, "man:oci-mainpid.unit(5)"}
	// GeneratorFailed: the generator could not do its work.
	GeneratorFailed = Kind{"9e04790ed8d34904b080fe3f0f8fdf31", Generator, priorityError, "man:oci-mainpid-generator(8)"}
	// NotStarted: a unit that the generator keeps from starting was started.
	NotStarted = Kind{"e436aa50ab904d69955d8d96043cc3af", OCIMainPID, priorityError, "man:oci-mainpid.unit(5)"}
	// Reloaded: another container has taken the place of a unit's.
	Reloaded = Kind{"9b8d410f86074453a90f04f244983738", OCIMainPID, priorityInfo, "man:oci-mainpid.unit(5)"}
	// ReloadFailed: the unit's container of before goes on.
	ReloadFailed = Kind{"3b2462e379004c11ad5e2771b01f5469", OCIMainPID, priorityError, "man:oci-mainpid.unit(5)"}
)

// Step is the kind of messages that say what a program is doing. Nobody searches
// for them, so the kind has no ID.
var Step = Kind{Priority: priorityDebug}

// Kinds are all kinds with an ID.
var Kinds = []Kind{MainProcess, Refused, NoMainPID, NotTold, HelperFailed, LeftOverEnded, HookFailed, UnitRefused, UnitWarning, GeneratorFailed, NotStarted, Reloaded, ReloadFailed}
