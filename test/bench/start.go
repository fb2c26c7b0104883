package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

//go:embed start.sh
var startScript []byte

// ownManager is the unit that all others are compared with.
const ownManager = "own"

// startUnits are the units that start.sh starts, by its words for them.
var startUnits = []struct{ word, name string }{
	{ownManager, "the user's own manager"},
	{"root", "root's own Quadlet"},
	{"mixed", "[Service] User=, Cgroup=mixed"},
	{"user", "[Service] User=, Cgroup=user"},
	{"service", "[Service] User=, Cgroup=service"},
}

// A started is a unit and the build whose programs were installed.
type started struct{ unit, build string }

// benchStart measures "systemctl start" until the unit is active, of one
// container in each of startUnits, with the programs of each build in turn.
func benchStart(ctx context.Context, machine *sandbox.Machine, builds []build, rounds int) error {
	script, err := putScript(machine, "bench-start", startScript)
	if err != nil {
		return err
	}
	args := []string{strconv.Itoa(rounds)}
	for i, b := range builds {
		dir := "/usr/local/lib/bench/" + strconv.Itoa(i)
		if err := copyPrograms(b, filepath.Join(machine.Root(), dir)); err != nil {
			return err
		}
		args = append(args, dir)
	}
	cmd := machine.Command(ctx, script, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	before := load()
	fmt.Fprintf(os.Stderr, "starting units %d times\n", rounds*len(builds)*len(startUnits))
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("systemctl start on %s: %w\n%s", machine.Suite, err, stderr.Bytes())
	}
	starts, err := parseStarts(string(out))
	if err != nil {
		return fmt.Errorf("systemctl start on %s: %w", machine.Suite, err)
	}
	fmt.Printf("systemctl start until active on %s, a .container whose image is there, %d of each in random\n"+
		"order, medians; processor: what all of the machine was on processors meanwhile, which others'\n"+
		"load lengthens least; × own: times that of the user's own manager. Load %s before and %s after.\n\n",
		machine.Suite, rounds, before, load())
	return printStarts(starts, builds)
}

// copyPrograms copies the build's programs to a new directory.
func copyPrograms(b build, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, program := range []string{"oci-mainpid", "notify-mainpid", "podman-pause", "oci-mainpid-hook"} {
		data, err := os.ReadFile(filepath.Join(b.dir, program))
		if err != nil {
			return fmt.Errorf("%w (make build in its checkout first)", err)
		}
		if err := os.WriteFile(filepath.Join(dir, program), data, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// parseStarts reads what start.sh prints. The builds are "0" and "1".
func parseStarts(out string) (map[started]series, error) {
	starts := map[started]series{}
	for line := range strings.Lines(out) {
		var unit, build string
		var wall, processor int
		if _, err := fmt.Sscanf(line, "%s %s %d %d\n", &unit, &build, &wall, &processor); err != nil {
			return nil, fmt.Errorf("unexpected output %q", line)
		}
		key := started{unit, build}
		of := starts[key]
		of.add(time.Duration(wall)*time.Microsecond, time.Duration(processor)*time.Microsecond)
		starts[key] = of
	}
	return starts, nil
}

func printStarts(starts map[started]series, builds []build) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, b := range builds {
		fmt.Fprintf(t, "%s\t× own\tprocessor\t× own\t", b.name)
	}
	fmt.Fprintln(t, "  unit")
	for _, u := range startUnits {
		for i, b := range builds {
			build := strconv.Itoa(i)
			unit, own := starts[started{u.word, build}], starts[started{ownManager, build}]
			if len(unit.wall) == 0 || len(own.wall) == 0 {
				return fmt.Errorf("%s, %s: nothing was measured", u.name, b.name)
			}
			fmt.Fprintf(t, "%s\t%.2f\t%s\t%.2f\t", milliseconds(median(unit.wall)), ratio(unit.wall, own.wall),
				milliseconds(median(unit.processor)), ratio(unit.processor, own.processor))
		}
		fmt.Fprintln(t, "  "+u.name)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(builds) > 1 {
		var comparisons []comparison
		for _, u := range startUnits {
			comparisons = append(comparisons, comparison{u.name, starts[started{u.word, "0"}], starts[started{u.word, "1"}]})
		}
		if err := printComparisons("unit", comparisons); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}
