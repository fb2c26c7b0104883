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

// Names of fields. The values of those about the container are what conmon's own
// log driver gives them, so that one search finds both. CONTAINER_ID_FULL is not
// among them: podman-logs(1) takes what has it for the container's own output.
const (
	ContainerID   = "CONTAINER_ID"   // its first 12 digits
	ContainerName = "CONTAINER_NAME" // as podman knows it
	ConmonPID     = "CONMON_PID"
	InvocationID  = "INVOCATION_ID" // of the unit's start that it is about
	unitField     = "UNIT"
	// journalctl -u UNIT shows what root's processes, and nobody else's, say
	// about a unit in this field, wherever they run and however soon they end.
	objectUnit = "OBJECT_SYSTEMD_UNIT"
)

// Bounds, in bytes, of what is sent: part of it is text that users chose.
const (
	maxText  = 2000
	maxValue = 256
)

// Sockets of systemd-journald.service(8).
var (
	nativeSocket = "/run/systemd/journal/socket"
	streamSocket = "/run/systemd/journal/stdout"
)

// Log is where one program says something about one unit. What concerns a unit
// goes to the journal, with fields; and to standard error, unless that is the
// journal. What concerns none goes to the journal if standard error is that,
// else to standard error. Nothing waits for a journal that is busy, and to fail
// to log is no failure.
type Log struct {
	Program string
	Unit    string // "" for none
	Verbose bool
	// Stderr is standard error, if not os.Stderr.
	Stderr *os.File

	fields []string // in the order of names: name, value, name, value
	socket int      // 0 before the first message
}

// Add gives all messages from now on a field, unless the value is empty.
func (l *Log) Add(name, value string) {
	if value != "" {
		l.fields = append(l.fields, name, value)
	}
}

// Say says text, one line without the program's name. cause is nil or the error
// that it is about.
func (l *Log) Say(kind Kind, text string, cause error) {
	text = Line(text)
	journal := l.ToJournal()
	sent := (journal || l.Unit != "") && l.Send(kind, text, cause)
	// No news is good news, at a terminal.
	quiet := kind.Priority >= priorityInfo && !l.Verbose
	if journal && !sent || !journal && !quiet {
		l.print(text)
	}
}

// Step says what the program does, if it is to be verbose.
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

// ToJournal reports whether standard error leads to the journal. The peer's name
// says so where JOURNAL_STREAM (systemd.exec(5)) is not in the environment, as in
// that of a hook.
func (l *Log) ToJournal() bool {
	peer, err := unix.Getpeername(int(l.stderr().Fd()))
	if err != nil {
		return false
	}
	address, ok := peer.(*unix.SockaddrUnix)
	return ok && address.Name == streamSocket
}

// Line makes text one line of bounded length that has nothing in it that a
// terminal acts on.
func Line(text string) string {
	return printable.Clip(strings.ReplaceAll(text, "\n", "; "), maxText)
}

// Send sends text, as Line returned it, to the journal alone, and reports whether
// that took it.
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

// entry returns an entry in the journal's native protocol. No value has a
// newline, so none needs the form with a length.
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

// flushTimeout is how long journald, which takes less than a millisecond unless
// it is busy, may take to read.
const flushTimeout = 200 * time.Millisecond

// Flush waits until journald has read what was sent. From /proc it then knows
// the control group of this process, and so the unit, which is too late when the
// process has ended: 1 message in 100 was lost that way to journalctl -u. Only
// root's messages with Unit do without.
//
// journald reads one datagram after another and ignores an empty one: when it
// has taken that, it is done with those before. poll(2) says so if the socket's
// buffer is so small that two do not fit in.
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
