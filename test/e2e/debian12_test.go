//go:build e2e && machines

package e2e

import (
	"testing"

	"oci-mainpid-hook/test/sandbox"
)

// TestDebian12: hand-written units work with systemd 252, which has no OpenFile=,
// and podman 4.3, which has no Quadlet and keeps its environment from conmon.
func TestDebian12(t *testing.T) {
	t.Parallel()
	s := &stack{suite: sandbox.Bookworm}
	box, err := s.machine()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.end(); err != nil {
			t.Error(err)
		}
	}()
	m := machine{t, box}
	for _, mode := range []string{"mixed", "user"} {
		for _, runtime := range []string{"crun", "runc"} {
			deal := m.subtest
			if mode == "mixed" && runtime == "runc" || mode == "user" && runtime == "crun" {
				deal = m.rare
			}
			deal("Cgroup "+mode+" with "+runtime, func(m machine) {
				n := m.user().unit(service{mode: mode, runtime: runtime, more: "Restart=on-failure"})
				for range 2 { // the first podman since boot, and a later one
					n.start()
					n.assertMainPIDIsConmon()
					if got := n.podman("exec", n.container, "cat", "/proc/1/comm"); got != "sh" {
						m.t.Errorf("podman exec: %s", got)
					}
					n.assertNothingLeaked(n.container)
					n.stop()
					n.assertEnded("inactive", "success", "0")
					n.assertGone()
				}
				n.start()
				before := n.assertMainPIDIsConmon()
				n.run("kill", "-9", before.conmon)
				n.await("restarted", soon, func() bool {
					p := n.properties()
					return p["NRestarts"] == "1" && p["ActiveState"] == "active"
				})
				n.assertMainPIDIsConmon()
				n.stop()
				n.assertGone()
			})
		}
	}
	m.subtest("a container started by hand", func(m machine) {
		u := m.user()
		u.systemctl("start", "user@"+u.uid)
		if r := u.try(u.as("podman", "run", "--rm", imageName, "echo", "hello")...); r.stdout != "hello" || r.stderr != "" {
			m.t.Error(r)
		}
	})
}

// TestAttackDebian12 is what TestAttack tries where systemd goes by the PID alone
// and podman keeps its environment from conmon.
func TestAttackDebian12(t *testing.T) {
	var table tally
	t.Cleanup(table.print)
	(&stack{suite: sandbox.Bookworm}).onFreshMachine(t, func(m machine) {
		if err := install(m.box); err != nil {
			m.t.Fatal(err)
		}
		m.installAttacker()
		m.systemctl("log-level", "debug")
		b := battle{m, &table, false}
		m.subtest("reused PIDs", func(m machine) { battle{m, &table, false}.reusedPIDs() })
		b.fight("a rootful container whose image names a file of root's as the mainpid file", func(f fight) { f.judge(f.imageNamesFile()...) })
	})
}
