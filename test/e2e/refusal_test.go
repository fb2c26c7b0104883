//go:build e2e

package e2e

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// hookFile is the hook's configuration as it is installed.
const hookFile = "/usr/share/containers/oci/hooks.d/oci-mainpid-hook.json"

// TestNoHook: where podman does not know the hook, a start fails, in good time
// and with a message that helps.
func TestNoHook(t *testing.T) {
	t.Parallel()
	const advice = `oci-mainpid check `
	onFreshMachinesIn(t, onLast, func(m machine) {
		if err := install(m.box); err != nil {
			m.t.Fatal(err)
		}
		m.run("rm", hookFile)
		mixed, user := m.user().unit(service{mode: "mixed"}), m.user().unit(service{mode: "user"})
		m.systemctl("start", "--no-block", mixed.name)

		m.subtest("Cgroup user: as soon as podman ends", func(m machine) {
			n := user.in(m)
			n.startFails()
			n.helperSaid("3", "has ended.*"+advice)
			if took := n.timeToFail(); took > 15*time.Second {
				m.t.Errorf("took %v", took)
			}
		})
		m.subtest("Cgroup mixed: half a second after podman has ended", func(m machine) {
			n := mixed.in(m)
			n.awaitFailed(60 * time.Second)
			n.assertGone()
			n.helperSaid("3", "nothing came within 500ms.*"+advice)
			if took := n.timeToFail(); took > 10*time.Second { // most of it is the stop
				m.t.Errorf("took %v", took)
			}
		})
	})
}

// timeToFail returns how long the unit took from its start to its failure.
func (n unit) timeToFail() time.Duration {
	n.t.Helper()
	p := n.properties()
	start, err := strconv.ParseInt(p["InactiveExitTimestampMonotonic"], 10, 64)
	end, err2 := strconv.ParseInt(p["InactiveEnterTimestampMonotonic"], 10, 64)
	if err != nil || err2 != nil {
		n.t.Fatal(err, err2)
	}
	return time.Duration(end-start) * time.Microsecond
}

// TestHelperKilled: without notify-mainpid there is no main PID, so no service.
func TestHelperKilled(t *testing.T) {
	onStacks(t, func(m machine) {
		m.share("Cgroup mixed: while it waits for the hook", func(m machine) {
			u := m.user()
			u.useHooks() // none
			n := u.unit(service{mode: "mixed"})
			n.editDropin(`--timeout=500ms`, "--timeout=30s")
			m.systemctl("daemon-reload")
			m.systemctl("start", "--no-block", n.name)
			m.run("kill", "-9", n.awaitHelper())
			n.awaitFailed(soon)
			n.assertGone()
		})
		for i, runtime := range []string{"crun", "runc"} {
			m.everyOther(i, "Cgroup user with "+runtime+": while it waits for the hook", func(m machine) {
				n, gate := m.user().gatedUnit(runtime)
				m.systemctl("start", "--no-block", n.name)
				gate.awaitReached()
				m.run("kill", "-9", n.awaitHelper())
				gate.open()
				n.awaitFailed(soon)
				n.assertGone()
			})
			m.everyOther(i+1, "Cgroup user with "+runtime+": while the hook waits for it", func(m machine) {
				n, gate := m.user().gatedUnit(runtime)
				m.systemctl("start", "--no-block", n.name)
				gate.awaitReached()
				helper := n.awaitHelper()
				m.run("kill", "-STOP", helper)
				gate.open()
				m.await("the hook has written", soon, func() bool { return m.try("test", "-s", n.mainPIDFile()).status == 0 })
				m.run("kill", "-9", helper)
				n.awaitFailed(soon)
				n.assertGone()
			})
		}
	})
}

// gatedUnit makes a unit with Cgroup=user whose podman is held at a gate.
func (u user) gatedUnit(runtime string) (unit, gate) {
	u.t.Helper()
	gate := u.gate()
	return u.unit(service{mode: "user", runtime: runtime}), gate
}

// awaitFailed waits for the unit to fail.
func (n unit) awaitFailed(within time.Duration) {
	n.t.Helper()
	n.await(n.name+" has failed", within, func() bool { return n.property("ActiveState") == "failed" })
}

// awaitHelper waits until the unit runs notify-mainpid, and returns its PID.
func (n unit) awaitHelper() (pid string) {
	n.t.Helper()
	n.await("notify-mainpid runs", soon, func() bool {
		pid = n.property("ControlPID")
		return path.Base(n.try("readlink", "/proc/"+pid+"/exe").stdout) == "notify-mainpid" &&
			strings.Contains(n.try("cat", "/proc/"+pid+"/cmdline").stdout, "--user=")
	})
	return pid
}

// useHooks has the user's podman read these directories of hooks.
func (u user) useHooks(dirs ...string) {
	u.t.Helper()
	dirs = append(dirs, path.Join(u.home(), "hooks.d"))
	u.writeHome("hooks.d/README", "")
	u.writeHome(".config/containers/containers.conf", fmt.Sprintf("[engine]\nhooks_dir = [\"%s\"]\n", strings.Join(dirs, `", "`)))
}

