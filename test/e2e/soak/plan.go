package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// step is one thing that is done to units, and one that goes wrong meanwhile.
// All of it is drawn by chance before anything is done, so that a seed gives the
// same steps whatever becomes of them.
type step struct {
	number int
	action string
	units  []*unit
	fault  string

	// When: at the nth execution of a program since the step began, and a while
	// after. A fault of the surroundings lasts as long as the action instead.
	program string
	nth     int
	delay   time.Duration
	// signal is what the process of the program gets; SIGSTOP for a while.
	signal unix.Signal
	pause  time.Duration
	// kill is the signal of systemctl kill.
	kill unix.Signal
	// amount is what is left of a resource: pages of 4 KiB, PIDs or bytes.
	amount int
}

// Actions, each with a weight.
var actions = weighted{
	{"start", 12}, {"restart", 34}, {"reload", 16}, {"stop", 14}, {"start several", 8},
	{"systemctl kill main", 4}, {"systemctl kill all", 3},
	{"podman stop", 5}, {"podman kill", 5}, {"podman rm", 5},
	{"login", 1}, {"nothing", 1},
}

// Faults, each with a weight.
const (
	noFault      = "none"
	faultSignal  = "signal"         // to the process of the program
	faultMain    = "kill main"      // SIGKILL to the unit's main process, whatever that is then
	faultManager = "kill manager"   // SIGKILL to the user's manager
	faultReexec  = "daemon-reexec"  // of PID 1
	faultReload  = "daemon-reload"  // of PID 1
	faultRun     = "/run full"      // but for a few pages
	faultUserRun = "/run/user full" // the user's XDG_RUNTIME_DIR
	faultPIDs    = "no PIDs"        // but for a few
	faultRlimit  = "address space"  // RLIMIT_AS of the process of the program
	faultMemory  = "memory"         // a control group of the process of the program and all below it
)

var faults = weighted{
	{noFault, 22}, {faultSignal, 44}, {faultMain, 4}, {faultManager, 4}, {faultReexec, 6}, {faultReload, 3},
	{faultRun, 4}, {faultUserRun, 3}, {faultPIDs, 4}, {faultRlimit, 3}, {faultMemory, 3},
}

// A target is a program, and the most that one action executes of it.
type target struct {
	program string
	most    int
}

// targets are what actions that start units execute, those that replace their containers,
// and those that end them.
var (
	starting = []target{{"podman", 3}, {"conmon", 1}, {"runtime", 3}, {"oci-mainpid-hook", 1}, {"notify-mainpid", 3}}
	// The programs of a reload come in the order of its commands.
	reloading = []target{{"podman", 6}, {"conmon", 2}, {"runtime", 5}, {"oci-mainpid-hook", 2}, {"notify-mainpid", 4}, {"oci-mainpid", 4}}
	ending    = []target{{"podman", 3}, {"runtime", 2}, {"notify-mainpid", 1}}
)

// surroundings reports whether the fault is none of a moment.
func (s *step) surroundings() bool {
	switch s.fault {
	case faultRun, faultUserRun, faultPIDs:
		return true
	}
	return false
}

// starts reports whether the units are to be active after the action. A reload starts
// those that are not, and restarts those without Reload=.
func (s *step) starts() bool {
	return s.action == "start" || s.action == "restart" || s.action == "reload" || s.action == "start several"
}

func draw(rng *rand.Rand, number int, f *fleet) *step {
	s := &step{number: number, action: actions.draw(rng), fault: faults.draw(rng)}
	from := f.Units
	if s.action == "reload" {
		from = slices.DeleteFunc(slices.Clone(from), func(u *unit) bool { return !u.Reload })
	}
	s.units = []*unit{from[rng.IntN(len(from))]}
	if s.action == "start several" {
		for range 2 + rng.IntN(4) {
			s.units = append(s.units, f.Units[rng.IntN(len(f.Units))])
		}
	}
	targets := ending
	switch {
	case s.action == "reload":
		targets = reloading
	case s.starts():
		targets = starting
	}
	t := targets[rng.IntN(len(targets))]
	s.program, s.nth = t.program, 1+rng.IntN(t.most)
	// At the very start of the process, in its first milliseconds, or later.
	s.delay = []time.Duration{0, between(rng, 20*time.Microsecond, 5*time.Millisecond), between(rng, time.Millisecond, 300*time.Millisecond)}[rng.IntN(3)]
	s.signal = []unix.Signal{unix.SIGKILL, unix.SIGKILL, unix.SIGKILL, unix.SIGTERM, unix.SIGSTOP}[rng.IntN(5)]
	s.pause = between(rng, 10*time.Millisecond, 2*time.Second)
	s.kill = []unix.Signal{unix.SIGKILL, unix.SIGTERM}[rng.IntN(2)]
	switch s.fault {
	case faultRun, faultUserRun:
		s.amount = []int{0, 1, 2, 4, 8, 16, 32, 64}[rng.IntN(8)]
	case faultPIDs:
		s.amount = rng.IntN(48)
	case faultRlimit:
		s.amount = int(spread(rng, 1<<20, 4<<30))
	case faultMemory:
		s.amount = int(spread(rng, 1<<20, 48<<20))
	}
	return s
}

// between draws a duration of which each order of magnitude is as likely.
func between(rng *rand.Rand, least, most time.Duration) time.Duration {
	return time.Duration(spread(rng, float64(least), float64(most)))
}

func spread(rng *rand.Rand, least, most float64) float64 {
	return least * math.Pow(most/least, rng.Float64())
}

func (s *step) String() string {
	var names []string
	for _, u := range s.units {
		names = append(names, u.Name)
	}
	text := fmt.Sprintf("step %d: %s %s", s.number, s.action, strings.Join(names, " "))
	at := fmt.Sprintf(" at execution %d of %s + %v", s.nth, s.program, s.delay.Round(10*time.Microsecond))
	switch s.fault {
	case noFault:
		return text
	case faultSignal:
		text += fmt.Sprintf("; %v%s", unix.SignalName(s.signal), at)
		if s.signal == unix.SIGSTOP {
			text += fmt.Sprintf(" for %v", s.pause.Round(time.Millisecond))
		}
	case faultRlimit, faultMemory:
		text += fmt.Sprintf("; %s of %d KiB at execution %d of %s", s.fault, s.amount>>10, s.nth, s.program)
	case faultRun, faultUserRun:
		text += fmt.Sprintf("; %s but for %d pages", s.fault, s.amount)
	case faultPIDs:
		text += fmt.Sprintf("; %s but for %d", s.fault, s.amount)
	default:
		text += "; " + s.fault + at
	}
	return text
}

// weighted is a choice.
type weighted []struct {
	name   string
	weight int
}

func (w weighted) draw(rng *rand.Rand) string {
	total := 0
	for _, c := range w {
		total += c.weight
	}
	n := rng.IntN(total)
	for _, c := range w {
		if n -= c.weight; n < 0 {
			return c.name
		}
	}
	panic("unreachable")
}
