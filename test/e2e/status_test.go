//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// status is what oci-mainpid status --format=json says of a unit.
type status struct {
	User, Cgroup, Problem string
	ActiveState           string `json:"active_state"`
	MainPID               int    `json:"main_pid"`
	Agrees                *bool
	LastError             string `json:"last_error"`
	Conmon                *struct {
		PID, Recorded int
		Container     string
	}
	LeftOver []struct {
		PID         int
		ContainerID string `json:"container_id"`
	} `json:"left_over"`
}

func (n unit) status() status {
	n.t.Helper()
	var list []status
	out := n.run("oci-mainpid", "status", "--format=json", n.name)
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
		n.t.Fatalf("%v\n%s", err, out)
	}
	return list[0]
}

// TestStatus: what systemd has and what podman has, in each mode.
func TestStatus(t *testing.T) {
	onStacks(t, func(m machine) {
		for _, mode := range []string{"mixed", "service", "user"} {
			m.share(mode, func(m machine) {
				n := m.user().unit(service{mode: mode})
				if s := n.status(); s.ActiveState != "inactive" || s.Agrees != nil || s.Conmon != nil || s.User != n.user.name || s.Cgroup != mode {
					m.t.Errorf("before the start: %+v", s)
				}
				n.start()
				conmon := n.assertMainPIDIsConmon().conmon
				s := n.status()
				if s.Agrees == nil || !*s.Agrees || s.Problem != "" || s.Conmon == nil || strconv.Itoa(s.MainPID) != conmon ||
					s.Conmon.PID != s.MainPID || s.Conmon.Container != n.container {
					m.t.Errorf("running: %+v", s)
				}
				if s.Conmon != nil && s.Conmon.Recorded != 0 && s.Conmon.Recorded != s.MainPID {
					m.t.Errorf("podman wrote down %d", s.Conmon.Recorded)
				}
				metric := fmt.Sprintf("oci_mainpid_unit_main_pid_agrees{unit=%q,user=%q,cgroup=%q} 1", n.name, n.user.name, mode)
				if out := m.run("oci-mainpid", "status", "--format=prometheus"); !strings.Contains(out, metric) {
					m.t.Errorf("no %s in\n%s", metric, out)
				}
				table := m.run("oci-mainpid", "status")
				for line := range strings.Lines(table) {
					if len(line) > 81 || strings.Contains(line, "\x1b") {
						m.t.Errorf("%q", line)
					}
				}
				if !strings.Contains(table, strings.TrimSuffix(n.name, ".service")+" ") {
					m.t.Errorf("no %s in\n%s", n.name, table)
				}
				n.stop()
				if s := n.status(); s.ActiveState != "inactive" || s.Conmon != nil || len(s.LeftOver) != 0 {
					m.t.Errorf("after the stop: %+v", s)
				}
			})
		}
		m.subtest("of nobody", func(m machine) {
			if r := m.try("oci-mainpid", "status", "nobody-has-this"); r.status != 1 || !strings.Contains(r.stderr, "knows no such unit") {
				m.t.Error(r)
			}
		})
	})
}

// TestStatusSeesAnotherMainProcess: root can tell systemd any main PID.
func TestStatusSeesAnotherMainProcess(t *testing.T) {
	onOneStack(t, onLast, func(m machine) {
		n := m.user().unit(service{mode: "mixed"})
		n.dropin(60, "[Service]\nExecStartPost=+/bin/sh -c 'sleep 1000 & systemd-notify MAINPID=$$!; sleep 0.2'\n")
		n.systemctl("daemon-reload")
		n.start()
		s := n.status()
		if s.Agrees == nil || *s.Agrees || s.Conmon == nil || s.Conmon.PID == s.MainPID || !strings.Contains(s.Problem, strconv.Itoa(s.MainPID)) {
			m.t.Errorf("%+v", s)
		}
		if p := n.point("main process"); p.Level != "fail" {
			m.t.Errorf("%+v", p)
		}
	})
}

// TestStatusWatch: every change is shown, and SIGINT is a good end.
func TestStatusWatch(t *testing.T) {
	onStacksIn(t, onFirst, func(m machine) {
		n := m.user().unit(service{mode: "mixed"})
		out := m.shell(`
			oci-mainpid status --watch --format=json "$1" >/run/watch.out & watch=$!
			until [ -s /run/watch.out ]; do sleep 0.1; done
			systemctl start "$1"
			sleep 1
			systemctl daemon-reexec
			systemctl stop "$1"
			sleep 1
			kill -INT "$watch"
			wait "$watch"
			cat /run/watch.out`, n.name)
		lines := strings.Split(out, "\n")
		if len(lines) < 3 || !strings.Contains(out, `"agrees":true`) || !strings.Contains(lines[len(lines)-1], `"active_state":"inactive"`) {
			m.t.Errorf("%s", out)
		}
		for i := 1; i < len(lines); i++ {
			if lines[i] == lines[i-1] {
				m.t.Errorf("twice: %s", lines[i])
			}
		}
	})
}

