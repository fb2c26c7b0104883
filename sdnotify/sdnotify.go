// Package sdnotify tells the service manager about the state of a service, as
// described in sd_notify(3): a datagram of NAME=value lines, sent to the socket
// that NOTIFY_SOCKET names, with descriptors and with the identity of another
// process where asked. It also reads such datagrams, as the manager does.
//
//	client, err := sdnotify.FromEnvironment()
//	...
//	err = client.Send(ctx, sdnotify.Ready(), sdnotify.Status("serving"))
//	err = client.Barrier(ctx)
//
// The manager never answers. That a datagram was sent, even that Barrier has
// returned, does not say that the manager agreed with it: NotifyAccess= and the
// like decide that, and the manager's log tells. See systemd.service(5).
package sdnotify

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxSize is how many bytes of a datagram the manager reads. It ignores a
// longer one as a whole.
const MaxSize = 4096

// ErrInvalid is wrapped by the errors of a message that the manager would not
// take, or would read as something else than what was meant. Such a message is
// not sent, not even in part.
var ErrInvalid = errors.New("invalid notification")

// An Assignment is one line of a message, NAME=value. The well-known ones have
// a function each in this package. The manager ignores names that it does not
// know; those of one's own begin with X_ and a name space.
type Assignment struct {
	// Name is made of ASCII letters, digits and underscores; it does not
	// begin with a digit.
	Name string

	// Value is any text without NUL, newline and carriage return. It may be
	// empty.
	Value string
}

// A Message is what one datagram says.
type Message []Assignment

// Get returns the value of the first assignment to name, which is the one that
// the manager goes by, and whether there is one.
func (m Message) Get(name string) (value string, found bool) {
	for _, a := range m {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// Format returns m as a datagram. A backslash is written twice, because the
// manager takes a single one for an escape and drops it. Format fails with
// ErrInvalid if m is empty, is longer than MaxSize, or has a name or a value
// that an Assignment must not have.
func (m Message) Format() ([]byte, error) {
	if len(m) == 0 {
		return nil, fmt.Errorf("%w: no assignments", ErrInvalid)
	}
	var b bytes.Buffer
	for i, a := range m {
		if !validName(a.Name) {
			return nil, fmt.Errorf("%w: name %.40q", ErrInvalid, a.Name)
		}
		if strings.ContainsAny(a.Value, "\x00\n\r") {
			return nil, fmt.Errorf("%w: value of %s contains a NUL or a line break: %.40q", ErrInvalid, a.Name, a.Value)
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(a.Name)
		b.WriteByte('=')
		b.WriteString(strings.ReplaceAll(a.Value, `\`, `\\`))
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrInvalid, b.Len(), MaxSize)
	}
	return b.Bytes(), nil
}

// Parse reads a datagram as the manager does: newlines and carriage returns
// separate the assignments, empty lines do not count, a backslash escapes the
// byte after it, and the datagram may end with one NUL. An empty datagram is
// an empty message.
//
// Parse is stricter than the manager, which ignores lines that it does not
// understand: a line that is not an assignment, a name that is none, an escaped
// line break, as well as an embedded NUL, a backslash at the very end and a
// datagram longer than MaxSize are errors. They wrap ErrInvalid and name the
// line, counted from 1. What Parse returns without an error, Format writes,
// unless it is empty.
func Parse(datagram []byte) (Message, error) {
	if len(datagram) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrInvalid, len(datagram), MaxSize)
	}
	text := string(bytes.TrimSuffix(datagram, []byte{0}))

	var m Message
	for number := 1; text != ""; number++ {
		line, rest, err := cutLine(text)
		text = rest
		if err == nil && line != "" {
			name, value, found := strings.Cut(line, "=")
			switch {
			case !found:
				err = errors.New("no '='")
			case !validName(name):
				err = errors.New("not a name before '='")
			default:
				m = append(m, Assignment{name, value})
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%w: line %d, %.40q: %w", ErrInvalid, number, line, err)
		}
	}
	return m, nil
}

// cutLine returns the first line of text without its escapes and its line break
// ("\n", "\r" or "\r\n"), and what follows it. With an error, line is what was
// read until then.
func cutLine(text string) (line, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case 0:
			return b.String(), "", errors.New("NUL")
		case '\r':
			if strings.HasPrefix(text[i+1:], "\n") {
				i++
			}
			return b.String(), text[i+1:], nil
		case '\n':
			return b.String(), text[i+1:], nil
		case '\\':
			i++
			if i == len(text) {
				return b.String(), "", errors.New("backslash at the end")
			}
			if strings.IndexByte("\x00\n\r", text[i]) >= 0 {
				return b.String(), "", errors.New("backslash before a line break or NUL")
			}
		}
		b.WriteByte(text[i])
	}
	return b.String(), "", nil
}

// check refuses well-known assignments whose value the manager would ignore
// with a line in its own log, where the sender does not see it.
func (m Message) check() error {
	for _, a := range m {
		ok := true
		switch a.Name {
		case "BARRIER":
			return fmt.Errorf("%w: BARRIER= goes alone, with a descriptor: see Barrier", ErrInvalid)
		case "FDNAME":
			ok = validFDName(a.Value)
		case "MAINPID":
			pid, err := strconv.ParseInt(a.Value, 10, 32)
			ok = err == nil && pid > 0
		case "MAINPIDFDID", "MONOTONIC_USEC", "WATCHDOG_USEC", "EXTEND_TIMEOUT_USEC":
			_, err := strconv.ParseUint(a.Value, 10, 64)
			ok = err == nil
		}
		if !ok {
			return fmt.Errorf("%w: %s=%.40q", ErrInvalid, a.Name, a.Value)
		}
	}
	return nil
}

func validName(name string) bool {
	for i := 0; i < len(name); i++ {
		c := name[i]
		letter := 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

func validFDName(name string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c < ' ' || c > '~' || c == ':' {
			return false
		}
	}
	return name != "" && len(name) <= 255
}
