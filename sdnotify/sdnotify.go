// Package sdnotify tells the service manager about the state of a service,
// sd_notify(3). A message is a datagram of lines NAME=value, sent to the socket in
// NOTIFY_SOCKET. It can carry descriptors, and be sent in the name of another process.
// From a virtual machine to its host it goes by AF_VSOCK instead, vsock(7).
// The package also has the manager's end: Server receives such datagrams and parses
// them as systemd does.
//
//	client, err := sdnotify.FromEnvironment()
//	...
//	err = client.Send(ctx, sdnotify.Ready(), sdnotify.Status("serving"))
//	err = client.Barrier(ctx)
//
// The manager never answers. It may ignore a datagram, even if Barrier has returned,
// for example because of NotifyAccess= in systemd.service(5). Only its log tells.
package sdnotify

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxSize is how many bytes a datagram may have. The manager ignores a longer one.
const MaxSize = 4096

// ErrInvalid is wrapped by errors about a message that the manager would not take, or
// would misread. Such a message is not sent, not even in part.
var ErrInvalid = errors.New("invalid notification")

// An Assignment is one line of a message, NAME=value. For each well-known assignment
// this package has a function. The manager ignores names that it does not know. Names
// of your own begin with X_ and a name space.
type Assignment struct {
	// Name is made of ASCII letters, digits and underscores; it does not
	// begin with a digit.
	Name string

	// Value is any text without NUL, newline and carriage return. It may be
	// empty.
	Value string
}

// A Message is the content of one datagram.
type Message []Assignment

// Get returns the value of the first assignment to name, and whether there is one. The
// manager uses the first one, too.
func (m Message) Get(name string) (value string, found bool) {
	for _, a := range m {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// Format returns m as a datagram. It writes each backslash twice, because the manager
// drops a single one. Format fails with ErrInvalid if m is empty or longer than
// MaxSize, or if an assignment has an invalid name or value.
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

// Parse parses a datagram as the manager does. Newlines and carriage returns separate
// the assignments. Empty lines do not count. A backslash escapes the byte after it. The
// datagram may end with one NUL. An empty datagram is an empty message.
//
// Parse is stricter than the manager, which ignores what it does not understand. These
// are errors: a line that is not an assignment, an invalid name, an escaped line break,
// a NUL inside, a backslash at the very end, and a datagram longer than MaxSize. They
// wrap ErrInvalid and have the number of the line, from 1. Format can write any message
// that Parse returns without an error, unless it is empty.
func Parse(datagram []byte) (Message, error) {
	return parse(datagram, true)
}

// parse is Parse. Unless strict, it leaves out a line that is not an assignment or whose
// name is invalid, as the manager does.
func parse(datagram []byte, strict bool) (Message, error) {
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
			case found && validName(name):
				m = append(m, Assignment{name, value})
			case !strict:
			case !found:
				err = errors.New("no '='")
			default:
				err = errors.New("not a name before '='")
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%w: line %d, %.40q: %w", ErrInvalid, number, line, err)
		}
	}
	return m, nil
}

// cutLine returns the first line of text, without its escapes and its line break
// ("\n", "\r" or "\r\n"), and the rest. With an error, line is what was read before.
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

// check fails for a well-known assignment with a value that the manager would ignore.
// The manager would only log that, and the sender would not see it.
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
