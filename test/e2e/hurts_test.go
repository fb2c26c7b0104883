//go:build e2e

package e2e

import (
	"fmt"
	"path"
	"strings"
	"testing"
)

// TestOutput: what a container writes is in the journal of its unit, though the user
// may not read the journal, unless the author of the unit chose another place.
func TestOutput(t *testing.T) {
	const writing = "[Container]\nImage=" + imageName + "\nExec=sh -c 'echo hello; trap \"exit 0\" TERM; sleep 1000 & wait'\n"
	onStacks(t, func(m machine) {
		u := m.user()
		u.quadlets(map[string]string{
			"NAME-mixed.container":   writing + owned,
			"NAME-service.container": writing + owned + inMode("service"),
			"NAME-user.container":    writing + owned + inMode("user"),
			"NAME-file.container":    writing + "LogDriver=k8s-file\n" + owned,
		})
		for _, c := range []struct {
			name           string
			inUnit, inFile bool
		}{{"mixed", true, false}, {"service", true, false}, {"user", false, false}, {"file", false, true}} {
			m.share(c.name, func(m machine) {
				n := u.in(m).quadletUnit("NAME-"+c.name+".service", "systemd-NAME-"+c.name)
				n.start()
				hello := func(text string) bool { return strings.Contains(text, "hello") }
				if c.inFile {
					m.await("podman logs has the output", soon, func() bool { return hello(n.podman("logs", n.container)) })
				} else {
					m.await("the journal has the output", soon, func() bool {
						return hello(m.run("journalctl", "--no-pager", "--output=cat", "CONTAINER_NAME="+n.container, "_COMM=conmon"))
					})
				}
				if got := hello(n.journal(n.name)); got != c.inUnit {
					m.t.Errorf("journalctl -u %s has the output: %t, want %t", n.name, got, c.inUnit)
				}
			})
		}
	})
}

// TestEndsAtOnce: a container that ends before its main process is verified ends its
// unit as it ended itself.
func TestEndsAtOnce(t *testing.T) {
	rounds := 2
	if thorough() {
		rounds = 20
	}
	onStacks(t, func(m machine) {
		for i, mode := range []string{"mixed", "service", "user"} {
			for j, runtime := range []string{"crun", "runc"} {
				m.everyOther(i+j, mode+" with "+runtime, func(m machine) {
					u := m.user()
					files := map[string]string{}
					for _, status := range []int{0, 3} {
						files[fmt.Sprintf("NAME-%d.container", status)] = fmt.Sprintf("[Container]\nImage=%s\nExec=sh -c 'exit %d'\nGlobalArgs=--runtime=%s\n", imageName, status, runtime) + owned + inMode(mode)
					}
					u.quadlets(files)
					for range rounds {
						success, failure := u.quadletUnit("NAME-0.service", "systemd-NAME-0"), u.quadletUnit("NAME-3.service", "systemd-NAME-3")
						success.start()
						success.awaitState("inactive")
						success.assertEnded("inactive", "success", "0")
						u.try("systemctl", "start", failure.name)
						failure.awaitState("failed")
						failure.assertEnded("failed", "exit-code", "3")
						u.systemctl("reset-failed", failure.name)
					}
				})
			}
		}
	})
}

