// Package journal reads systemd's journal by running journalctl(1). systemd's library
// for reading needs cgo, which this project does not use.
package journal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Bounds of what is read, whatever processes wrote into the journal.
const (
	maxEntry = 1 << 20  // bytes of one entry in JSON; a longer one is left out
	maxValue = 8 << 10  // bytes of one field's value; what is longer is cut
	maxQuery = 16 << 20 // bytes of all entries of a query in JSON
	maxError = 4 << 10  // bytes of what journalctl writes to standard error
	timeout  = 30 * time.Second
)

// TooLarge stands for a message that journalctl leaves out because it has more
// than 4096 bytes.
const TooLarge = "(a message of more than 4096 bytes)"

// ErrTooMuch says that a query had more than 16 MiB of entries. The entries that were
// read before count.
var ErrTooMuch = errors.New("there are more than 16 MiB of entries")

// ErrSlow says that journalctl did not end in time. The entries that were read
// before count.
var ErrSlow = errors.New("journalctl took too long")

// fields are those that Entry has; journalctl leaves out the others.
var fields = []string{
	"MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "_TRANSPORT",
	"_PID", "_UID", "_COMM", "_EXE", "_CMDLINE",
	"_SYSTEMD_UNIT", "_SYSTEMD_USER_UNIT", "_SYSTEMD_INVOCATION_ID",
	"UNIT", "INVOCATION_ID", "JOB_TYPE", "JOB_RESULT", "UNIT_RESULT", "EXIT_CODE", "EXIT_STATUS",
	"CONTAINER_NAME", "CONTAINER_ID", "CONTAINER_ID_FULL", "PODMAN_EVENT", "PODMAN_TYPE", "PODMAN_NAME", "PODMAN_ID",
	"_AUDIT_TYPE_NAME",
}

// Entry is an entry of the journal, systemd.journal-fields(7). Its text is a user's:
// clean it before you show it. Only fields that begin with an underscore are
// journald's own and can be trusted.
type Entry struct {
	// Time is when journald received the entry, Monotonic the same on
	// CLOCK_MONOTONIC.
	Time      time.Time
	Monotonic time.Duration
	Message   string
	// Fields are the other fields. If a field has several values, the first counts.
	// Each value is cut to 8 KiB.
	Fields map[string]string
}

// Cursor identifies the entry among all others.
func (e *Entry) Cursor() string { return e.Fields["__CURSOR"] }

// PID returns the PID of the process that wrote the entry, 0 if unknown.
func (e *Entry) PID() int {
	pid, err := strconv.Atoi(e.Fields["_PID"])
	if err != nil {
		return 0
	}
	return pid
}

// FromManager reports whether systemd, PID 1, wrote the entry. journald sets the fields
// that tell, so nobody can forge them.
func (e *Entry) FromManager() bool { return e.Fields["_PID"] == "1" && e.Fields["_UID"] == "0" }

// Query says what to read.
type Query struct {
	// Matches are as in journalctl(1): FIELD=VALUE, and "+" for or.
	Matches []string
	// Since and Until bound the time, to the second. Zero is no bound.
	Since, Until time.Time
	// Boot leaves out entries of earlier boots.
	Boot bool
	// Newest reads the newest entry first.
	Newest bool
	// Most is how many entries are read at most.
	Most int
	// LeftOut, if not nil, counts the entries that were too large to be read.
	LeftOut *int
}

func (q Query) arguments() []string {
	args := []string{"--quiet", "--no-pager", "--output=json", "--output-fields=" + strings.Join(fields, ",")}
	if q.Newest {
		args = append(args, "--reverse", "--lines="+strconv.Itoa(q.Most))
	}
	if q.Boot {
		args = append(args, "--boot")
	}
	if !q.Since.IsZero() {
		args = append(args, "--since=@"+strconv.FormatInt(q.Since.Unix(), 10))
	}
	if !q.Until.IsZero() {
		args = append(args, "--until=@"+strconv.FormatInt(q.Until.Unix()+1, 10))
	}
	return append(args, q.Matches...)
}

