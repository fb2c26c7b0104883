//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"oci-mainpid-hook/test/sandbox"
)

// TestContainerGetsNothing: neither the mainpid file nor what tells of it
// reaches the container, with each way in which podman gets the file.
func TestContainerGetsNothing(t *testing.T) {
	onStacks(t, func(m machine) {
		check := func(n unit) {
			n.t.Helper()
			p := n.assertMainPIDIsConmon()
			for what, seen := range map[string]string{
				"from outside": n.shell(`ls -l /proc/$1/fd; tr '\0' '\n' </proc/$1/environ`, p.payload),
				"from inside":  n.podman("exec", n.container, "sh", "-c", `ls -l /proc/1/fd; tr '\0' '\n' </proc/1/environ`),
			} {
				if !strings.Contains(seen, "\nPATH=") || !strings.Contains(seen, " 2 -> ") {
					n.t.Errorf("%s: neither environment nor descriptors in\n%s", what, seen)
				}
				for _, forbidden := range []string{"mainpid", "LISTEN_", "OCI_MAINPID", " 3 -> "} {
					if strings.Contains(seen, forbidden) {
						n.t.Errorf("%s, the container has %q:\n%s", what, forbidden, seen)
					}
				}
			}
		}
		for i, mode := range []string{"mixed", "user"} {
			for j, runtime := range []string{"crun", "runc"} {
				m.everyOther(i+j, "Cgroup "+mode+" with "+runtime, func(m machine) {
					n := m.user().unit(service{mode: mode, runtime: runtime})
					n.start()
					check(n)
				})
			}
		}
		m.share("a file of the user's", func(m machine) {
			n := m.user().unit(service{mode: "mixed", template: true}).instance("a")
			n.start()
			check(n)
		})
	})
}

// TestOthersContainers: with the hook installed and a unit of ours running,
// podman is for everybody else what it was.
func TestOthersContainers(t *testing.T) {
	onStacks(t, func(m machine) {
		n := m.user().unit(service{mode: "mixed"})
		n.start()
		before := n.assertMainPIDIsConmon()
		files := n.files()
		byHand := []string{"podman", "run", "--detach", "--rm", "--name=byhand", imageName, "sh", "-c", `trap "exit 0" TERM; sleep 1000 & wait`}

		m.subtest("by hand by the same user", func(m machine) {
			m.must(n.in(m).login(byHand...))
			conmon := n.in(m).stored("byhand").conmon
			if got := m.cgroup(conmon); strings.Contains(got, n.name) {
				m.t.Errorf("its conmon is in %s", got)
			}
		})
		m.subtest("by hand by root", func(m machine) {
			m.run("podman", "import", "--quiet", sandbox.BusyboxTar, imageName)
			m.t.Cleanup(func() { m.try("podman", "rm", "--force", "--ignore", "--time=0", "byhand") })
			m.run(byHand...)
			if got := m.run("podman", "exec", "byhand", "cat", "/proc/1/comm"); got != "sh" {
				m.t.Errorf("executes %s", got)
			}
		})
		m.subtest("the hook is silent", func(m machine) {
			for _, runtime := range []string{"crun", "runc"} {
				run := []string{"podman", "--runtime=" + runtime, "run", "--rm", imageName, "true"}
				if r := n.in(m).login(run...); r.status != 0 || r.stdout != "" || r.stderr != "" {
					m.t.Errorf("by the user: %v", r)
				}
				if r := m.try(run...); r.status != 0 || r.stdout != "" || r.stderr != "" {
					m.t.Errorf("by root: %v", r)
				}
			}
		})

		if after := n.assertMainPIDIsConmon(); after != before {
			m.t.Errorf("the unit's processes were %v, are %v", before, after)
		}
		if got := n.files(); got != files {
			m.t.Errorf("the unit's files were\n%s\nare\n%s", files, got)
		}
		n.stop()
		n.assertEnded("inactive", "success", "0")
		if state := n.inspect("byhand", ".State.Status"); state != "running" {
			m.t.Errorf("once the unit is stopped, the container by hand is %s", state)
		}
	})
}

// files returns the unit's mainpid and result files with all that ls(1) and
// cat(1) say of them.
func (n unit) files() string {
	n.t.Helper()
	return n.shell(`ls -ln --time-style=full-iso "$1"; tail -n +1 "$1"/*`, n.dir())
}
