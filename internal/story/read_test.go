package story

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/internal/manager"
)

// journalctl puts a script in the place of journalctl.
func journalctl(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "journalctl"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// said returns an entry of PID 1's as journalctl prints it.
func said(id, text string, at int) string {
	return fmt.Sprintf(`{"MESSAGE":%q,"MESSAGE_ID":%q,"_PID":"1","_UID":"0","UNIT":"web.service","INVOCATION_ID":"aa","__CURSOR":"%d","__REALTIME_TIMESTAMP":"170000000%d000000","__MONOTONIC_TIMESTAMP":"%d000000"}`,
		text, id, at, at, at)
}

// TestQueries: root's messages are asked for without those of others, and by
// fields that nobody else can set.
func TestQueries(t *testing.T) {
	asked := filepath.Join(t.TempDir(), "asked")
	journalctl(t, `echo "$*" >>`+asked+"\ncase $* in *_PID=1*) cat <<'EOF'\n"+said(msgStarting, "Starting web.service...", 1)+"\nEOF\nesac")
	if _, err := Read(t.Context(), "web.service", &manager.Unit{Name: "web.service", UID: 1000, InvocationID: "aa"}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(asked)
	if err != nil {
		t.Fatal(err)
	}
	var users int
	for line := range strings.Lines(string(b)) {
		var matches []string
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "--") {
				matches = append(matches, word)
			}
		}
		root := strings.Contains(line, "_UID=0")
		for _, alternative := range strings.Split(strings.Join(matches, " "), " + ") {
			fields := strings.Fields(alternative)
			trusted := slices.ContainsFunc(fields, func(f string) bool {
				return f == "_UID=0" || f == "_UID=1000" || !root && strings.HasPrefix(f, "_SYSTEMD_INVOCATION_ID=")
			})
			if !trusted || root != slices.Contains(fields, "_UID=0") {
				t.Errorf("anybody's entries match %q of %q", alternative, matches)
			}
		}
		if !root {
			users++
		}
	}
	if users == 0 {
		t.Errorf("the user's messages are not asked for:\n%s", b)
	}
}

// TestReadInTime: where a query takes too long, what the others had is told, and
// what is missing.
func TestReadInTime(t *testing.T) {
	journalctl(t, "case $* in *_UID=1000*) exec sleep 60;; *_PID=1*) cat <<'EOF'\n"+
		said(msgStarting, "Starting web.service...", 1)+"\n"+said(msgNotStart, "Failed to start web.service.", 2)+"\nEOF\nesac")
	unit := &manager.Unit{Name: "web.service", UID: 1000, InvocationID: "aa"}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	began := time.Now()
	s, err := Read(ctx, unit.Name, unit)
	if err != nil || s.Outcome != StartFailed || time.Since(began) > 20*time.Second {
		t.Errorf("%v: %+v after %v", err, s, time.Since(began))
	}
	if len(s.Missing) != 1 || !strings.Contains(s.Missing[0], "messages of the unit's user could be read: read the journal: journalctl took too long") {
		t.Errorf("%q", s.Missing)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(time.Second, cancel)
	if _, err := Read(ctx, unit.Name, unit); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestReadNoStart(t *testing.T) {
	journalctl(t, "")
	if _, err := Read(t.Context(), "web.service", nil); !errors.Is(err, ErrNoStart) || !strings.HasPrefix(err.Error(), "web.service was not started") {
		t.Error(err)
	}
}

// TestMoreThanIsRead: the first and the last messages are read, and it is said
// that there are more.
func TestMoreThanIsRead(t *testing.T) {
	journalctl(t, "case $* in *--reverse*_UID=1000*) echo '"+strings.Replace(said("", "the last word", 3), `"_PID":"1","_UID":"0"`, `"_PID":"9","_UID":"1000","_SYSTEMD_INVOCATION_ID":"aa","_COMM":"sh"`, 1)+"';;"+
		"*_UID=1000*) seq 10100 | sed 's/.*/"+`{"MESSAGE":"word &","_PID":"9","_UID":"1000","_SYSTEMD_INVOCATION_ID":"aa","_COMM":"sh","__CURSOR":"u&","__REALTIME_TIMESTAMP":"1700000001500000","__MONOTONIC_TIMESTAMP":"1500000"}`+"/';;"+
		"*_PID=1*) echo '"+said(msgStarting, "Starting web.service...", 1)+"';; esac")
	s, err := Read(t.Context(), "web.service", &manager.Unit{Name: "web.service", UID: 1000, InvocationID: "aa", ActiveState: "activating"})
	if err != nil || len(s.Missing) != 1 || !strings.HasPrefix(s.Missing[0], "There are more than 10000 messages of the unit's user") {
		t.Errorf("%v: %q", err, s.Missing)
	}
	if last := s.Events[len(s.Events)-1]; last.Text != "the last word" || s.LeftOut["others"] == 0 {
		t.Errorf("%+v, left out %v", last, s.LeftOut)
	}
}
