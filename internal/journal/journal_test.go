package journal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const recorded = `{"MESSAGE":"Starting web.service...","_PID":"1","_UID":"0","UNIT":"web.service","__REALTIME_TIMESTAMP":"1795226592476057","__MONOTONIC_TIMESTAMP":"2981872037"}
{"MESSAGE":[27,91,51,49,109,114,101,100],"_PID":"375","_UID":"1000","__REALTIME_TIMESTAMP":"1795226592476058","__MONOTONIC_TIMESTAMP":"2981872038"}
{"MESSAGE":["first","second"],"_CMDLINE":null,"_PID":"x","__REALTIME_TIMESTAMP":"1795226592476059","__MONOTONIC_TIMESTAMP":"2981872039"}
`

func TestParse(t *testing.T) {
	var got []Entry
	enough, err := parse(strings.NewReader(recorded), Query{Most: 10}, func(e Entry) bool {
		got = append(got, e)
		return true
	})
	if err != nil || enough || len(got) != 3 {
		t.Fatalf("%v %v %+v", enough, err, got)
	}
	first := got[0]
	if first.Message != "Starting web.service..." || !first.FromManager() || first.PID() != 1 ||
		first.Monotonic != 2981872037*time.Microsecond || !first.Time.Equal(time.UnixMicro(1795226592476057)) {
		t.Errorf("%+v", first)
	}
	if got[1].Message != "\x1b[31mred" || got[1].FromManager() {
		t.Errorf("%+v", got[1])
	}
	if got[2].Message != "first" || got[2].Fields["_CMDLINE"] != "" || got[2].PID() != 0 {
		t.Errorf("%+v", got[2])
	}
}

func TestParseIsBounded(t *testing.T) {
	n := 0
	enough, err := parse(strings.NewReader(recorded), Query{Most: 2}, func(Entry) bool { n++; return true })
	if !enough || err != nil || n != 2 {
		t.Errorf("by number: %v %v %d", enough, err, n)
	}
	enough, err = parse(strings.NewReader(recorded), Query{Most: 10}, func(Entry) bool { return false })
	if !enough || err != nil {
		t.Errorf("by the caller: %v %v", enough, err)
	}
	large := `{"MESSAGE":"` + strings.Repeat("x", maxEntry/2) + `","__REALTIME_TIMESTAMP":"1"}` + "\n"
	endless := strings.NewReader(strings.Repeat(large, maxQuery/len(large)+1))
	enough, err = parse(endless, Query{Most: 1 << 30}, func(Entry) bool { return true })
	if enough || !errors.Is(err, ErrTooMuch) {
		t.Errorf("by size: %v %v", enough, err)
	}
	for name, line := range map[string]string{"no JSON": "-- No entries --", "no time": "{}", "another type": `[1]`} {
		if _, err = parse(strings.NewReader(line), Query{Most: 10}, func(Entry) bool { return true }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestParseLargeEntries: what is large is cut or left out, and ends nothing.
func TestParseLargeEntries(t *testing.T) {
	const times = `"__REALTIME_TIMESTAMP":"1","__MONOTONIC_TIMESTAMP":"1"`
	// journalctl writes a field with several values, 120 of 4000 bytes, as an array.
	values := strings.Repeat(`"`+strings.Repeat("v", 4000)+`",`, 120)
	journal := strings.Join([]string{
		`{"MESSAGE":[` + strings.TrimSuffix(values, ",") + `],` + times + `}`,
		`{"MESSAGE":"` + strings.Repeat("x", 2*maxEntry) + `",` + times + `}`,
		`{"MESSAGE":null,` + times + `}`,
		`{"MESSAGE":"` + strings.Repeat("y", 3*maxValue) + `",` + times + `}`,
		`{"MESSAGE":"the last word",` + times + `}`,
	}, "\n")
	var got []string
	leftOut := 0
	enough, err := parse(strings.NewReader(journal), Query{Most: 10, LeftOut: &leftOut}, func(e Entry) bool {
		got = append(got, e.Message)
		return true
	})
	want := []string{strings.Repeat("v", 4000), TooLarge, strings.Repeat("y", maxValue), "the last word"}
	if err != nil || enough || leftOut != 1 || !slices.Equal(got, want) {
		t.Errorf("%v, enough %v, %d left out, %.60q", err, enough, leftOut, got)
	}
}

// TestReadEndsWithItsContext: a journalctl that hangs, and one that has much to
// say on standard error.
func TestReadEndsWithItsContext(t *testing.T) {
	programs := t.TempDir()
	t.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	program := func(script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(programs, "journalctl"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	all := Query{Most: 10}
	program("printf '%s\\n' '" + strings.SplitN(recorded, "\n", 2)[0] + "'; exec sleep 60")
	for name, c := range map[string]struct {
		context func() (context.Context, context.CancelFunc)
		want    error
	}{
		"a deadline":   {func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), time.Second) }, ErrSlow},
		"an interrupt": {func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) }, context.Canceled},
	} {
		ctx, cancel := c.context()
		began, n := time.Now(), 0
		err := Read(ctx, all, func(Entry) bool {
			if n++; c.want == context.Canceled {
				cancel()
			}
			return true
		})
		cancel()
		if !errors.Is(err, c.want) || n != 1 || time.Since(began) > 10*time.Second {
			t.Errorf("%s: %v after %v, %d entries", name, err, time.Since(began), n)
		}
	}
	program("yes 'it is broken' | head -c 1000000 >&2; exit 3")
	if err := Read(t.Context(), all, func(Entry) bool { return true }); err == nil || !strings.HasSuffix(err.Error(), "exit status 3: it is broken") {
		t.Errorf("%.200v", err)
	}
}

func TestArguments(t *testing.T) {
	q := Query{Matches: []string{"UNIT=-x", "+", "_PID=1"}, Since: time.Unix(100, 5), Until: time.Unix(200, 5), Most: 7, Newest: true}
	args := q.arguments()
	for _, want := range []string{"--lines=7", "--since=@100", "--until=@201"} {
		if !slices.Contains(args, want) {
			t.Errorf("no %s in %q", want, args)
		}
	}
	if tail := args[len(args)-3:]; !slices.Equal(tail, q.Matches) {
		t.Errorf("%q", tail)
	}
}
