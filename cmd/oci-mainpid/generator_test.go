package main

import (
	"os"
	"testing"
)

func TestGeneratorCommandLine(t *testing.T) {
	p := newPlace(t)
	p.write("q/web.container", "[Container]\nImage=x\n")
	t.Setenv("QUADLET_UNIT_DIRS", p.path("q"))
	if err := os.Mkdir(p.path("out"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		want int
	}{
		{"as systemd calls it", []string{p.path("out"), p.path("early"), p.path("late")}, 0},
		{"by hand", []string{p.path("out")}, 0},
		{"dry run", []string{"--dry-run"}, 0},
		{"as Quadlet spells it", []string{"--dryrun"}, 0},
		{"help", []string{"--help"}, 0},
		{"nothing", nil, exitUsage},
		{"two directories", []string{"a", "b"}, exitUsage},
		{"unknown flag", []string{"--user"}, exitUsage},
	} {
		if got := generator(test.args); got != test.want {
			t.Errorf("%s: %d", test.name, got)
		}
	}
	if entries, err := os.ReadDir(p.path("out")); err != nil || len(entries) != 0 {
		t.Errorf("nobody asks, and it wrote %v, %v", entries, err)
	}
}