// gate holds a user's podman before the first of the poststart hooks.
type gate struct{ user }

func (u user) gate() gate {
	u.t.Helper()
	u.useHooks(path.Dir(hookFile))
	u.must(u.try(u.as("mkfifo", u.home()+"/gate")...))
	// Hooks run in the order of their names.
	u.writeHome("hooks.d/00-gate.json", fmt.Sprintf(
		`{"version": "1.0.0", "hook": {"path": "/bin/cat", "args": ["cat", "%s/gate"]}, "when": {"always": true}, "stages": ["poststart"]}`, u.home()))
	u.t.Cleanup(gate{u}.open)
	return gate{u}
}

func (g gate) awaitReached() {
	g.t.Helper()
	g.await("podman is at the gate", soon, func() bool {
		return strings.Contains(g.try("ps", "--no-headers", "-o", "args", "-U", g.uid).stdout, "cat "+g.home()+"/gate")
	})
}

// open lets through who waits now.
func (g gate) open() {
	// For reading too, so as not to wait for a reader.
	g.shell(`: <>"$1"`, g.home()+"/gate")
}

// TestStrangersPID: a PID that is not that of the unit's own conmon makes the
// start fail, and systemd is told nothing.
func TestStrangersPID(t *testing.T) {
	onStacks(t, func(m machine) {
		m.systemctl("log-level", "debug") // PID 1 then logs each notification
		m.t.Cleanup(func() { m.systemctl("log-level", "info") })

		u := m.user()
		neighbour := u.unit(service{mode: "mixed", container: "neighbour"})
		neighbour.start()
		m.subtest("the unit's own conmon, which is taken", func(m machine) {
			n := neighbour.in(m)
			n.assertNotified(map[string]bool{
				"MAINPID=" + n.assertMainPIDIsConmon().conmon: true,
				"from PID " + n.helper() + ":":                true,
			})
		})
		other := m.userWithoutImage()
		sleep := "sleep-" + other.name
		m.run("systemd-run", "--quiet", "--uid="+other.uid, "--unit="+sleep, "sleep", "1000")
		m.t.Cleanup(func() { m.try("systemctl", "stop", sleep) })
		own := "sleep-" + u.name
		m.run("systemd-run", "--quiet", "--uid="+u.uid, "--unit="+own, "sleep", "1000")
		m.t.Cleanup(func() { m.try("systemctl", "stop", own) })

		for _, c := range []struct{ who, mode, pid, reason string }{
			{"PID 1", "mixed", "1", `process 1: runs as UID 0, not as the unit's user`},
			{"another user's process", "user", m.property(sleep, "MainPID"), `runs as UID ` + other.uid + `, not as the unit's user`},
			{"a process of the user's that is no conmon", "user", m.property(own, "MainPID"), `does not execute conmon`},
			{"the conmon of another unit of the user's", "mixed", neighbour.property("MainPID"), `belongs to another start or another unit`},
			// A PID that no process has is that of a container which has ended, see
			// TestForgedEnd.
		} {
			m.share(c.who, func(m machine) {
				n := u.in(m).unit(service{mode: c.mode})
				kept := n.keepResult()
				n.dropin(60, fmt.Sprintf("[Service]\nExecStartPre=+/bin/sh -c 'echo %s >%s'\n", c.pid, n.mainPIDFile()))
				m.systemctl("daemon-reload")
				if r := m.try("systemctl", "start", n.name); r.status == 0 {
					m.t.Errorf("started, with main PID %s", n.property("MainPID"))
				}
				n.assertState("failed")
				n.helperSaid("1", "refused: .*"+c.reason)
				if got := m.run("cat", kept); !regexp.MustCompile(`^error: refused: .*` + c.reason).MatchString(got) {
					m.t.Errorf("the result was %q", got)
				}
				n.assertNotified(map[string]bool{
					"MAINPID=" + c.pid:             false,
					"from PID " + n.helper() + ":": false,
					// podman's own; systemd does log what is sent.
					"READY=1": c.mode == "mixed",
				})
			})
		}
		neighbour.assertMainPIDIsConmon()
	})
}

// in returns the user in the hands of another test.
func (u user) in(m machine) user {
	u.machine = m
	return u
}

// keepResult has the unit copy its result file before it is removed, and returns
// the copy's name.
func (n unit) keepResult() string {
	n.t.Helper()
	kept := "/run/kept-" + n.name
	n.editDropin(`(?m)^ExecStopPost=-\+`, fmt.Sprintf("ExecStopPost=+/bin/cp %s %s\nExecStopPost=-+", n.resultFile(), kept))
	return kept
}

// helper returns the PID that notify-mainpid had.
func (n unit) helper() string {
	n.t.Helper()
	found := regexp.MustCompile(`--user=.* pid=(\d+)`).FindStringSubmatch(n.property("ExecStartPost"))
	if found == nil {
		n.t.Fatal("notify-mainpid did not run")
	}
	return found[1]
}

