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
	times, err := parseStarts(string(out))
	if err != nil {
		return fmt.Errorf("systemctl start on %s: %w", machine.Suite, err)
	}
	fmt.Printf("systemctl start until active on %s, a .container whose image is there, %d of each in random\n"+
		"order, medians; × own: times that of the user's own manager. Load %s before and %s after.\n\n",
		machine.Suite, rounds, before, load())
	return printStarts(times, builds)
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
func parseStarts(out string) (map[started][]time.Duration, error) {
	times := map[started][]time.Duration{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return nil, fmt.Errorf("unexpected output %q", line)
		}
		n, err := strconv.Atoi(fields[2])
		if err != nil {
			return nil, fmt.Errorf("unexpected output %q", line)
		}
		key := started{fields[0], fields[1]}
		times[key] = append(times[key], time.Duration(n)*time.Microsecond)
	}
	return times, nil
}

func printStarts(times map[started][]time.Duration, builds []build) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, b := range builds {
		fmt.Fprintf(t, "%s\t× own\t", b.name)
	}
	if len(builds) == 2 {
		fmt.Fprint(t, "this / other (95 % sure)\t")
	}
	fmt.Fprintln(t, "  unit")
	for _, u := range startUnits {
		for i := range builds {
			build := strconv.Itoa(i)
			unit, own := times[started{u.word, build}], times[started{ownManager, build}]
			if len(unit) == 0 || len(own) == 0 {
				return fmt.Errorf("%s, %s: nothing was measured", u.name, builds[i].name)
			}
			fmt.Fprintf(t, "%s\t%.2f\t", milliseconds(median(unit)), ratio(unit, own))
		}
		if len(builds) == 2 {
			fmt.Fprintf(t, "%s\t", comparison(times[started{u.word, "0"}], times[started{u.word, "1"}]))
		}
		fmt.Fprintln(t, "  "+u.name)
	}
	err := t.Flush()
	fmt.Println()
	return err
}
