package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// runDir is where each unit has a directory with its files. The mainpid files are in
// directories below users/UID.
const runDir = "/run/oci-mainpid"

// unitDirs returns the directories of a unit, or of all units if name is *.
func unitDirs(name string) []string {
	own, _ := filepath.Glob(filepath.Join(runDir, name))
	of, _ := filepath.Glob(filepath.Join(runDir, "users/*", name))
	return append(slices.DeleteFunc(own, func(dir string) bool { return filepath.Base(dir) == "users" }), of...)
}

// violation is an invariant that does not hold.
type violation struct {
	unit *unit // nil: the machine's
	what string
}

func (v violation) String() string {
	if v.unit == nil {
		return v.what
	}
	return v.unit.Name + ": " + v.what
}

// check returns what does not hold of the machine, whose units are settled.
func (d *driver) check(states map[string]state) []violation {
	all := processes(d.trap)
	var wrong []violation
	idle := map[string]bool{}
	for _, a := range d.fleet.Users {
		idle[a.Name] = true
	}
	for _, u := range d.fleet.Units {
		say := func(format string, args ...any) {
			wrong = append(wrong, violation{u, fmt.Sprintf(format, args...)})
		}
		s := states[u.Name]
		switch s.active {
		case "active":
			idle[u.User] = false
			if err := checkMain(u, s, all); err != nil {
				say("%v: %v", s, err)
			}
		case "inactive", "failed":
			for _, p := range all {
				if p.unit == u.Name {
					say("%s, and there is still %v", s.active, p)
				}
			}
			for _, dir := range unitDirs(u.Name) {
				say("%s, and there is still %s", s.active, dir)
			}
		default:
			say("remains %v", s)
		}
	}
	for _, p := range all {
		i := slices.IndexFunc(d.fleet.Users, func(a *account) bool { return a.UID == p.uid })
		if i >= 0 && idle[d.fleet.Users[i].Name] && !p.pause() && !p.manager() {
			wrong = append(wrong, violation{nil, fmt.Sprintf("no unit of %s is active, and there is still %v", d.fleet.Users[i].Name, p)})
		}
	}
	for _, dir := range unitDirs("*") {
		if states[filepath.Base(dir)].active == "" {
			wrong = append(wrong, violation{nil, dir + " belongs to no unit"})
		}
	}
	return wrong
}

