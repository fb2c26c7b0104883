//go:build e2e

package e2e

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/message"
)

// stubborn is a container that ignores SIGTERM, with a command line that no other
// process has.
const stubborn = "[Container]\nImage=" + imageName + "\nContainerName=NAME\nExec=sleep 31MARK\nNetwork=none\nPodmanArgs=--stop-timeout=1\n"

// changed is a unit that is changed while it runs.
type changed struct {
	unit
	file, text string
}

// stubbornUnit starts a unit whose container ignores SIGTERM, of a Quadlet file with
// that user and mode.
func (u user) stubbornUnit(runtime string, as user, mode string) changed {
	u.t.Helper()
	u.useRuntime(runtime)
	c := changed{unit: u.quadletUnit("NAME.service", "NAME"), file: path.Join(quadletDir, u.name, u.name+".container"), text: strings.ReplaceAll(stubborn, "MARK", u.uid)}
	text := c.text + stopsSoon(as.name)
	if as.name != "" { // root's may have no such section
		text += inMode(mode)
	}
	u.quadlets(map[string]string{"NAME.container": text})
	c.start()
	// runc runs the hook before the container's own process.
	c.await("one container runs", soon, func() bool { return c.running() == 1 })
	return c
}

// stopsSoon is a [Service] section of the user, root if empty, that gives a stop 3 s.
func stopsSoon(user string) string {
	text := "[Service]\nTimeoutStopSec=3\n"
	if user != "" {
		text += "User=" + user + "\n"
	}
	return text
}

// running returns how many containers of the unit run, whoever has them.
func (c changed) running() (n int) {
	c.t.Helper()
	fmt.Sscan(c.shell(`pgrep -cfx "sleep 31$1" || :`, c.uid), &n)
	return n
}

// change gives the unit another file, and restarts the unit, after what is to be seen
// before that.
func (c changed) change(text string, before ...func()) {
	c.t.Helper()
	c.write(c.file, strings.ReplaceAll(text, "NAME", c.name[:len(c.name)-len(".service")]))
	c.systemctl("daemon-reload")
	for _, look := range before {
		look()
	}
	c.systemctl("restart", c.name)
	c.await("one container runs", soon, func() bool { return c.running() == 1 })
}

// TestChangeWhileRunning: no change of a unit that runs leaves the old container.
func TestChangeWhileRunning(t *testing.T) {
	onStacks(t, func(m machine) {
		for _, runtime := range []string{"crun", "runc"} {
			modes := []string{"mixed", "user", "service"}
			if runtime == "runc" {
				modes = []string{"user"} // the one in which runc still runs when root records the start
			}
			for _, mode := range modes {
				m.subtest("another user, Cgroup "+mode+" with "+runtime, func(m machine) {
					u, other := m.user(), m.user()
					other.useRuntime(runtime)
					c := u.stubbornUnit(runtime, u, mode)
					c.change(c.text+stopsSoon(other.name)+inMode(mode), func() {
						if s := c.status(); !strings.Contains(s.Problem, "still runs as UID "+u.uid) {
							c.t.Errorf("before the restart: %+v", s)
						}
					})
					if mode != "service" { // there systemd ends what is in the unit
						c.assertSaid(message.LeftOverEnded, `ended what was left of container [0-9a-f]{12} \(`+u.name+`\) of user `+u.uid+`, .* killed \d+ processes`, map[string]string{"_UID": "0"})
					}
					after := unit{other, c.name, u.name}
					after.assertMainPIDIsConmon()
					c.stop()
					after.assertGone()
					if n := c.running(); n != 0 {
						c.t.Errorf("%d containers run after the stop", n)
					}
				})
			}
			if runtime == "runc" {
				continue
			}
			m.subtest("another name, with "+runtime, func(m machine) {
				u := m.user()
				c := u.stubbornUnit(runtime, u, "mixed")
				c.change(strings.Replace(c.text, "ContainerName=NAME", "ContainerName=other", 1) + stopsSoon(u.name) + inMode("mixed"))
				unit{u, c.name, "other"}.assertMainPIDIsConmon()
			})
			m.subtest("another Cgroup=, with "+runtime, func(m machine) {
				u := m.user()
				c := u.stubbornUnit(runtime, u, "mixed")
				for _, mode := range []string{"user", "service", "mixed"} {
					c.change(c.text + stopsSoon(u.name) + inMode(mode))
					c.assertMainPIDIsConmon()
				}
			})
			m.subtest("the file is removed, and comes back, with "+runtime, func(m machine) {
				u := m.user()
				c := u.stubbornUnit(runtime, u, "mixed")
				c.run("mv", c.file, c.file+".away")
				c.systemctl("daemon-reload")
				// systemd knows no command of the unit's any more, none of ours either.
				c.systemctl("kill", "--kill-whom=main", "--signal=KILL", c.name)
				c.awaitFailed(soon)
				c.run("mv", c.file+".away", c.file)
				c.systemctl("daemon-reload")
				// podman 5.4 fails once where conmon was killed, see docs/facts.md.
				if c.try("systemctl", "start", c.name).status != 0 {
					c.start()
				}
				c.assertSaid(message.LeftOverEnded, `ended what was left of container`, nil)
				c.await("one container runs", soon, func() bool { return c.running() == 1 })
			})
			m.subtest("from root to a user, with "+runtime, func(m machine) {
				m.podmanAsRoot()
				u := m.user()
				c := u.stubbornUnit(runtime, user{}, "mixed")
				c.change(c.text + stopsSoon(u.name))
				c.assertMainPIDIsConmon()
			})
		}
	})
}
