package main

import (
	"testing"
	"time"
)

func TestParseStarts(t *testing.T) {
	times, err := parseStarts("own 0 1500\nmixed 1 20\nmixed 1 40\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := times[started{"own", "0"}]; len(got) != 1 || got[0] != 1500*time.Microsecond {
		t.Errorf("own manager, first build: %v", got)
	}
	if got := times[started{"mixed", "1"}]; len(got) != 2 || median(got) != 40*time.Microsecond {
		t.Errorf("mixed, second build: %v, median %v", got, median(got))
	}
	for name, out := range map[string]string{"a word too few": "own 0\n", "no number": "own 0 soon\n", "an empty line": "\n"} {
		if _, err := parseStarts(out); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestPrintStarts: a unit that start.sh did not measure is an error, not a hole
// in the table.
func TestPrintStarts(t *testing.T) {
	times := map[started][]time.Duration{}
	for _, u := range startUnits {
		times[started{u.word, "0"}] = []time.Duration{time.Millisecond}
	}
	if err := printStarts(times, []build{{"this build", "bin"}}); err != nil {
		t.Errorf("all measured: %v", err)
	}
	if err := printStarts(times, []build{{"this build", "bin"}, {"other build", "other"}}); err == nil {
		t.Error("nothing of the other build was measured, and that is no error")
	}
}
