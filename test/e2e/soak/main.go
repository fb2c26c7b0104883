// Command soak starts, stops, restarts and kills units by chance, lets things go
// wrong at every moment of that, and checks after each step that no unit is what
// it must not be. It runs as root on a throw-away machine; TestSoak sets it up.
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
)

func main() {
	seed := flag.Uint64("seed", 0, "of the steps")
	steps := flag.Int("steps", 100, "how many")
	from := flag.Int("from", 1, "leave out the steps before")
	goOn := flag.Bool("go-on", false, "put right what is wrong, and go on")
	flag.Parse()
	if err := run(flag.Arg(0), *seed, *from, *steps, *goOn); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// driver is what does the steps.
type driver struct {
	fleet   *fleet
	trap    *trap
	manager manager

	// agent is for what happens beside the steps.
	agent  manager
	memory string // a hierarchy of control groups, "" for none

	seed    uint64
	history []string
	tally   map[string]*tally
	// remnants counts what was removed, see remove.
	remnants map[string]int
	// before are the processes that were there, see strangers.
	before map[string]int
}

// tally counts what became of a kind of fault.
type tally struct{ tried, reached, hit int }

// settleTimeout is more than a unit of the fleet may take to start or stop with
// all that its commands may take, TimeoutStartSec= and TimeoutStopSec=.
const settleTimeout = 100 * time.Second

// lingerTimeout is how long what a unit leaves behind may take to end: podman's
// clean-up, which conmon starts.
const lingerTimeout = 15 * time.Second

func run(fleetFile string, seed uint64, from, steps int, goOn bool) error {
	spareThreads(32)
	fleet, err := readFleet(fleetFile)
	if err != nil {
		return err
	}
	d := &driver{seed: seed, fleet: fleet, tally: map[string]*tally{}, remnants: map[string]int{}, memory: mountMemory()}
	if d.trap, err = newTrap(); err != nil {
		return err
	}
	states, wrong := d.settle()
	if len(wrong) > 0 {
		return fmt.Errorf("before the first step: %v", wrong)
	}
	d.before = d.strangers()
	rng := rand.New(rand.NewPCG(seed, 0))
	started, violations := time.Now(), 0
	for n := 1; n <= steps; n++ {
		s := draw(rng, n, fleet)
		if n < from {
			continue
		}
		var took string
		fmt.Print(s)
		before := states
		states, took, wrong = d.do(s, before)
		d.history = append(d.history, s.String()+took)
		fmt.Println(took)
		if len(wrong) == 0 {
			continue
		}
		violations++
		d.report(wrong)
		if !goOn {
			return fmt.Errorf("step %d of seed %d broke an invariant", n, seed)
		}
		if states, err = d.repair(); err != nil {
			return err
		}
	}
	fmt.Printf("%d steps in %v, %.1f a second, %d violations\n", steps-from+1, time.Since(started).Round(time.Second), float64(steps-from+1)/time.Since(started).Seconds(), violations)
	d.summary()
	if violations > 0 {
		return fmt.Errorf("%d violations", violations)
	}
	return d.stopAll()
}

// spareThreads has the runtime make threads now, which it keeps: where there are
// no PIDs it could not, and would end this program.
func spareThreads(n int) {
	var ready, done sync.WaitGroup
	ready.Add(n)
	release := make(chan struct{})
	for range n {
		done.Add(1)
		go func() {
			defer done.Done()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			<-release
		}()
	}
	ready.Wait()
	close(release)
	done.Wait()
}

// do does a step, and returns the states of the units afterwards.
func (d *driver) do(s *step, before map[string]state) (map[string]state, string, []violation) {
	start := time.Now()
	in, err := d.inject(s)
	if err == nil {
		err = d.act(s)
	}
	if err == nil && s.surroundings() {
		// The surroundings are bad while the action goes on, not for ever.
		d.settleFor(names(s.units), badTime)
	}
	if err == nil && !s.surroundings() {
		// The fault may come as late as what follows the action.
		d.settleFor(d.fleet.names(), settleTimeout)
		time.Sleep(min(s.delay, 50*time.Millisecond))
	}
	if endErr := d.end(in); err == nil {
		err = endErr
	}
	if err != nil {
		return before, "", []violation{{nil, err.Error()}}
	}
	after, wrong := d.settle()
	if len(wrong) > 0 && d.remove(s, in.outcome.Load() == hit) {
		after, wrong = d.settle()
	}
	d.count(s, in.outcome.Load())
	if in.outcome.Load() != hit {
		s.fault = noFault
	}
	if len(wrong) == 0 {
		wrong = d.expected(s, before, after)
	}
	return after, fmt.Sprintf(" [%s, %v]", []string{"not reached", "too late", "hit"}[in.outcome.Load()], time.Since(start).Round(time.Millisecond)), wrong
}

func names(units []*unit) []string {
	var all []string
	for _, u := range units {
		all = append(all, u.Name)
	}
	return all
}

// act does what the step does to its units, and does not wait for systemd.
func (d *driver) act(s *step) error {
	u := s.units[0]
	switch s.action {
	case "start", "start several":
		for _, u := range s.units {
			if err := d.job((*systemd.Conn).StartUnitContext, u); err != nil {
				return err
			}
		}
	case "restart":
		return d.job((*systemd.Conn).RestartUnitContext, u)
	case "reload":
		return d.job((*systemd.Conn).ReloadOrRestartUnitContext, u)
	case "stop":
		return d.job((*systemd.Conn).StopUnitContext, u)
	case "systemctl kill main", "systemctl kill all":
		who := systemd.Main
		if s.action == "systemctl kill all" {
			who = systemd.All
		}
		d.manager.ask(func(ctx context.Context, conn *systemd.Conn) error {
			return conn.KillUnitWithTarget(ctx, u.Name, who, int32(s.kill))
		})
	case "podman stop":
		d.asUser(u.user, "podman", "stop", "--time=2", "--filter=name="+u.Container+"$")
	case "podman kill":
		d.asUser(u.user, "sh", "-c", `podman kill $(podman ps --quiet --filter=name="$1"$)`, "sh", u.Container)
	case "podman rm":
		d.asUser(u.user, "podman", "rm", "--force", "--time=0", "--filter=name="+u.Container+"$")
	case "login":
		ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
		defer cancel()
		exec.CommandContext(ctx, "systemd-run", "--quiet", "--collect", "--pipe", "--wait", "--property=User="+u.User, "--property=PAMName=login", "--", "true").Run()
	}
	return nil
}

// job enqueues a job, which what else there is replaces; the error says only
// that systemd could not be asked.
func (d *driver) job(verb func(*systemd.Conn, context.Context, string, string, chan<- string) (int, error), u *unit) error {
	return d.manager.ask(func(ctx context.Context, conn *systemd.Conn) error {
		_, err := verb(conn, ctx, u.Name, "replace", nil)
		return err
	})
}

// asUser runs a command as a user, outside of any session, lets it fail, and
// returns what it wrote to standard output.
func (d *driver) asUser(a *account, args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	// Not podman itself: it waits in execve(2) for the trap, and this program
	// until then for it.
	cmd := exec.CommandContext(ctx, "setpriv", append([]string{
		fmt.Sprint("--reuid=", a.UID), fmt.Sprint("--regid=", a.UID), "--init-groups",
		"env", "--chdir=/", "HOME=" + a.Home, fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", a.UID),
	}, args...)...)
	out, _ := cmd.Output()
	return string(out)
}

// settleFor waits until the units are settled, no longer than that.
func (d *driver) settleFor(units []string, limit time.Duration) (map[string]state, error) {
	quiet := 0
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		states, settled, err := d.manager.states(units)
		if err != nil {
			return states, err
		}
		quiet++
		if !settled {
			quiet = 0
		}
		if quiet >= 2 || time.Now().After(deadline) {
			return states, nil
		}
	}
}

