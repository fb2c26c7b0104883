package main

import (
	"testing"
	"time"
)

func TestParseStarts(t *testing.T) {
	starts, err := parseStarts("own 0 1500 700\nmixed 1 20 10\nmixed 1 40 30\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := starts[started{"own", "0"}]; len(got.wall) != 1 || got.wall[0] != 1500*time.Microsecond || got.processor[0] != 700*time.Microsecond {
		t.Errorf("own manager, first build: %v", got)
	}
	if got := starts[started{"mixed", "1"}]; len(got.wall) != 2 || median(got.wall) != 40*time.Microsecond || median(got.processor) != 30*time.Microsecond {
		t.Errorf("mixed, second build: %v", got)
	}
	for name, out := range map[string]string{"a word too few": "own 0 1500\n", "no number": "own 0 soon 700\n", "a word too many": "own 0 1500 700 1\n", "an empty line": "\n"} {
		if _, err := parseStarts(out); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestPrintStarts: a unit that start.sh did not measure is an error, not a hole
// in the table.
func TestPrintStarts(t *testing.T) {
	starts := map[started]series{}
	for _, u := range startUnits {
		starts[started{u.word, "0"}] = series{[]time.Duration{time.Millisecond}, []time.Duration{time.Millisecond}}
	}
	if err := printStarts(starts, []build{{"this build", "bin"}}); err != nil {
		t.Errorf("all measured: %v", err)
	}
	if err := printStarts(starts, []build{{"this build", "bin"}, {"other build", "other"}}); err == nil {
		t.Error("nothing of the other build was measured, and that is no error")
	}
}
