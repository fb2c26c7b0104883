//go:build e2e

package e2e

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/message"
)

// explain returns what oci-mainpid explain says of the unit, on one line.
func (n unit) explain() string {
	n.t.Helper()
	n.run("journalctl", "--sync")
	return strings.Join(strings.Fields(n.run("oci-mainpid", "explain", n.name)), " ")
}

// said checks that a text has all of these, in this order.
func (n unit) said(text string, all ...string) {
	n.t.Helper()
	rest := text
	for _, want := range all {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			n.t.Errorf("no %q, or not in that order, in\n%s", want, text)
			return
		}
		rest = after
	}
}

// TestExplainReasons: explain and status name the cause of a failure, and what
// became of the unit.
func TestExplainReasons(t *testing.T) {
	onStacks(t, func(m machine) {
		u := m.user()
		// Each case has the unit's words after "Why it failed: ", and status' words.
		for _, c := range []struct {
			name    string
			service service
			run     func(n unit)
			explain []string
			status  string
		}{
			{
				"a port below 1024", service{mode: "mixed", options: "--publish=80:80"}, unit.startFails,
				// pasta of today says "Listen failed for HOST TCP port".
				[]string{"failed to start", " port ", "80", "Permission denied", "-> users may not bind ports below"}, "Permission denied",
			},
			{
				"a container that ends at once", service{mode: "mixed", options: "--log-driver=journald", command: "touch /proc/x"},
				func(n unit) {
					// Whether the start is over before the container is a matter of luck.
					n.try("systemctl", "start", n.name)
					n.awaitState("failed")
				},
				[]string{"container: ended with exit status 1", "The last lines that it wrote: touch: /proc/x: "}, "container: ended with exit status 1",
			},
			{
				"a command of the author's", service{mode: "mixed", more: "ExecStartPre=sh -c 'echo no such database >&2; exit 4'"}, unit.startFails,
				[]string{`sh of ExecStartPre= failed: exit status 4; its last line is "no such database"`}, "sh of ExecStartPre= failed: exit status 4",
			},
			{
				"a container that ends later", service{mode: "mixed", options: "--log-driver=journald", command: `sh -c 'echo reading; sleep 2; echo cannot open it >&2; exit 3'`},
				func(n unit) { n.start(); n.awaitState("failed") },
				[]string{": started in", "Now: failed since", "container: ended with exit status 3", "wrote: reading cannot open it"}, "container: ended with exit status 3",
			},
			{
				"a watchdog", service{mode: "mixed", more: "WatchdogSec=1"}, func(n unit) { n.start(); n.awaitState("failed") },
				[]string{": started in", "Watchdog timeout (limit 1s)!", "-> nothing sent WATCHDOG=1 in time"}, "Watchdog timeout (limit 1s)!",
			},
			{
				"a restart to come", service{mode: "mixed", options: "--log-driver=journald", command: `sh -c 'echo cannot open it; sleep 2; exit 3'`, more: "Restart=always\nRestartSec=30"},
				func(n unit) {
					n.start()
					n.await("the unit waits", soon, func() bool { return strings.HasPrefix(n.property("SubState"), "auto-restart") })
				},
				[]string{": started in", "Now: waits to be started again (RestartSec=30s, restarts so far: 0)", "container: ended with exit status 3"}, "container: ended with exit status 3",
			},
		} {
			m.share(c.name, func(m machine) {
				u.machine = m
				n := u.unit(c.service)
				c.run(n)
				said := n.explain()
				if strings.Contains(said, "Why it failed: oci-mainpid-hook") || strings.Contains(said, "since 0 ms") {
					m.t.Errorf("%s", said)
				}
				n.said(said, c.explain...)
				if s := n.status(); !strings.Contains(s.LastError, c.status) {
					m.t.Errorf("%+v", s)
				}
			})
		}
		m.share("a dependency", func(m machine) {
			u.machine = m
			n := u.unit(service{mode: "mixed"})
			n.start()
			n.stop()
			other := "needed-by-" + n.name
			m.write(path.Join(unitDir, other), "[Service]\nType=oneshot\nExecStart=false\n")
			m.write(path.Join(unitDir, n.name+".d/60-needs.conf"), "[Unit]\nRequires="+other+"\nAfter="+other+"\n")
			m.systemctl("daemon-reload")
			if r := m.try("systemctl", "start", n.name); r.status == 0 {
				m.t.Fatal(r)
			}
			n.said(n.explain(), "failed to start", "Why it failed: systemd: Dependency failed for ", "-> "+other+" did not start; to see why: oci-mainpid explain "+other)
			// Which the advice is good for.
			if out := m.run("oci-mainpid", "explain", other); !strings.Contains(out, "failed to start") {
				m.t.Errorf("%s", out)
			}
		})
		m.share("a unit that was stopped", func(m machine) {
			u.machine = m
			n := u.unit(service{mode: "mixed"})
			n.start()
			n.stop()
			n.said(n.explain(), ": started in", "Now: stopped: systemd was told to stop it at +")
		})
		m.share("no such unit", func(m machine) {
			if r := m.try("oci-mainpid", "explain", "nobody-has-this"); r.status != 1 || !strings.Contains(r.stderr, "nobody-has-this.service: systemd knows no such unit") {
				m.t.Error(r)
			}
		})
	})
}

