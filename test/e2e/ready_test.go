//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// systemdImage is an image whose first process is the machine's own systemd.
const systemdImage = "localhost/systemd"

// TestReady: Ready= in a Quadlet file, with a systemd in the container.
func TestReady(t *testing.T) {
	onStacks(t, func(m machine) {
		u := m.user()
		m.systemctl("start", "user@"+u.uid)
		m.must(m.try(append([]string{"sh", "-ec", `
			tar -C / --one-file-system -c --exclude=./home --exclude=./root --exclude=./var/lib/storage-of-users --exclude=./var/cache --exclude=./var/lib/apt \
				--exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale --exclude=./usr/lib/modules --exclude=./usr/bin/podman . |
			"$@"`, "sh"}, u.as("podman", "import", "--quiet", "--change=STOPSIGNAL=SIGRTMIN+3", "-", systemdImage)...)...))
		const file = "[Container]\nImage=" + systemdImage + "\nExec=/sbin/init\nContainerName=NAME\n[Service]\nUser=USER\nRestart=no\nTimeoutStartSec=60\n[X-MainPID]\n"
		n := u.quadletUnit("NAME.service", "NAME")

		for _, mode := range []string{"mixed", "user", "service"} {
			m.share(mode, func(m machine) {
				n, u := n.in(m), u
				u.machine = m
				if mode == "service" {
					u.useRuntime("runc") // podman exec with crun fails there
				}
				u.quadlets(map[string]string{"NAME.container": file + "Cgroup=" + mode + "\nReady=multi-user.target basic.target\n"})
				n.systemctl("start", "--no-block", n.name)
				m.await("it waits for the targets", soon, func() bool {
					return strings.HasPrefix(n.property("StatusText"), "Waiting for ")
				})
				if p := n.properties(); p["ActiveState"] != "activating" || !strings.Contains(p["StatusText"], "multi-user.target") {
					m.t.Errorf("%s, %s", p["ActiveState"], p["StatusText"])
				}
				n.awaitActive()
				n.assertMainPIDIsConmon()
				if got := m.try(u.as("podman", "exec", n.container, "systemctl", "is-active", "multi-user.target")...); got.status != 0 {
					m.t.Errorf("the target is not active: %v", got)
				}
				if got := n.property("StatusText"); !strings.HasPrefix(got, "Active: basic.target, multi-user.target") {
					m.t.Errorf("the status is %q", got)
				}
				var services []struct {
					Inside struct {
						Ready        bool
						Hostname     string
						MachineID    string `json:"machine_id"`
						SignalsLevel int    `json:"signals_level"`
						Active       []string
					}
				}
				if err := json.Unmarshal([]byte(m.run("oci-mainpid", "status", "--format=json", n.name)), &services); err != nil || len(services) != 1 {
					m.t.Fatal(err)
				}
				i := services[0].Inside
				if !i.Ready || len(i.MachineID) != 32 || i.Hostname != u.podman("exec", n.container, "hostname") || i.SignalsLevel != 2 || len(i.Active) < 5 {
					m.t.Errorf("inside is %+v", i)
				}
				if got := m.run("oci-mainpid", "status", n.name); !strings.Contains(got, "inside: host "+i.Hostname) {
					m.t.Errorf("status says %s", got)
				}
				if mode == "mixed" {
					// A target that is left again.
					u.podman("exec", n.container, "systemctl", "stop", "--no-block", "multi-user.target")
					m.await("the status says so", soon, func() bool {
						return strings.HasPrefix(n.property("StatusText"), "No longer active: multi-user.target")
					})
					n.assertMainPIDIsConmon()
				}
				n.stop()
				n.assertProperties(map[string]string{"ActiveState": "inactive", "Result": "success"})
				n.assertGone()
				u.assertNothingLeft()
			})
		}
		m.share("reboot, power off and exit inside", func(m machine) {
			n, u := n.in(m), u
			u.machine = m
			u.quadlets(map[string]string{"NAME.container": file + "Ready=basic.target\n"})
			n.start()
			before := n.assertMainPIDIsConmon()
			m.try(u.as("podman", "exec", n.container, "systemctl", "reboot")...)
			m.await("restarted", time.Minute, func() bool {
				p := n.properties()
				return p["NRestarts"] == "1" && p["ActiveState"] == "active"
			})
			if after := n.assertMainPIDIsConmon(); after == before {
				m.t.Error("the container is the same")
			}
			m.try(u.as("podman", "exec", n.container, "systemctl", "poweroff")...)
			n.awaitState("inactive")
			n.assertProperties(map[string]string{"Result": "success"})
			n.assertGone()
			n.start()
			m.try(u.as("podman", "exec", n.container, "systemctl", "exit", "9")...)
			n.awaitState("failed")
			n.assertEnded("failed", "exit-code", "9")
			n.assertGone()
		})
		m.share("sockets", func(m machine) {
			n, u := n.in(m), u
			u.machine = m
			// systemd gives the socket to its own unit that has the same address.
			const socket = "[Socket]\nListenStream=127.0.0.1:8765\n"
			name := u.name + ".socket"
			m.write(unitDir+"/"+name, socket+"FileDescriptorName=answer\n")
			u.t.Cleanup(func() { m.try("systemctl", "stop", name); m.run("rm", unitDir+"/"+name) })
			u.writeHome("answer.socket", socket+"Accept=yes\n")
			u.writeHome("wants.conf", "[Unit]\nWants=answer.socket\n")
			u.writeHome("answer@.service", "[Service]\nExecStart=/bin/hostname\nStandardOutput=socket\n")
			volumes := "Volume=%h/answer.socket:/etc/systemd/system/answer.socket\n" +
				"Volume=%h/wants.conf:/etc/systemd/system/sockets.target.d/wants.conf\n" +
				"Volume=%h/answer@.service:/etc/systemd/system/answer@.service\n"
			u.quadlets(map[string]string{"NAME.container": strings.Replace(file, "[Service]", "Network=none\n"+volumes+"[Service]", 1) + "Ready=multi-user.target\n"})
			m.systemctl("start", name, n.name)
			n.assertMainPIDIsConmon()
			if got, want := m.run("bash", "-c", "cat </dev/tcp/127.0.0.1/8765"), u.podman("exec", n.container, "hostname"); got != want {
				m.t.Errorf("who answers is %q, not %q", got, want)
			}
			n.stop()
			n.assertGone()
		})
		m.share("a target that never comes", func(m machine) {
			n, u := n.in(m), u
			u.machine = m
			u.quadlets(map[string]string{"NAME.container": strings.Replace(file, "TimeoutStartSec=60", "TimeoutStartSec=8", 1) + "Ready=never.target\n"})
			n.startFails()
			if got := n.journal(n.name); !strings.Contains(got, "stopped while waiting for never.target") {
				m.t.Errorf("the log does not name the target:\n%s", got)
			}
			u.assertNothingLeft()
		})
		m.share("stopped in its first moments", func(m machine) {
			u := u
			u.machine = m
			for _, after := range []time.Duration{0, 30 * time.Millisecond} {
				r := u.supervised("oci-mainpid", "run", "--ready=multi-user.target", "--", "podman", "run", "-d", "--rm", "--name=vm", systemdImage, "/sbin/init")
				m.await("the container runs", soon, func() bool {
					return m.try("sh", "-c", `[ -s "$1" ]`, "sh", u.runtimeDir()+"/oci-mainpid/run/vm/mainpid").status == 0
				})
				time.Sleep(after)
				r.kill("TERM")
				// 137 if podman had to kill it.
				if got, said := r.end(); got != "0" {
					m.t.Errorf("stopped %v after its start: status %s; %s", after, got, said)
				}
				u.assertNothingLeft()
			}
		})
		m.share("refused", func(m machine) {
			u := u
			u.machine = m
			for lines, reason := range map[string]string{
				"Ready=multi-user\n": "is no target",
				"Ready=multi-user.target\n#\n[Service]\nType=oneshot\n": "Type=oneshot",
			} {
				u.quadlets(map[string]string{"NAME.container": file + lines})
				if r := m.try("systemctl", "start", n.name); r.status == 0 {
					m.t.Errorf("%q: started", lines)
				}
				if got := n.journal(n.name); !strings.Contains(got, reason) {
					m.t.Errorf("%q: the log has no %q:\n%s", lines, reason, got)
				}
			}
		})
	})
}

// awaitActive waits until the unit has started.
func (n unit) awaitActive() {
	n.t.Helper()
	n.await(fmt.Sprintf("%s is active", n.name), time.Minute, func() bool { return n.property("ActiveState") == "active" })
}
