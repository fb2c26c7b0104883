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

// owner returns the UID of the only container of the unit that runs.
func (c changed) owner() string {
	c.t.Helper()
	return c.shell(`ps --no-headers -o uid= -p "$(pgrep -fx "sleep 31$1")" | tr -d ' '`, c.uid)
}

// assertNone checks that no container of the unit runs, and that none is said to run.
func (c changed) assertNone() {
	c.t.Helper()
	if n := c.running(); n != 0 {
		c.t.Errorf("%d containers run", n)
	}
	if left := c.shell(`pgrep -xu "$1" conmon || :`, c.uid); left != "" {
		c.t.Errorf("conmon runs: %s", left)
	}
	if out := c.try("oci-mainpid", "status", c.name); strings.Contains(out.stdout, "still runs") {
		c.t.Error(out)
	}
}

// assertSays checks that status and check say that what runs is not what the files say,
// and that check says what to type.
func (c changed) assertSays(problem, typed string) {
	c.t.Helper()
	if s := c.status(); !strings.Contains(s.Problem, problem) {
		c.t.Errorf("status: %+v, want %q", s, problem)
	}
	if p := c.point("main process"); p.Level != "fail" || !strings.Contains(p.Found, problem) || p.Fix != typed {
		c.t.Errorf("check: %+v, want %q and %q", p, problem, typed)
	}
}

// rewrite gives the unit another file, and has systemd read it.
func (c changed) rewrite(text string) {
	c.t.Helper()
	c.write(c.file, strings.ReplaceAll(text, "NAME", c.user.name))
	c.systemctl("daemon-reload")
}