// TestUsersPaths: what podman reads of a user's is the user's, and what a stopped unit
// leaves in the user's runtime directory is nothing.
func TestUsersPaths(t *testing.T) {
	onStacks(t, func(m machine) {
		u := m.user()
		u.writeHome("data/file", "of the user's\n")
		u.quadlets(map[string]string{
			"NAME.container":     "[Container]\nImage=" + imageName + "\nPod=NAME.pod\nExec=" + sleeping + "\n" + owned,
			"NAME.pod":           "[Pod]\n" + owned,
			"NAME-two.container": "[Container]\nImage=" + imageName + "\nVolume=%h/data:/data\nNetwork=NAME-front\nEnvironment=UID=%U\nExec=" + sleeping + "\n" + owned,
		})
		m.share("home and network", func(m machine) {
			n := u.in(m).quadletUnit("NAME-two.service", "systemd-NAME-two")
			out := m.try("oci-mainpid", "generate", "--dry-run", path.Join(quadletDir, u.name, u.name+"-two.container"))
			_, line, ok := strings.Cut(out.stderr, "type once: ")
			line, _, _ = strings.Cut(line, "; or write")
			if !ok || !strings.HasSuffix(line, " network create --ignore "+u.name+"-front") {
				m.t.Fatalf("no warning of the network: %v", out)
			}
			m.systemctl("start", "user@"+u.uid)
			m.shell(line)
			n.start()
			n.assertMainPIDIsConmon()
			if got := n.podman("exec", n.container, "sh", "-c", "cat /data/file; echo $UID"); got != "of the user's\n"+u.uid {
				m.t.Errorf("the container has %q", got)
			}
			n.stop()
		})
		m.share("a pod's pid file", func(m machine) {
			n := u.in(m).quadletUnit("NAME-pod.service", "systemd-NAME-infra")
			n.start()
			n.assertMainPIDIsConmon()
			n.stop()
			if m.try("test", "-e", u.runtimeDir()+"/"+u.name+"-pod.pid").status == 0 {
				m.t.Error("the pid file is left")
			}
		})
	})
}

// TestByHand: units that no Quadlet made are served as they are written.
func TestByHand(t *testing.T) {
	const kube = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: NAME\nspec:\n  containers:\n  - name: a\n    image: " + imageName + "\n    command: [sh, -c, 'trap \"exit 0\" TERM; sleep 1000 & wait']\n"
	onStacks(t, func(m machine) {
		generate := func(m machine, u user, text string) unit {
			n := unit{u.in(m), u.name + ".service", ""}
			m.write(path.Join(unitDir, n.name), strings.ReplaceAll(text, "NAME", u.name))
			n.cleanUp()
			m.run("oci-mainpid", "generate", "--user="+u.name, u.name) // by the unit's name
			m.systemctl("daemon-reload")
			return n
		}
		m.share("podman play kube without a service container", func(m machine) {
			u := m.user().in(m)
			m.write("/etc/"+u.name+".yaml", strings.ReplaceAll(kube, "NAME", u.name))
			n := generate(m, u, "[Service]\nType=notify\nNotifyAccess=all\nTimeoutStartSec=5min\nExecStart=podman play kube --replace /etc/NAME.yaml\nExecStop=podman play kube --down /etc/NAME.yaml\n")
			n.start()
			n.container = n.serviceContainer()
			n.assertMainPIDIsConmon()
			n.stop()
			n.assertGone()
		})
		m.share("a job", func(m machine) {
			u := m.user().in(m)
			n := generate(m, u, "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=podman run --rm --cgroups=split "+imageName+" echo done by the job\nExecStartPost=sh -c 'echo as $(id -un) with $XDG_RUNTIME_DIR'\n")
			n.start()
			n.assertState("active")
			for _, want := range []string{"done by the job", "as " + u.name + " with " + u.runtimeDir()} {
				if got := n.journal(n.name); strings.Count(got, want) != 1 {
					m.t.Errorf("the journal has not once %q: %s", want, got)
				}
			}
			n.stop()
			n.assertGone()
		})
		m.share("podman generate systemd's pid file", func(m machine) {
			u := m.user().in(m)
			n := generate(m, u, "[Service]\nType=forking\nPIDFile=%t/NAME.pid\nExecStartPre=/bin/rm -f %t/NAME.pid %t/NAME.ctr-id\nExecStart=podman run --conmon-pidfile %t/NAME.pid --cidfile %t/NAME.ctr-id -d --name NAME "+imageName+" "+sleeping+"\nExecStop=podman stop --ignore --cidfile %t/NAME.ctr-id\nExecStopPost=podman rm -f --ignore --cidfile %t/NAME.ctr-id\n")
			n.container = u.name
			n.start()
			n.assertMainPIDIsConmon()
			n.stop()
			n.assertGone()
			if m.try("test", "-e", u.runtimeDir()+"/"+u.name+".pid").status == 0 {
				m.t.Error("the pid file is left")
			}
		})
	})
}

