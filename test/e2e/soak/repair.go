package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
)

// stopAll stops all units, and checks that the machine is as it was before.
func (d *driver) stopAll() error {
	for _, u := range d.fleet.Units {
		if err := d.job((*systemd.Conn).StopUnitContext, u); err != nil {
			return err
		}
	}
	states, wrong := d.settle()
	for _, u := range d.fleet.Units {
		if s := states[u.Name]; s.active == "active" {
			wrong = append(wrong, violation{u, "was stopped, and is " + s.String()})
		}
	}
	for name, n := range d.strangers() {
		// One more may be at work just now.
		if was := d.before[name]; n > was+1 {
			wrong = append(wrong, violation{nil, fmt.Sprintf("%d processes %s, there were %d at first", n, name, was)})
		}
	}
	if len(wrong) > 0 {
		d.report(wrong)
		return fmt.Errorf("after all was stopped: %v", wrong)
	}
	return nil
}

// strangers counts, by name, the processes that are no users' of the fleet.
func (d *driver) strangers() map[string]int {
	counts := map[string]int{}
	for _, p := range processes(d.trap) {
		if !slices.ContainsFunc(d.fleet.Users, func(a *account) bool { return a.UID == p.uid }) {
			counts[p.name]++
		}
	}
	return counts
}

// repair makes the machine one that holds the invariants: all units stopped,
// no container left.
func (d *driver) repair() (map[string]state, error) {
	for _, u := range d.fleet.Units {
		if err := d.job((*systemd.Conn).StopUnitContext, u); err != nil {
			return nil, err
		}
	}
	d.settleFor(d.fleet.names(), settleTimeout)
	for _, u := range d.fleet.Units {
		// Refused for one that has not failed.
		d.manager.ask(func(ctx context.Context, conn *systemd.Conn) error { return conn.ResetFailedUnitContext(ctx, u.Name) })
	}
	for _, p := range processes(d.trap) {
		if slices.ContainsFunc(d.fleet.Users, func(a *account) bool { return a.UID == p.uid }) && !p.manager() && !p.pause() {
			unix.Kill(p.pid, unix.SIGKILL)
		}
	}
	for _, a := range d.fleet.Users {
		d.asUser(a, "podman", "pod", "rm", "--all", "--force", "--time=0")
		d.asUser(a, "podman", "rm", "--all", "--force", "--time=0")
	}
	for _, dir := range unitDirs("*") {
		os.RemoveAll(dir)
	}
	states, wrong := d.settle()
	if len(wrong) > 0 {
		return nil, fmt.Errorf("cannot be put right: %v", wrong)
	}
	return states, nil
}