// change gives the unit another file, and restarts the unit, after what is to be seen
// before that.
func (c changed) change(text string, before ...func()) {
	c.t.Helper()
	c.rewrite(text)
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
				m.share("another user, Cgroup "+mode+" with "+runtime, func(m machine) {
					u, other := m.user(), m.user()
					other.useRuntime(runtime)
					c := u.stubbornUnit(runtime, u, mode)
					c.change(c.text+stopsSoon(other.name)+inMode(mode), func() {
						c.assertSays("still runs as UID "+u.uid+": the unit's user has become "+other.name, "systemctl restart "+c.name)
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
			m.subtestIn(onFirst, "another name, with "+runtime, func(m machine) {
				u := m.user()
				c := u.stubbornUnit(runtime, u, "mixed")
				c.change(strings.Replace(c.text, "ContainerName=NAME", "ContainerName=other", 1) + stopsSoon(u.name) + inMode("mixed"))
				unit{u, c.name, "other"}.assertMainPIDIsConmon()
			})
			m.subtestIn(onLast, "another Cgroup=, with "+runtime, func(m machine) {
				u := m.user()
				c := u.stubbornUnit(runtime, u, "mixed")
				for _, mode := range []string{"user", "service", "mixed"} {
					c.change(c.text + stopsSoon(u.name) + inMode(mode))
					c.assertMainPIDIsConmon()
				}
			})
			m.subtestIn(onFirst, "a mistake in the file, with "+runtime, func(m machine) {
				u := m.user()
				c := u.stubbornUnit(runtime, u, "mixed")
				c.rewrite(c.text + stopsSoon(u.name) + inMode("none"))
				c.assertSays("Cgroup=none is none of mixed, service, user", "systemctl stop "+c.name)
				c.stop()
				c.assertNone()
			})
			m.share("from root to a user, with "+runtime, func(m machine) {
				m.podmanAsRoot()
				u := m.user()
				c := u.stubbornUnit(runtime, user{}, "mixed")
				c.change(c.text + stopsSoon(u.name))
				c.assertMainPIDIsConmon()
			})
			m.share("from a user to root, with "+runtime, func(m machine) {
				m.podmanAsRoot()
				u := m.user()
				c := u.stubbornUnit(runtime, u, "mixed")
				c.change(c.text+stopsSoon(""), func() {
					c.assertSays("still runs as UID "+u.uid+": the unit has no user any more", "systemctl restart "+c.name)
				})
				if owner := c.owner(); owner != "0" {
					m.t.Errorf("the container is of UID %s", owner)
				}
				c.systemctl("daemon-reload")
				if files := c.property("DropInPaths"); files != "" {
					m.t.Errorf("root's unit has %s", files)
				}
				c.stop()
				c.assertNone()
			})
		}
	})
}

// TestRemovedWhileRunning: a unit whose file or drop-in is removed while it runs leaves no
// container when it ends.
func TestRemovedWhileRunning(t *testing.T) {
	onStacks(t, func(m machine) {
		remove := func(c changed) {
			c.run("mv", c.file, c.file+".away")
			c.systemctl("daemon-reload")
			c.assertSays("still runs as UID "+c.uid+": its file is gone", "systemctl stop "+c.name)
		}
		m.share("the Quadlet file, and systemctl stop", func(m machine) {
			u := m.user()
			c := u.stubbornUnit("crun", u, "mixed")
			remove(c)
			if all := m.run("oci-mainpid", "status"); !strings.Contains(all, "its file is gone") {
				m.t.Errorf("status of all units: %s", all)
			}
			c.stop()
			c.assertNone()
			if r := m.try("systemctl", "start", c.name); r.status == 0 {
				m.t.Error("a unit without a file starts")
			}
			c.systemctl("daemon-reload")
			if got := c.property("LoadState"); got != "not-found" {
				m.t.Errorf("LoadState=%s after the next daemon-reload", got)
			}
			c.run("mv", c.file+".away", c.file)
			c.systemctl("daemon-reload")
			// podman 5.4 fails once where conmon was killed, see docs/facts.md.
			if c.try("systemctl", "start", c.name).status != 0 {
				c.start()
			}
			c.assertMainPIDIsConmon()
		})
		m.share("the Quadlet file, and conmon killed", func(m machine) {
			u := m.user()
			c := u.stubbornUnit("crun", u, "mixed")
			remove(c)
			c.systemctl("kill", "--kill-whom=main", "--signal=KILL", c.name)
			c.awaitFailed(soon)
			c.assertSaid(message.LeftOverEnded, `ended what was left of container`, nil)
			c.assertNone()
		})
		m.share("the drop-in of a hand-written unit", func(m machine) {
			n := m.user().unit(service{mode: "mixed", command: "sleep 31", more: "TimeoutStopSec=3"})
			n.start()
			n.assertMainPIDIsConmon()
			n.run("rm", "-r", path.Join(unitDir, n.name+".d"))
			n.systemctl("daemon-reload")
			if s := n.status(); !strings.Contains(s.Problem, "the unit has no user any more") {
				m.t.Errorf("%+v", s)
			}
			n.stop()
			if left := n.shell(`pgrep -u "$1" -fx 'sleep 31' || :`, n.uid); left != "" {
				m.t.Errorf("%s runs", left)
			}
		})
	})
}

// TestElsewhere: status and check tell of root's container of a unit, and how to end it,
// and of what another user claims, without advice.
func TestElsewhere(t *testing.T) {
	onStacks(t, func(m machine) {
		m.podmanAsRoot()
		// rootsUnit starts a hand-written unit of root's, whose container is outside of it.
		rootsUnit := func(m machine) changed {
			u := m.user()
			c := changed{unit: unit{u, u.name + ".service", u.name}}
			m.write(path.Join(unitDir, c.name), fmt.Sprintf("[Service]\nType=notify\nNotifyAccess=all\nTimeoutStopSec=3\n"+
				"ExecStart=podman run -d --rm --replace --name %[1]s --network=none --sdnotify=conmon %[2]s sleep 31%[3]s\nExecStop=podman stop --time=1 %[1]s\nExecStopPost=-podman rm -f -i --time=0 %[1]s\n", u.name, imageName, u.uid))
			c.cleanUp()
			m.systemctl("daemon-reload")
			c.start()
			return c
		}
		oneOfTheUsers := func(c changed) {
			c.t.Helper()
			c.assertMainPIDIsConmon()
			if owner := c.owner(); c.running() != 1 || owner != c.uid {
				c.t.Errorf("%d containers run, of UID %s", c.running(), owner)
			}
			if s := c.status(); s.Problem != "" {
				c.t.Errorf("%+v", s)
			}
		}
		m.share("from root to a user, by the line that generate prints", func(m machine) {
			c := rootsUnit(m)
			out := m.run("oci-mainpid", "generate", "--user="+c.user.name, path.Join(unitDir, c.name))
			_, line, _ := strings.Cut(out, "\nrun: ")
			m.shell(line)
			oneOfTheUsers(c)
		})
		for name, c := range map[string]struct {
			spoil, fix string
			where      place
		}{
			"":                                  {"true", "systemctl restart ", onLast},
			", where generate recorded nothing": {`rm "/run/oci-mainpid/$1/record"`, "podman rm -f ", onFirst},
		} {
			m.subtestIn(c.where, "from root to a user, by the line that check prints"+name, func(m machine) {
				r := rootsUnit(m)
				m.run("oci-mainpid", "generate", "--user="+r.user.name, path.Join(unitDir, r.name))
				m.shell(c.spoil, r.name)
				m.systemctl("daemon-reload")
				if s := r.status(); !strings.Contains(s.Problem, "still runs as root") {
					m.t.Errorf("%+v", s)
				}
				p := r.point("main process")
				if !strings.HasPrefix(p.Fix, c.fix) {
					m.t.Fatalf("%+v", p)
				}
				m.shell(p.Fix)
				oneOfTheUsers(r)
			})
		}
		m.share("from root to a user, by a restart without the stop that generate prints", func(m machine) {
			c := rootsUnit(m)
			m.run("oci-mainpid", "generate", "--user="+c.user.name, path.Join(unitDir, c.name))
			// A second call prints the stop again.
			if out := m.run("oci-mainpid", "generate", "--user="+c.user.name, path.Join(unitDir, c.name)); !strings.Contains(out, "\nrun: systemctl stop "+c.name) {
				m.t.Errorf("%s", out)
			}
			m.systemctl("daemon-reload")
			m.systemctl("restart", c.name)
			c.await("one container runs", soon, func() bool { return c.running() == 1 })
			oneOfTheUsers(c)
		})
		m.subtestIn(onLast, "another user claims to be of the unit", func(m machine) {
			n, other := m.user().unit(service{mode: "mixed"}), m.user()
			n.start()
			other.systemctl("start", "user@"+other.uid)
			other.run(other.as("env", "PODMAN_SYSTEMD_UNIT="+n.name, "podman", "run", "-d", "--rm", "--name=evil", "--network=none", imageName, "sleep", "1000")...)
			m.t.Cleanup(func() { other.try(other.as("podman", "rm", "-f", "--time=0", "evil")...) })
			out := m.run("oci-mainpid", "status", n.name)
			if !strings.Contains(strings.Join(strings.Fields(out), " "), "a process of UID "+other.uid+" says that it is conmon of this unit's container") || strings.Contains(out, "evil") {
				m.t.Errorf("%s", out)
			}
			if s := n.status(); s.Problem != "" || s.Agrees == nil || !*s.Agrees {
				m.t.Errorf("%+v", s)
			}
			for _, p := range n.points() {
				if p.Level == "fail" {
					m.t.Errorf("%+v", p)
				}
			}
		})
	})
}

// TestPodChangedWhileRunning: no change of the pod of a unit that runs leaves a
// container.
func TestPodChangedWhileRunning(t *testing.T) {
	onStacks(t, func(m machine) {
		// inPods starts the stubborn unit in the pod, none if empty, of two pods of the user.
		inPods := func(m machine, pod string) changed {
			u := m.user()
			c := changed{
				unit: u.quadletUnit("NAME.service", "NAME"), file: path.Join(quadletDir, u.name, u.name+".container"),
				text: strings.NewReplacer("MARK", u.uid, "Network=none\n", "").Replace(stubborn),
			}
			u.quadlets(map[string]string{
				"NAME.container": c.text + pod + stopsSoon("USER"),
				"NAME-a.pod":     "[Pod]\n" + stopsSoon("USER"),
				"NAME-b.pod":     "[Pod]\n" + stopsSoon("USER"),
			})
			c.start()
			c.await("one container runs", soon, func() bool { return c.running() == 1 })
			return c
		}
		inPod := func(c changed, pod string) {
			c.t.Helper()
			c.assertMainPIDIsConmon()
			if got := c.podman("ps", "--filter=name=^"+c.container+"$", "--format={{.PodName}}"); got != pod {
				c.t.Errorf("the container is in the pod %q, not %q", got, pod)
			}
		}
		ended := func(c changed, units ...string) {
			c.t.Helper()
			c.systemctl(append([]string{"stop"}, units...)...)
			c.assertNone()
		}
		m.subtestIn(onFirst, "Pod= added", func(m machine) {
			c := inPods(m, "")
			c.change(c.text + "Pod=NAME-a.pod\n" + stopsSoon(c.user.name))
			inPod(c, "systemd-"+c.user.name+"-a")
			ended(c, c.name, c.user.name+"-a-pod")
		})
		m.subtestIn(onLast, "Pod= removed", func(m machine) {
			c := inPods(m, "Pod=NAME-a.pod\n")
			inPod(c, "systemd-"+c.user.name+"-a")
			c.change(c.text + stopsSoon(c.user.name))
			inPod(c, "")
			ended(c, c.name, c.user.name+"-a-pod")
		})
		m.subtestIn(onLast, "another Pod=", func(m machine) {
			c := inPods(m, "Pod=NAME-a.pod\n")
			c.change(c.text + "Pod=NAME-b.pod\n" + stopsSoon(c.user.name))
			inPod(c, "systemd-"+c.user.name+"-b")
			ended(c, c.name, c.user.name+"-a-pod", c.user.name+"-b-pod")
		})
		m.share("the User= of the pod and its container", func(m machine) {
			c, other := inPods(m, "Pod=NAME-a.pod\n"), m.user()
			pod := c.user.name + "-a-pod.service"
			c.write(path.Join(path.Dir(c.file), c.user.name+"-a.pod"), "[Pod]\n"+stopsSoon(other.name))
			c.rewrite(c.text + "Pod=NAME-a.pod\n" + stopsSoon(other.name))
			c.systemctl("restart", pod)
			c.await("one container runs", soon, func() bool { return c.running() == 1 })
			if owner := c.owner(); owner != other.uid {
				m.t.Errorf("the container is of UID %s, not %s", owner, other.uid)
			}
			ended(c, c.name, pod)
		})
		m.rare("the User= of the pod alone", func(m machine) {
			c, other := inPods(m, "Pod=NAME-a.pod\n"), m.user()
			pod := c.user.name + "-a-pod.service"
			c.write(path.Join(path.Dir(c.file), c.user.name+"-a.pod"), "[Pod]\n"+stopsSoon(other.name))
			c.systemctl("daemon-reload")
			if s := c.status(); !strings.Contains(s.Problem, "still runs as UID "+c.uid) {
				m.t.Errorf("%+v", s)
			}
			c.try("systemctl", "restart", pod)
			ended(c, c.name, pod)
		})
	})
}
