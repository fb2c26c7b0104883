//go:build e2e

package e2e

import "testing"

// TestTemplate: instances of a template have their mainpid files by name,
// because OpenFile= takes no specifiers.
func TestTemplate(t *testing.T) {
	onStacks(t, func(m machine) {
		for i, mode := range []string{"mixed", "user"} {
			m.everyOther(i, "two instances with Cgroup "+mode, func(m machine) {
				template := m.user().unit(service{mode: mode, template: true, container: "web-%i"})
				a, b := template.instance("a"), template.instance("b")
				m.systemctl("start", a.name, b.name)
				a.assertMainPIDIsConmon()
				p := b.assertMainPIDIsConmon()
				if got, want := m.run("stat", "--format=%U %a %h", a.mainPIDFile()), a.user.name+" 600 1"; got != want {
					m.t.Errorf("the mainpid file is %s, not %s", got, want)
				}
				a.stop()
				if still := b.assertMainPIDIsConmon(); still != p {
					m.t.Errorf("stopping %s changed %s from %v to %v", a.name, b.name, p, still)
				}
				b.stop()
				a.assertGone()
				b.assertGone()
			})
		}
	})
}

// TestListenFDNames: a unit of somebody who wrote it by hand may leave the
// descriptor to sd_listen_fds(3) alone.
func TestListenFDNames(t *testing.T) {
	onStacks(t, func(m machine) {
		for i, mode := range []string{"mixed", "user"} {
			for j, runtime := range []string{"crun", "runc"} {
				m.everyOther(i+j, "Cgroup "+mode+" with "+runtime, func(m machine) {
					n := m.user().unit(service{mode: mode, runtime: runtime})
					n.editDropin(`(?m)^UnsetEnvironment=.*\n`, "")
					n.editDropin(`(?m)^Environment=OCI_MAINPID_FILE=.*\n`, "")
					m.systemctl("daemon-reload")
					n.start()
					n.assertMainPIDIsConmon()
					n.stop()
					n.assertGone()
				})
			}
		}
	})
}