// TestForgedEnd: a user who makes notify-mainpid believe that the container has ended,
// by MAINPID in a file of EnvironmentFile= and a PID that no process has, does not have
// the unit counted as started while the container runs.
func TestForgedEnd(t *testing.T) {
	onOneStack(t, onLast, func(m machine) {
		u := m.user()
		u.useHooks() // none, so that nobody else writes
		u.writeHome("forged", "MAINPID=4194000\n")
		n := u.unit(service{mode: "mixed", more: "TimeoutStopSec=5\nEnvironmentFile=" + u.home() + "/forged"})
		n.startPre("+", "echo 4194001 >"+n.mainPIDFile())
		if r := m.try("systemctl", "start", n.name); r.status == 0 {
			m.t.Errorf("counted as started: %v", r)
		}
		n.assertProperties(map[string]string{"ActiveState": "failed", "Result": "timeout"})
		// podman keeps the name of a container whose conmon was killed, and says so.
		if running := n.podman("ps", "--format={{.Names}}"); running != "" {
			m.t.Errorf("still running: %s", running)
		}
	})
}

// TestOneRound: a user who lacks subordinate IDs gets them by one line, which the journal
// and check say, and needs one daemon-reload.
func TestOneRound(t *testing.T) {
	onStacks(t, func(m machine) {
		for name, line := range map[string]func(n unit) string{
			"the line in the journal": func(n unit) string {
				_, line, _ := strings.Cut(n.journal(n.name), "; type: ")
				line, _, _ = strings.Cut(line, "\n")
				return line
			},
			"the line of check": func(n unit) string { return n.point("unit").Fix },
		} {
			m.subtest(name, func(m machine) {
				u := m.user()
				m.run("sed", "-i", "/^"+u.name+":/d", "/etc/subuid", "/etc/subgid")
				u.quadlets(map[string]string{"NAME.container": sleeper + owned})
				n := u.quadletUnit("NAME.service", "NAME")
				if r := m.try("systemctl", "start", n.name); r.status == 0 {
					m.t.Fatal("started without subordinate IDs")
				}
				typed := line(n)
				if strings.Count(typed, "daemon-reload") != 1 || !strings.Contains(typed, "--add-subuids") || !strings.Contains(typed, "--add-subgids") {
					m.t.Fatalf("to type: %q", typed)
				}
				m.shell(typed)
				n.start()
				n.assertMainPIDIsConmon()
				n.stop()
			})
		}
	})
}

// TestGenerateRemove: what generate wrote for a unit goes with it, and the user's manager
// with the last unit of the user.
func TestGenerateRemove(t *testing.T) {
	onOneStack(t, onLast, func(m machine) {
		u := m.user()
		manager := "user@" + u.uid + ".service"
		one, two := u.unit(service{mode: "mixed", container: "one"}), u.unit(service{mode: "user", container: "two"})
		for _, n := range []unit{one, two} {
			n.start()
			n.assertMainPIDIsConmon()
		}
		remove := func(n unit) {
			r := m.try("oci-mainpid", "generate", "--remove", strings.TrimSuffix(n.name, ".service"))
			if r.status != 0 || !strings.Contains(r.stderr, n.name+" has no User=, so from now on the unit runs as root; to keep it from being started, type: systemctl disable "+n.name) {
				m.t.Errorf("%v", r)
			}
			n.assertState("inactive")
			if files := n.property("DropInPaths"); files != "" {
				m.t.Errorf("%s still has %s", n.name, files)
			}
		}
		remove(one)
		two.assertMainPIDIsConmon()
		if got := m.property(manager, "RefuseManualStop"); got != "yes" {
			m.t.Errorf("with one unit left, RefuseManualStop=%s", got)
		}
		remove(two)
		two.assertGone()
		if got := m.property(manager, "ActiveState"); got != "inactive" {
			m.t.Errorf("with no unit left, the user's manager is %s", got)
		}
		m.await(u.runtimeDir()+" is removed", soon, func() bool { return m.try("test", "-e", u.runtimeDir()).status != 0 })
		if left := m.shell(`ls -d /etc/systemd/system/*@"$1".service.d 2>/dev/null || :`, u.uid); left != "" {
			m.t.Errorf("left: %s", left)
		}
	})
}