// checkMain checks that the main process of an active unit is the conmon of its
// own container, which lives.
func checkMain(u *unit, s state, all map[int]process) error {
	main, ok := all[s.mainPID]
	if !ok {
		return fmt.Errorf("the main process does not live")
	}
	if main.uid != u.user.UID {
		return fmt.Errorf("the main process is %v, not %s's", main, u.User)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", main.pid))
	if err != nil || exe != programs["conmon"] {
		return fmt.Errorf("the main process executes %s (%v)", exe, err)
	}
	c, _ := readConmon(main.pid)
	if main.unit != u.Name || main.invocation != s.invocation || !strings.HasSuffix(c.name, u.Container) {
		return fmt.Errorf("the main process is conmon of %s, of %s with invocation ID %s", c.name, main.unit, main.invocation)
	}
	if pid := readPID(c.conmonPIDFile); pid != main.pid {
		return fmt.Errorf("podman has %d for its conmon", pid)
	}
	if payload, ok := all[readPID(c.pidFile)]; !ok || payload.parent != main.pid {
		return fmt.Errorf("conmon's container, process %d, is %v with parent %d", readPID(c.pidFile), payload, payload.parent)
	}
	for _, p := range all {
		if p.unit != u.Name || p.pid == main.pid {
			continue
		}
		if other, ok := readConmon(p.pid); ok && p.parent == 1 && strings.HasSuffix(other.name, u.Container) {
			return fmt.Errorf("a second conmon: %v", p)
		}
	}
	return nil
}

func readPID(path string) int {
	text, _ := os.ReadFile(path)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// A remnant is what an inactive unit leaves behind where nothing on the machine
// could help it, see docs/facts.md. It is counted, and removed, as an
// administrator would.
const (
	remnantFiles = "files of a unit whose notify-mainpid --forget was killed or could not be started"
	remnantInit  = "a container that was made and never started, of a podman or conmon that was killed meanwhile"
	remnantRuns  = "a process of a container that podman could not stop, because it got no PID"
	remnantName  = "a container that podman has in its storage only, where /run/user was full"
	remnantAll   = "files, or a process, of a unit that was killed as a whole, which the kernel extends to its ExecStopPost="
)

// remove removes the remnants that a step may leave, and reports whether there
// were any. hit is whether its fault came.
func (d *driver) remove(s *step, hit bool) bool {
	removed := false
	helperFails := hit && (s.fault == faultPIDs || s.program == "notify-mainpid" && (s.fault == faultSignal || s.fault == faultRlimit || s.fault == faultMemory))
	makerFails := hit && (s.fault != noFault && s.fault != faultReload && s.fault != faultReexec && s.fault != faultUserRun && s.fault != faultRun || strings.HasPrefix(s.action, "systemctl kill"))
	states, _, err := d.manager.states(d.fleet.names())
	if err != nil {
		return false
	}
	if hit && s.fault == faultUserRun {
		names := d.asUser(s.units[0].user, "sh", "-c",
			`podman ps --all --external --format="{{.Status}} {{.Names}}" | sed -n "s/^Storage //p" | xargs --no-run-if-empty podman rm --force --time=0`)
		for range strings.Lines(names) {
			d.remnants[remnantName]++
			removed = true
		}
	}
	all := processes(d.trap)
	for _, u := range d.fleet.Units {
		active := states[u.Name].active
		idle := active == "inactive" || active == "failed"
		allKilled := idle && u == s.units[0] && s.action == "systemctl kill all" && s.kill == unix.SIGKILL
		what := ""
		switch {
		case allKilled:
			what = remnantAll
		case idle && helperFails:
			what = remnantFiles
		}
		left := false
		for _, dir := range unitDirs(u.Name) {
			left = what != "" && os.RemoveAll(dir) == nil || left
		}
		if left {
			d.remnants[what]++
			removed = true
		}
		if allKilled {
			// podman believes that it runs.
			d.asUser(u.user, "podman", "rm", "--force", "--time=0", "--filter=name="+u.Container+"$")
		}
		for _, p := range all {
			if p.unit != u.Name {
				continue
			}
			// The runtime, which waits to be told to execute the container's program.
			waits := strings.HasPrefix(p.name, programs["crun"]) || strings.Contains(p.name, "runc init")
			what := ""
			switch {
			case allKilled:
				what = remnantAll
			case makerFails && waits && containerCgroup.MatchString(p.cgroup): // also of a unit that has been started again
				what = remnantInit
			case idle && hit && s.fault == faultPIDs:
				what = remnantRuns
			}
			if what != "" && unix.Kill(p.pid, unix.SIGKILL) == nil {
				d.remnants[what]++
				removed = true
			}
		}
	}
	return removed
}

// expected returns what should have become of the units of a step but has not.
// Bystanders are as before unless the fault was of the whole machine's or user's.
func (d *driver) expected(s *step, before, after map[string]state) []violation {
	var wrong []violation
	families := map[string]bool{}
	for _, u := range s.units {
		families[u.Family] = true
		was, is := before[u.Name], after[u.Name]
		say := func(want string) {
			wrong = append(wrong, violation{u, fmt.Sprintf("was %v, is %v, not %s", was, is, want)})
		}
		back := u.Restart == "always" && !s.surroundings()
		if u.Family != u.Name {
			// podman stops a pod when its last container stops, and with the pod
			// the unit that was about to start the container again.
			continue
		}
		switch {
		case s.starts() && (s.fault == noFault || back):
			if is.active != "active" {
				say("active")
			}
			if s.action == "reload" && s.fault == noFault && was.active == "active" && (is.invocation != was.invocation || is.mainPID == was.mainPID) {
				say("the same start with another container")
			}
		case s.fault != noFault:
		case s.action == "stop" && was.active == "active":
			if is.active != "inactive" || is.result != "success" {
				say("inactive with success")
			}
		case s.action == "restart" && is.invocation == was.invocation:
			say("started anew")
		case was.active != "active":
		case s.action == "podman stop" && u.Restart != "always":
			if is.active != "inactive" || is.result != "success" {
				say("inactive with success")
			}
		case s.action == "podman kill" && u.Restart == "no":
			if is.active != "failed" {
				say("failed")
			}
		case u.Restart == "always" && s.action != "stop",
			s.action == "podman kill":
			if is.active != "active" {
				say("active")
			}
		}
	}
	switch s.fault {
	case noFault, faultSignal, faultMain, faultReexec, faultReload, faultRlimit, faultMemory:
		for _, u := range d.fleet.Units {
			was, is := before[u.Name], after[u.Name]
			if !families[u.Family] && (was.active != is.active || was.mainPID != is.mainPID) {
				wrong = append(wrong, violation{u, fmt.Sprintf("had no part in this, was %v, is %v", was, is)})
			}
		}
	}
	return wrong
}
