package story

import (
	"path"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/message"
)

// Sources that are not the names of programs.
const (
	systemPID1  = "systemd"
	userManager = "systemd --user"
	container   = "container"
)

// sourceOf returns the name of the program that wrote an entry. It trusts what journald
// and the kernel know of the process. SYSLOG_IDENTIFIER= does not count, because any
// author can choose it.
func (c *cast) sourceOf(e journal.Entry) string {
	f, name := e.Fields, program(e)
	if e.FromManager() {
		return systemPID1
	}
	if k := ownKind(e); k != nil {
		return k.Program
	}
	command := c.commandOf(e.PID())
	switch {
	case f["_UID"] == "0" && name == "" && isReserved(command):
		return command // it had ended when journald looked
	case f["_UID"] == "0" && isReserved(name):
		return name
	case name == message.Hook, isPodmans(name) && strings.Contains(e.Message, message.Hook+": "):
		return message.Hook
	case isConmon(name) && f["_TRANSPORT"] == "journal" && f["CONTAINER_NAME"] != "":
		return container
	case name == "systemd" && strings.HasPrefix(f["_SYSTEMD_UNIT"], "user@"):
		return userManager
	case command != "" && !isReserved(command):
		return command
	case f["_TRANSPORT"] == "stdout" && isContainerID(e.Message):
		return "podman"
	case name == "":
		name = f["SYSLOG_IDENTIFIER"]
	}
	if name == systemPID1 || name == container || isReserved(name) {
		return "UID " + f["_UID"] + ": " + name
	}
	return name
}

// isReserved reports whether the name is that of a program of ours that only root runs.
func isReserved(name string) bool { return name == message.NotifyMainPID || name == message.OCIMainPID }

// program returns the name of the program that the entry's process executes, from the
// kernel. It is "" if the process had ended when journald looked.
func program(e journal.Entry) string {
	comm := strings.Trim(e.Fields["_COMM"], "()") // in parentheses until it executes
	executable := path.Base(strings.TrimSuffix(e.Fields["_EXE"], " (deleted)"))
	switch {
	case executable == "." || executable == "systemd-executor":
	// The kernel cuts the name, and podman executes itself again as "exe".
	case comm == "exe", strings.HasPrefix(executable, comm), isReserved(comm):
		return executable
	}
	if comm == "exe" {
		return "podman"
	}
	if len(comm) == maxComm && strings.HasPrefix(message.Hook, comm) {
		return message.Hook
	}
	return comm
}

// maxComm is the length to which the kernel cuts a process' name, proc_pid_comm(5).
const maxComm = 15

// podmans are podman and the programs that it runs for a container.
var podmans = []string{"podman", "conmon", "conmon-v3", "crun", "runc", "rootlessport", "slirp4netns", "netavark", "aardvark-dns", "newuidmap", "newgidmap", "fuse-overlayfs"}

func isConmon(name string) bool { return name == "conmon" || name == "conmon-v3" }

// isPodmans reports whether a program is podman or one that podman runs.
func isPodmans(name string) bool {
	return slices.Contains(podmans, name) || strings.HasPrefix(name, "pasta")
}

// ownKind returns the kind of a message of our own programs, else nil. For a program
// that only root runs, only root's messages count.
func ownKind(e journal.Entry) *message.Kind {
	for i, k := range message.Kinds {
		if k.ID == e.Fields["MESSAGE_ID"] && (k.Program == message.Hook || e.Fields["_UID"] == "0") {
			return &message.Kinds[i]
		}
	}
	return nil
}