// TestAttackExplain: as the unit's user, 5,200 messages, an entry of 480 KB and
// words of systemd's and notify-mainpid's change nothing of what explain says.
func TestAttackExplain(t *testing.T) {
	onStacksIn(t, onLast, func(m machine) {
		n := m.user().unitWithoutDropin(service{mode: "mixed", options: "--publish=80:80", more: "ExecStartPre=/bin/sh /run/hostile.sh"})
		m.write("/run/hostile.sh", fmt.Sprintf(`
			seq 5200 | logger --tag systemd
			own() { printf '%%s\n' "SYSLOG_IDENTIFIER=notify-mainpid" "UNIT=%[1]s" "INVOCATION_ID=$INVOCATION_ID" "OBJECT_SYSTEMD_UNIT=%[1]s" "$@" | logger --journald; }
			values() { for i in $(seq 120); do printf 'CONTAINER_NAME=%%04000d\n' "$i"; done; }
			own "MESSAGE=a large entry" "$(values)"
			own "MESSAGE=%[1]s: conmon 1 of container 0123 (web) is the main process" MESSAGE_ID=%[2]s
			own "MESSAGE=took: conmon 1 is the main process"
		`, n.name, message.MainProcess.ID))
		n.run("oci-mainpid", "generate", "--user="+n.user.name, "--cgroup=mixed", path.Join(unitDir, n.name))
		n.systemctl("daemon-reload")
		n.startFails()
		if all := n.journalEntries("MESSAGE=a large entry"); len(all) != 1 {
			m.t.Fatalf("%d large entries", len(all))
		}
		said := n.explain()
		n.said(said, "failed to start", "more messages are left out here (others)", "Why it failed:", "users may not bind ports below")
		if strings.Contains(said, "took: ") && !strings.Contains(said, `"took: conmon 1`) || strings.Contains(said, "Odd, though") {
			m.t.Errorf("%s", said)
		}
		for _, forged := range []string{" notify-mainpid took: conmon 1", " systemd 1 ", " systemd 2 "} {
			if strings.Contains(said, forged) {
				m.t.Errorf("%q in\n%s", forged, said)
			}
		}
	})
}

// TestAttackDrawing: explain --svg= goes nowhere through a directory that the
// unit's user can change.
func TestAttackDrawing(t *testing.T) {
	onOneStack(t, onFirst, func(m machine) {
		n := m.user().unit(service{mode: "mixed"})
		n.start()
		n.run(n.as("ln", "-s", "/etc", n.home()+"/pictures")...)
		n.run(n.as("ln", "-s", "/etc/issue", "/tmp/drawing-"+n.name)...)
		for file, want := range map[string]string{
			n.home() + "/pictures/web.svg":  n.home() + ": belongs to UID " + n.uid,
			n.home() + "/web.svg":           "name a file in a directory of root's",
			"/tmp/drawing-" + n.name:        "is a symbolic link: remove it, or name another file",
			"/proc/self/cwd/" + n.name:      "is a symbolic link: name the directory that it leads to",
			"/run/user/" + n.uid + "/a.svg": "belongs to UID " + n.uid,
		} {
			r := m.try("oci-mainpid", "explain", "--svg="+file, n.name)
			if r.status != 1 || !strings.Contains(r.stderr, want) || strings.Count(r.stderr, "\n") > 0 {
				m.t.Errorf("%s: %v", file, r)
			}
		}
		if left := m.shell("ls /etc/web.svg " + n.home() + "/web.svg 2>/dev/null || :"); left != "" {
			m.t.Errorf("written: %s", left)
		}
		for _, file := range []string{"/tmp/" + n.name + ".svg", "/root/" + n.name + ".svg"} {
			m.run("oci-mainpid", "explain", "--svg="+file, n.name)
			if got := m.run("stat", "--format=%u %a", file); got != "0 644" {
				m.t.Errorf("%s: %s", file, got)
			}
		}
	})
}
