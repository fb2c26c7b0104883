//go:build e2e

package e2e

import (
	"fmt"
	"path"
	"strings"
	"testing"
)

// TestMainPID is the promise: whatever the mode, the runtime and the history of
// the user's podman, the unit's main process is the container's conmon, and each
// process is where the mode says.
func TestMainPID(t *testing.T) {
	cases := []struct {
		service
		conmonInUnit, payloadInUnit bool
	}{
		{service: service{mode: "mixed", runtime: "crun"}, conmonInUnit: true},
		{service: service{mode: "mixed", runtime: "runc", cgroups: "split"}, conmonInUnit: true},
		{service: service{mode: "service", runtime: "crun", cgroups: "enabled"}, conmonInUnit: true, payloadInUnit: true},
		{service: service{mode: "service", runtime: "runc"}, conmonInUnit: true, payloadInUnit: true},
		{service: service{mode: "user", runtime: "crun"}},
		{service: service{mode: "user", runtime: "runc", cgroups: "enabled"}},
	}
	onStacks(t, func(m machine) {
		for _, c := range cases {
			m.subtest("Cgroup "+c.mode+" with "+c.runtime, func(m machine) {
				n := m.user().unit(c.service)
				up := func(m machine) {
					n := n.in(m)
					n.start()
					p := n.assertMainPIDIsConmon()
					n.assertIn("conmon", p.conmon, c.conmonInUnit)
					n.assertIn("the payload", p.payload, c.payloadInUnit)
					var says processes
					var runtime string
					fmt.Sscan(n.inspect(container, ".State.ConmonPid}} {{.State.Pid}} {{.OCIRuntime"), &says.conmon, &says.payload, &runtime)
					if says != p || path.Base(runtime) != c.runtime {
						m.t.Errorf("podman says %v, %s, not %v, %s", says, runtime, p, c.runtime)
					}
					n.stop()
					n.assertEnded("inactive", "success", "0")
					n.assertGone()
				}
				pause := n.runtimeDir() + "/libpod/tmp/pause.pid"
				m.subtest("first podman since boot", func(m machine) {
					if m.try("test", "-e", pause).status == 0 {
						m.t.Fatalf("a podman ran before: %s exists", pause)
					}
					up(m)
				})
				m.subtest("a later podman", func(m machine) {
					m.run("test", "-e", pause)
					up(m)
				})
			})
		}
	})
}

// assertIn checks that a process is in the unit's control group, or else below
// the user's manager.
func (n unit) assertIn(what, pid string, inUnit bool) {
	n.t.Helper()
	want := "/user.slice/user-" + n.uid + ".slice/user@" + n.uid + ".service/"
	if inUnit {
		want = "/system.slice/" + n.name + "/"
	}
	if got := n.cgroup(pid) + "/"; !strings.HasPrefix(got, want) {
		n.t.Errorf("%s is in %s, not in %s", what, got, want)
	}
}
