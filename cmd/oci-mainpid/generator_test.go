package main

import (
	"os"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/quadlet"
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

// TestWriteGone: the drop-in is where those of Quadlet units are, and the unit file where
// every other one of the unit wins.
func TestWriteGone(t *testing.T) {
	p := newPlace(t)
	dir, late := p.path("out"), p.path("late")
	for _, d := range []string{dir, late} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	plan := &quadlet.Plan{}
	for _, unit := range []string{"web.service", "blocked.service"} {
		plan.Gone = append(plan.Gone, dropin.NewGone(unit, handover.Record{UID: 1000}, nil, dropin.Programs{NotifyMainPID: "/x/notify-mainpid", OCIMainPID: "/x/oci-mainpid"}))
	}
	p.write("out/blocked.service.d", "a file")
	var logged []string
	writeGone(func(kind message.Kind, service, text string) { logged = append(logged, service) }, plan, dir, late)
	if got := p.read("out/web.service.d/50-oci-mainpid.conf"); !strings.Contains(got, "ExecStopPost=-+/x/notify-mainpid --forget --unit=web.service ") {
		t.Errorf("the drop-in: %s", got)
	}
	if got := p.read("late/web.service"); !strings.Contains(got, "ExecStart=/x/oci-mainpid refuse --unit=web.service ") {
		t.Errorf("the unit file: %s", got)
	}
	if strings.Join(logged, " ") != "blocked.service" || p.read("late/blocked.service") != "" {
		t.Errorf("logged: %q", logged)
	}
}
