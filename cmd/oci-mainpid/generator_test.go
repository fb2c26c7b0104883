package main

import (
	"os"
	"strings"
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

// TestGeneratorErrors: each is one line that begins with the program.
func TestGeneratorErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing", nil, "0 arguments, not DIR, or DIR, EARLYDIR and LATEDIR"},
		{"two directories", []string{"a", "b"}, "2 arguments, "},
		{"four", []string{"a", "b", "c", "d"}, "4 arguments, "},
		{"unknown flag", []string{"--user"}, "unknown flag: --user"},
		{"unknown flag of two lines", []string{"--\n\x1b"}, `unknown flag: --; \x1b`},
	} {
		stderr, err := os.CreateTemp(t.TempDir(), "stderr")
		if err != nil {
			t.Fatal(err)
		}
		defer func(f *os.File) { os.Stderr = f }(os.Stderr)
		os.Stderr = stderr
		status := generator(c.args)
		b, err := os.ReadFile(stderr.Name())
		if text := string(b); err != nil || status != exitUsage || !strings.HasPrefix(text, "oci-mainpid-generator: "+c.want) ||
			!strings.HasSuffix(text, " (see oci-mainpid-generator --help)\n") || strings.Count(text, "\n") != 1 {
			t.Errorf("%s: %d, %q, %v", c.name, status, text, err)
		}
	}
}
