package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// warmUp is how many rounds are run before those that count.
const warmUp = 20

// A program is something to run again and again.
type program struct {
	name  string
	build string  // whose program it is; none if empty
	aim   float64 // at most this many times the empty Go program; 0: none
	path  string
	args  []string
	env   []string
	// stdin is a file's path, read from its beginning by every run.
	stdin string

	// before and after, where not nil, run around each run, outside of the
	// measured time. after checks what the run did.
	before, after func() error
}

// A series is what the runs of one thing took: from start to end, and on
// processors, which others' load lengthens least.
type series struct{ wall, processor []time.Duration }

func (s *series) add(wall, processor time.Duration) {
	s.wall, s.processor = append(s.wall, wall), append(s.processor, processor)
}

// measure runs the programs in rounds, each in an order of its own, so that
// what else the machine does falls on all of them alike. It returns the times of
// each.
func measure(ctx context.Context, programs []program, rounds int) ([]series, error) {
	// A collection of this process must not fall into somebody's time.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	stderr, err := os.CreateTemp("", "oci-mainpid-bench-stderr-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(stderr.Name())
	defer stderr.Close()

	times := make([]series, len(programs))
	for round := range warmUp + rounds {
		for _, i := range rand.Perm(len(programs)) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			elapsed, used, err := programs[i].run(stderr)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", programs[i].name, err)
			}
			if round >= warmUp {
				times[i].add(elapsed, used)
			}
		}
	}
	return times, nil
}

// run runs the program once and returns its time from start to exit and that on
// a processor. It fails if the program does, or says anything.
func (p *program) run(stderr *os.File) (elapsed, used time.Duration, err error) {
	if p.before != nil {
		if err := p.before(); err != nil {
			return 0, 0, err
		}
	}
	stdin, err := os.Open(p.stdin)
	if err != nil {
		return 0, 0, err
	}
	defer stdin.Close()
	attr := &os.ProcAttr{Dir: "/", Env: p.env, Files: []*os.File{stdin, stderr, stderr}}
	argv := append([]string{p.path}, p.args...)

	start := time.Now()
	process, err := os.StartProcess(p.path, argv, attr)
	if err != nil {
		return 0, 0, err
	}
	state, err := process.Wait()
	elapsed = time.Since(start)

	if err != nil {
		return 0, 0, err
	}
	said := make([]byte, 4096)
	if n, _ := stderr.ReadAt(said, 0); n > 0 || !state.Success() {
		return 0, 0, fmt.Errorf("%s: %v: %s", strings.Join(argv, " "), state, strings.TrimSpace(string(said[:n])))
	}
	if p.after != nil {
		err = p.after()
	}
	return elapsed, state.UserTime() + state.SystemTime(), err
}

// quantile returns the value that the part q of the values does not exceed.
func quantile(values []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

func median(values []time.Duration) time.Duration { return quantile(values, 0.5) }

// ratio is how many times the median of b the median of a is.
func ratio(a, b []time.Duration) float64 { return float64(median(a)) / float64(median(b)) }

// ratioInterval returns within which bounds the ratio is with a probability of
// 95 %, by drawing samples from the samples (the bootstrap).
func ratioInterval(a, b []time.Duration) (low, high float64) {
	draw := func(from []time.Duration) []time.Duration {
		drawn := make([]time.Duration, len(from))
		for i := range drawn {
			drawn[i] = from[rand.IntN(len(from))]
		}
		return drawn
	}
	ratios := make([]float64, 1000)
	for i := range ratios {
		ratios[i] = ratio(draw(a), draw(b))
	}
	slices.Sort(ratios)
	return ratios[25], ratios[974]
}

// A comparison is what the same thing took with this build and with the other.
type comparison struct {
	name        string
	this, other series
}

// printComparisons prints a table of the ratios of two builds; what is the
// heading of the names.
func printComparisons(what string, comparisons []comparison) error {
	fmt.Print("\nThis build / other build (95 % sure):\n\n")
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "median\tprocessor\t  %s\n", what)
	between := func(a, b []time.Duration) string {
		low, high := ratioInterval(a, b)
		return fmt.Sprintf("%.3f (%.3f to %.3f)", ratio(a, b), low, high)
	}
	for _, c := range comparisons {
		fmt.Fprintf(t, "%s\t%s\t  %s\n", between(c.this.wall, c.other.wall), between(c.this.processor, c.other.processor), c.name)
	}
	return t.Flush()
}

// load is the load average of the last minute (proc_loadavg(5)).
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.3f ms", float64(d)/float64(time.Millisecond))
}
