package message

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/printable"
)

// Names of fields. The fields about the container have the same values as those of
// conmon's log driver, so that one search finds both. CONTAINER_ID_FULL is left out,
// because podman-logs(1) takes every message with this field for the container's
// output.
const (
	ContainerID   = "CONTAINER_ID"   // the first 12 digits of the container's ID
	ContainerName = "CONTAINER_NAME" // podman's name for the container
	ConmonPID     = "CONMON_PID"
	InvocationID  = "INVOCATION_ID" // of the unit's start that the message is about
	unitField     = "UNIT"
	// journalctl -u UNIT shows a message with this field if root sent it. The
	// sender's control group does not matter, nor whether the sender has ended.
	objectUnit = "OBJECT_SYSTEMD_UNIT"
)

// Bounds of a message, in bytes. Users choose parts of its text.
const (
	maxText  = 2000
	maxValue = 256
)

// Sockets of systemd-journald.service(8).
var (
	nativeSocket = "/run/systemd/journal/socket"
	streamSocket = "/run/systemd/journal/stdout"
)

// Log sends the messages of one program about one unit. A message about a unit goes
// to the journal, with fields. It also goes to standard error, unless standard error
// is the journal. A message about no unit goes to standard error; if that is the
// journal, it has fields. Log does not wait for a busy journal, and drops a message
// that cannot be sent.
type Log struct {
	Program string
	Unit    string // "" for none
	Verbose bool
	// Stderr is standard error, if not os.Stderr.
	Stderr *os.File

	fields []string // name, value, name, value, in the order of Add
	socket int      // 0 before the first message
}

// Add adds a field to all later messages, unless the value is empty.
func (l *Log) Add(name, value string) {
	if value != "" {
		l.fields = append(l.fields, name, value)
	}
}

// Say sends a message of the kind. text is one line without the program's name.
// cause is the error that the message is about, or nil; its errno becomes a field.
func (l *Log) Say(kind Kind, text string, cause error) {
	text = Line(text)
	journal := l.ToJournal()
	sent := (journal || l.Unit != "") && l.Send(kind, text, cause)
	// At a terminal, success needs no message.
	quiet := kind.Priority >= priorityInfo && !l.Verbose
	if journal && !sent || !journal && !quiet {
		l.print(text)
	}
}

// Step says what the program is doing, if Verbose is set.
func (l *Log) Step(format string, args ...any) {
	if !l.Verbose {
		return
	}
	text := fmt.Sprintf(format, args...)
	if l.Unit != "" {
		text = l.Unit + ": " + text
	}
	text = Line(text)
	if l.Unit == "" && !l.ToJournal() || !l.Send(Step, text, nil) {
		l.print(text)
	}
}

func (l *Log) print(text string) {
	fmt.Fprintf(l.stderr(), "%s: %s\n", l.Program, text)
}

func (l *Log) stderr() *os.File {
	if l.Stderr != nil {
		return l.Stderr
	}
	return os.Stderr
}

// ToJournal reports whether standard error leads to the journal. It asks for the
// name of the socket's peer, because JOURNAL_STREAM (systemd.exec(5)) is not in the
// environment of a hook.
func (l *Log) ToJournal() bool {
	peer, err := unix.Getpeername(int(l.stderr().Fd()))
	if err != nil {
		return false
	}
	address, ok := peer.(*unix.SockaddrUnix)
	return ok && address.Name == streamSocket
}

// Line returns text as one line of bounded length without control characters.
func Line(text string) string {
	return printable.Clip(strings.ReplaceAll(text, "\n", "; "), maxText)
}

// Send sends text, which Line has returned, to the journal only. It reports whether
// the journal took it.
func (l *Log) Send(kind Kind, text string, cause error) bool {
	if l.socket == 0 {
		socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return false
		}
		l.socket = socket
	}
	return unix.Sendto(l.socket, l.entry(kind, text, cause), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: nativeSocket}) == nil
}

// entry returns an entry in the journal's native protocol. Values have no newline,
// so the protocol's form with a length is not needed.
func (l *Log) entry(kind Kind, text string, cause error) []byte {
	entry := make([]byte, 0, 1024)
	field := func(name, value string) {
		entry = append(append(append(append(entry, name...), '='), value...), '\n')
	}
	field("MESSAGE", text)
	field("PRIORITY", strconv.Itoa(kind.Priority))
	field("SYSLOG_IDENTIFIER", l.Program)
	if kind.ID != "" {
		field("MESSAGE_ID", kind.ID)
		field("DOCUMENTATION", kind.Documentation)
	}
	if l.Unit != "" {
		unit := printable.Clip(l.Unit, maxValue)
		field(unitField, unit)
		field(objectUnit, unit)
	}
	if errno := unix.Errno(0); errors.As(cause, &errno) {
		field("ERRNO", strconv.Itoa(int(errno)))
	}
	for i := 0; i+1 < len(l.fields); i += 2 {
		field(l.fields[i], printable.Clip(l.fields[i+1], maxValue))
	}
	return entry
}

// flushTimeout is how long Flush waits for journald, which reads within a
// millisecond unless it is busy.
const flushTimeout = 200 * time.Millisecond

// Flush waits until journald has read the messages that were sent, for at most 200 ms.
// When journald reads a message, it looks up the sender's control group in /proc, and
// so the unit. If the sender has ended by then, journalctl -u does not show the
// message: 1 in 100 was lost. Root's messages with Unit do not depend on this.
//
// journald reads one datagram after another and ignores empty ones. When it has taken
// an empty datagram, it has read all datagrams before it. Flush makes the socket's
// buffer too small for two datagrams, so poll(2) tells when the empty one was taken.
func (l *Log) Flush() {
	if l.socket == 0 {
		return
	}
	unix.SetsockoptInt(l.socket, unix.SOL_SOCKET, unix.SO_SNDBUF, 1) // the kernel's smallest
	timeout := unix.NsecToTimeval(flushTimeout.Nanoseconds())
	unix.SetsockoptTimeval(l.socket, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	for range 2 {
		if unix.Sendto(l.socket, nil, unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: nativeSocket}) != nil {
			return
		}
	}
	unix.Poll([]unix.PollFd{{Fd: int32(l.socket), Events: unix.POLLOUT}}, int(flushTimeout.Milliseconds()))
}