// assertNotified checks whether systemd, at log level debug, logged notifications
// for the unit with these texts.
func (n unit) assertNotified(want map[string]bool) {
	n.t.Helper()
	log := regexp.MustCompile(`(?m)^.*Got notification message.*$`).FindAllString(n.journal(n.name), -1)
	for text, want := range want {
		pattern := regexp.MustCompile(regexp.QuoteMeta(text) + `(\W|$)`)
		if got := slices.ContainsFunc(log, pattern.MatchString); got != want {
			n.t.Errorf("is %q among the notifications: %t, want %t:\n%s", text, got, want, strings.Join(log, "\n"))
		}
	}
}

// TestRootRefuses: with Cgroup=user, podman learns from the hook that root does
// not take the main PID.
func TestRootRefuses(t *testing.T) {
	onStacks(t, func(m machine) {
		for i, runtime := range []string{"runc", "crun"} {
			m.everyOther(i, "Cgroup user with "+runtime, func(m machine) {
				n := m.user().unit(service{mode: "user", runtime: runtime})
				n.editDropin(`notify-mainpid --user`, "notify-mainpid --conmon=/usr/local/bin/conmon --user")
				m.systemctl("daemon-reload")
				n.startFails()
				n.helperSaid("1", `refused: process \d+: does not execute conmon \(/usr/local/bin/conmon\)`)
			})
		}
	})
}

// TestBadMainPIDFile: what the user puts into the mainpid file is refused.
func TestBadMainPIDFile(t *testing.T) {
	cases := []struct{ name, script, status, reason string }{
		{"negative", `echo -1 >$1`, "1", `"-1\\n" is no PID`},
		{"zero", `echo 0 >$1`, "1", `0 is no PID`},
		{"binary", `head -c 6 /dev/zero >$1`, "1", `"(\\x00){6}" is no PID`},
		{"a-megabyte", `head -c 1M /dev/urandom >$1`, "1", `\d+ bytes are no PID`},
		{"larger-than-any-pid", `echo 4194304 >$1`, "1", `4194304 is no PID`},
		// It might grow.
		{"without-newline", `printf 4321 >$1`, "3", `nothing came within 1s`},
	}
	onStacks(t, func(m machine) {
		template := m.user().unit(service{mode: "mixed", template: true, container: "web-%i"})
		template.editDropin(`--timeout=500ms`, "--timeout=1s")
		for _, c := range cases {
			m.share(c.name, func(m machine) {
				n := template.in(m).instance(c.name)
				n.startPre("", c.script)
				n.startFails()
				n.helperSaid(c.status, "mainpid file "+regexp.QuoteMeta(n.mainPIDFile())+": "+c.reason)
			})
		}
	})
}

// TestBadFilesOfRoots: what an administrator puts in the place of the mainpid
// and result files, by mistake, is neither followed nor waited for.
func TestBadFilesOfRoots(t *testing.T) {
	cases := []struct{ name, script, reason string }{
		{"directory", `rm $1; mkdir $1`, `open (mainpid file )?MAINPID: (not a regular file|is a directory)`},
		{"link", `rm $1; ln -s /run/linked-to $1`, `open MAINPID: (a symbolic link is not followed|too many levels of symbolic links)`},
		{"fifo", `rm $1; mkfifo -m 666 $1`, `open (mainpid file )?MAINPID: (not a regular file|no such device or address)`},
		{"missing", `rm $1`, `open MAINPID: no such file or directory`},
		{"link-for-a-result", `rm $2; ln -s /etc/elsewhere $2`, `open RESULT: a symbolic link is not followed`},
	}
	onStacks(t, func(m machine) {
		m.write("/run/linked-to", "1")
		template := m.user().unit(service{mode: "mixed", template: true, container: "web-%i"})
		for _, c := range cases {
			m.share(c.name, func(m machine) {
				n := template.in(m).instance(c.name)
				n.startPre("+", c.script)
				if r := m.try("systemctl", "start", n.name); r.status == 0 {
					m.t.Errorf("started, with main PID %s", n.property("MainPID"))
				}
				n.assertState("failed")
				// Whether podman starts at all is up to the runtime: the hook
				// may be the only one that is asked.
				reason := strings.NewReplacer("MAINPID", regexp.QuoteMeta(n.mainPIDFile()), "RESULT", regexp.QuoteMeta(n.resultFile())).Replace(c.reason)
				log := n.journal(n.name, "--identifier=notify-mainpid", "--identifier=oci-mainpid-hook")
				if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(n.name) + `: .*` + reason).MatchString(log) {
					m.t.Errorf("nobody said %q in\n%s", reason, log)
				}
			})
		}
		m.shell(`! [ -e /etc/elsewhere ] && [ "$(cat /run/linked-to)" = 1 ]`)
	})
}

// startPre has the unit run a script once notify-mainpid has made its files, the
// mainpid file $1 and the result file $2. The privilege is the user's, or root's
// with "+".
func (n unit) startPre(privilege, script string) {
	n.t.Helper()
	n.dropin(60, fmt.Sprintf("[Service]\nExecStartPre=%s/bin/sh -ec '%s' sh %s %s\n",
		privilege, strings.ReplaceAll(script, "$", "$$"), n.mainPIDFile(), n.resultFile()))
	n.systemctl("daemon-reload")
}