// Read calls f for each entry, until f returns false. If there is no journal, or none
// that the caller may read, there are no entries. Read ends with ctx, or after 30
// seconds with ErrSlow.
func Read(ctx context.Context, q Query, f func(Entry) bool) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "journalctl", q.arguments()...)
	stderr := &head{}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	enough, err := parse(stdout, q, f)
	slow := errors.Is(ctx.Err(), context.DeadlineExceeded)
	if enough || err != nil {
		cancel() // journalctl may have more entries
	}
	waitErr := cmd.Wait()
	switch {
	case enough:
		return nil
	case slow || errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("read the journal: %w", ErrSlow)
	case err != nil:
		return fmt.Errorf("read the journal: %w", err)
	case ctx.Err() != nil:
		return fmt.Errorf("read the journal: %w", ctx.Err())
	case waitErr != nil:
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return fmt.Errorf("read the journal: journalctl: %w: %s", waitErr, line)
	}
	return nil
}

// head keeps the first bytes that are written to it.
type head struct{ strings.Builder }

func (h *head) Write(b []byte) (int, error) {
	h.Builder.Write(b[:min(len(b), maxError-h.Len())])
	return len(b), nil
}

// parse reads lines with a JSON object each. enough says that it stopped early, so that
// there may be more.
func parse(r io.Reader, q Query, f func(Entry) bool) (enough bool, err error) {
	all := &io.LimitedReader{R: r, N: maxQuery}
	lines := bufio.NewReaderSize(all, maxEntry)
	for n := 0; ; {
		line, err := lines.ReadSlice('\n')
		long := false
		for ; err == bufio.ErrBufferFull; long = true {
			_, err = lines.ReadSlice('\n')
		}
		switch {
		case err != nil && all.N == 0:
			return false, ErrTooMuch
		case err == io.EOF && len(line) == 0:
			return false, nil
		case err != nil && err != io.EOF:
			return false, err
		case long:
			if q.LeftOut != nil {
				*q.LeftOut++
			}
			continue
		case n == q.Most:
			return true, nil
		}
		e, err := parseEntry(line)
		if err != nil {
			return false, err
		}
		n++
		if !f(e) {
			return true, nil
		}
	}
}

// parseEntry reads an entry in journalctl's format json. A value is a string, or an
// array of bytes if it is not printable. It is an array of such values if the field
// has several, and null if it is large.
func parseEntry(line []byte) (Entry, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(line, &raw); err != nil {
		return Entry{}, fmt.Errorf("entry %.40q: %w", line, err)
	}
	e := Entry{Fields: make(map[string]string, len(raw))}
	for name, v := range raw {
		text := value(v)
		e.Fields[name] = text[:min(len(text), maxValue)]
	}
	if string(raw["MESSAGE"]) == "null" {
		e.Fields["MESSAGE"] = TooLarge
	}
	realtime, err := strconv.ParseInt(e.Fields["__REALTIME_TIMESTAMP"], 10, 64)
	if err != nil {
		return Entry{}, fmt.Errorf("entry %.40q: no time", line)
	}
	monotonic, _ := strconv.ParseInt(e.Fields["__MONOTONIC_TIMESTAMP"], 10, 64)
	e.Time, e.Monotonic = time.UnixMicro(realtime), time.Duration(monotonic)*time.Microsecond
	e.Message = e.Fields["MESSAGE"]
	return e, nil
}

func value(v json.RawMessage) string {
	var text string
	if json.Unmarshal(v, &text) == nil {
		return text
	}
	var bytewise []uint16 // a []byte would be taken for base64
	if json.Unmarshal(v, &bytewise) == nil {
		b := make([]byte, len(bytewise))
		for i, n := range bytewise {
			b[i] = byte(n)
		}
		return string(b)
	}
	var several []json.RawMessage
	if json.Unmarshal(v, &several) == nil && len(several) > 0 {
		return value(several[0])
	}
	return ""
}