// settle waits until all units are settled and nothing is wrong, and returns
// what remains wrong.
func (d *driver) settle() (map[string]state, []violation) {
	var wrong []violation
	for deadline := time.Now().Add(settleTimeout + lingerTimeout); ; time.Sleep(50 * time.Millisecond) {
		states, err := d.settleFor(d.fleet.names(), settleTimeout)
		if err == nil {
			err = d.manager.details(states)
		}
		if err != nil {
			return states, []violation{{nil, err.Error()}}
		}
		was := len(wrong) > 0
		if wrong = d.check(states); len(wrong) == 0 {
			return states, nil
		}
		if !was {
			deadline = time.Now().Add(lingerTimeout)
		}
		if time.Now().After(deadline) {
			return states, wrong
		}
	}
}

func (d *driver) count(s *step, outcome int32) {
	kind := s.fault
	switch s.fault {
	case noFault:
		return
	case faultSignal, faultRlimit, faultMemory:
		kind += ": " + s.program
	}
	t := d.tally[kind]
	if t == nil {
		t = &tally{}
		d.tally[kind] = t
	}
	t.tried++
	if outcome != notReached {
		t.reached++
	}
	if outcome == hit {
		t.hit++
	}
}

// summary prints how often each kind of fault was tried, how often its moment
// came, and how often it found its process.
func (d *driver) summary() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tTRIED\tREACHED\tHIT")
	for _, kind := range slices.Sorted(maps.Keys(d.tally)) {
		t := d.tally[kind]
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\n", kind, t.tried, t.reached, t.hit)
	}
	w.Flush()
	for what, n := range d.remnants {
		fmt.Printf("%d times removed: %s\n", n, what)
	}
}

// report prints what is wrong, and what there is to find out why.
func (d *driver) report(wrong []violation) {
	fmt.Printf("VIOLATION with seed %d\n", d.seed)
	shown := map[string]bool{}
	for _, v := range wrong {
		fmt.Println("VIOLATION:", v)
	}
	for _, line := range d.history[max(0, len(d.history)-20):] {
		fmt.Println(" ", line)
	}
	for _, v := range wrong {
		if v.unit == nil || shown[v.unit.Name] || len(shown) == 3 {
			continue
		}
		shown[v.unit.Name] = true
		show("systemctl", "status", "--no-pager", "--full", "--lines=0", v.unit.Name)
		show("journalctl", "--no-pager", "--output=short-precise", "--lines=60", "--unit="+v.unit.Name)
		show("ls", "-l", filepath.Join(runDir, v.unit.Name))
	}
	for _, p := range processes(d.trap) {
		if p.uid >= 100 {
			fmt.Println("  process:", p)
		}
	}
}

func show(args ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	out, _ := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	fmt.Printf("$ %s\n%s\n", strings.Join(args, " "), out)
}
