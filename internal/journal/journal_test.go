package journal

import (
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
	enough, err := parse(strings.NewReader(recorded), 10, func(e Entry) bool {
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
	enough, err := parse(strings.NewReader(recorded), 2, func(Entry) bool { n++; return true })
	if !enough || err != nil || n != 2 {
		t.Errorf("by number: %v %v %d", enough, err, n)
	}
	enough, err = parse(strings.NewReader(recorded), 10, func(Entry) bool { return false })
	if !enough || err != nil {
		t.Errorf("by the caller: %v %v", enough, err)
	}
	long := `{"MESSAGE":"` + strings.Repeat("x", maxEntry) + `"}`
	if _, err = parse(strings.NewReader(long), 10, func(Entry) bool { return true }); err == nil {
		t.Error("a line of any length is read")
	}
	for name, line := range map[string]string{"no JSON": "-- No entries --", "no time": "{}", "another type": `[1]`} {
		if _, err = parse(strings.NewReader(line), 10, func(Entry) bool { return true }); err == nil {
			t.Errorf("%s: no error", name)
		}
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