// point is what oci-mainpid check --format=json says of one thing.
type point struct{ Unit, Level, What, Found, Fix string }

// points returns what check says of the unit, and compares its exit status.
func (n unit) points() []point {
	n.t.Helper()
	r := n.try("oci-mainpid", "check", "--format=json", n.name)
	var report struct {
		Works  bool
		Points []point
	}
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		n.t.Fatalf("%v\n%v", err, r)
	}
	if report.Works != (r.status == 0) {
		n.t.Errorf("works: %v, exit status %d", report.Works, r.status)
	}
	var points []point
	for _, p := range report.Points {
		if p.Unit == n.name {
			points = append(points, p)
		}
	}
	return points
}

func (n unit) point(what string) point {
	n.t.Helper()
	for _, p := range n.points() {
		if p.What == what {
			return p
		}
	}
	n.t.Fatalf("check says nothing about %s", what)
	return point{}
}

// TestCheck: a unit that works is well in every point, and one that does not
// fails in the point that is broken.
func TestCheck(t *testing.T) {
	const hookJSON = "/usr/share/containers/oci/hooks.d/oci-mainpid-hook.json"
	const configuration = ".config/containers/containers.conf"
	cases := []struct {
		name, what, level, found, fix string
		spoil                         func(n unit)
		mend                          func(n unit)
	}{
		{
			"no hook", "hook", "fail", "oci-mainpid-hook", "install",
			func(n unit) { n.run("mv", hookJSON, "/run/") },
			func(n unit) { n.run("mv", "/run/"+path.Base(hookJSON), hookJSON) },
		},
		{
			"hooks_dir without it", "hook", "fail", "/etc/hooks", `"/usr/share/containers/oci/hooks.d"]`,
			func(n unit) { n.writeHome(configuration, "[engine]\nhooks_dir = [\n  \"/etc/hooks\", # mine\n]\n") },
			func(n unit) { n.run("rm", filepath.Join(n.home(), configuration)) },
		},
		{
			"a configuration that is a FIFO", "hook", "warn", "not a regular file", "that file",
			func(n unit) { n.run(n.as("mkfifo", filepath.Join(n.home(), configuration))...) },
			func(n unit) { n.run("rm", filepath.Join(n.home(), configuration)) },
		},
		{
			"a configuration that is a link", "hook", "warn", "symbolic link", "that file",
			func(n unit) { n.run(n.as("ln", "-s", "/etc/shadow", filepath.Join(n.home(), configuration))...) },
			func(n unit) { n.run("rm", filepath.Join(n.home(), configuration)) },
		},
		{
			"a user who logs in", "logout", "warn", "RemoveIPC=yes", "loginctl enable-linger",
			func(n unit) { n.run("loginctl", "disable-linger", n.user.name) },
			func(n unit) { n.run("loginctl", "enable-linger", n.user.name) },
		},
		{
			"no subordinate IDs", "user", "fail", "subordinate user IDs", "usermod --add-subuids",
			func(n unit) { n.run("sed", "-i.kept", "/^"+n.user.name+":/d", "/etc/subuid") },
			func(n unit) { n.run("mv", "/etc/subuid.kept", "/etc/subuid") },
		},
		{
			"no home", "home", "fail", "no such file", "install -d",
			func(n unit) { n.run("mv", n.home(), n.home()+"-moved") },
			func(n unit) { n.run("mv", n.home()+"-moved", n.home()) },
		},
		{
			"a unit that has changed", "unit", "fail", "have changed", "daemon-reload",
			func(n unit) { n.dropin(10, "[Service]\nRestart=no\n") },
			func(n unit) { n.systemctl("daemon-reload") },
		},
		{
			"a drop-in that is stale", "drop-in", "fail", "not what would be written now", "oci-mainpid generate --user=",
			func(n unit) {
				n.run("sed", "-i.kept", "s/--replace/--replace --init/", path.Join(unitDir, n.name))
				n.systemctl("daemon-reload")
			},
			func(n unit) {
				n.run("mv", path.Join(unitDir, n.name+".kept"), path.Join(unitDir, n.name))
				n.systemctl("daemon-reload")
			},
		},
		{
			"Delegate= undone", "settings", "fail", "Delegate=no is what counts", "systemctl cat",
			func(n unit) { n.dropin(60, "[Service]\nDelegate=no\n"); n.systemctl("daemon-reload") },
			func(n unit) { n.dropin(60, ""); n.systemctl("daemon-reload") },
		},
		{
			"a limit", "limits", "warn", "MemoryMax=", "--cgroup=service",
			func(n unit) { n.dropin(60, "[Service]\nMemoryMax=1G\n"); n.systemctl("daemon-reload") },
			func(n unit) { n.dropin(60, ""); n.systemctl("daemon-reload") },
		},
	}
	onStacks(t, func(m machine) {
		// podman's options change, so the drop-in replaces ExecStart=.
		n := m.user().unit(service{mode: "mixed", cgroups: "split"})
		n.run("loginctl", "enable-linger", n.user.name) // else a logout costs podman's locks
		m.t.Cleanup(func() { m.run("loginctl", "disable-linger", n.user.name) })
		n.start()
		well := func(n unit) {
			n.t.Helper()
			for _, p := range n.points() {
				if p.Level != "ok" || p.Fix != "" {
					n.t.Errorf("%+v", p)
				}
			}
		}
		well(n)
		n.run(n.as("mkdir", "-p", filepath.Dir(filepath.Join(n.home(), configuration)))...)
		for _, c := range cases {
			m.share(c.name, func(m machine) {
				n := n.in(m)
				c.spoil(n)
				p := n.point(c.what)
				c.mend(n)
				if p.Level != c.level || !strings.Contains(p.Found, c.found) || !strings.Contains(p.Fix, c.fix) {
					m.t.Errorf("%+v", p)
				}
			})
		}
		well(n)
		m.subtest("no such unit", func(m machine) {
			if r := m.try("oci-mainpid", "check", "nobody-has-this"); r.status != 1 || !strings.Contains(r.stdout, "FAIL unit") {
				m.t.Error(r)
			}
		})
		m.subtest("one screen", func(m machine) {
			lines := strings.Split(m.run("oci-mainpid", "check", n.name), "\n")
			for _, line := range lines {
				if len(line) > 80 {
					m.t.Errorf("%q", line)
				}
			}
			// The machine may lack controllers, which takes some lines to say.
			if len(lines) > 40 {
				m.t.Errorf("%d lines", len(lines))
			}
		})
	})
}

// TestExplain: the story of a start that went well, and of one that did not.
func TestExplain(t *testing.T) {
	onStacks(t, func(m machine) {
		for _, mode := range []string{"mixed", "user"} {
			m.share(mode, func(m machine) {
				n := m.user().unit(service{mode: mode})
				n.start()
				conmon := n.assertMainPIDIsConmon().conmon
				m.run("journalctl", "--sync")
				out := m.run("oci-mainpid", "explain", "--svg=/run/"+n.name+".svg", n.name)
				for _, want := range []string{
					n.name + ": started in ", ", as " + n.user.name + ", Cgroup=" + mode,
					"conmon, process " + conmon, "Starting " + n.name, "\nnotify-mainpid ", "\npodman run ",
				} {
					if !strings.Contains(out, want) {
						m.t.Errorf("no %q in\n%s", want, out)
					}
				}
				if strings.Contains(out, "Why it failed") || !strings.Contains(strings.Join(strings.Fields(out), " "), "took: ") {
					m.t.Errorf("%s", out)
				}
				if svg := m.run("cat", "/run/"+n.name+".svg"); !strings.HasPrefix(svg, "<svg ") || !strings.HasSuffix(svg, "</svg>") {
					m.t.Errorf("%.200s", svg)
				}
			})
		}
		m.share("the hook says nothing", func(m machine) {
			n := m.user().unit(service{mode: "user"})
			// The hook leaves the container alone.
			n.editDropin(`(?m)^Environment="?OCI_MAINPID_FILE=.*\n`, "")
			n.systemctl("daemon-reload")
			n.startFails()
			m.run("journalctl", "--sync")
			out := m.run("oci-mainpid", "explain", n.name)
			if !strings.Contains(out, "failed to start") || !strings.Contains(out, "Why it failed: podman: started container ") {
				m.t.Errorf("%s", out)
			}
			if s := n.status(); !strings.Contains(s.LastError, "but no hook gave the PID of its conmon") {
				m.t.Errorf("%+v", s)
			}
		})
		m.share("a link for the drawing", func(m machine) {
			n := m.user().unit(service{mode: "mixed"})
			n.start()
			if err := unix.Symlink("/etc/issue", filepath.Join(m.box.Root(), "srv/drawing-"+n.name)); err != nil {
				m.t.Fatal(err)
			}
			if r := m.try("oci-mainpid", "explain", "--svg=/srv/drawing-"+n.name, n.name); r.status != 1 {
				m.t.Error(r)
			}
		})
	})
}
