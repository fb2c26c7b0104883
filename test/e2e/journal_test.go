//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/message"
)

// entry is an entry of the journal. What is no text is left out.
type entry map[string]any

func (e entry) field(name string) string {
	s, _ := e[name].(string)
	return s
}

// entries returns what journalctl -u UNIT shows of a kind of message.
func (n unit) entries(kind message.Kind) []entry {
	n.t.Helper()
	return n.journalEntries("--unit="+n.name, "MESSAGE_ID="+kind.ID)
}

func (m machine) journalEntries(args ...string) []entry {
	m.t.Helper()
	m.run("journalctl", "--sync")
	var all []entry
	for line := range strings.Lines(m.run(append([]string{"journalctl", "--quiet", "--no-pager", "--output=json"}, args...)...)) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			m.t.Fatalf("%v: %s", err, line)
		}
		all = append(all, e)
	}
	return all
}

// assertSaid checks that journalctl -u UNIT shows one message of the kind, with
// a text that matches, the fields that each has and these, of which an empty one
// must be missing.
func (n unit) assertSaid(kind message.Kind, text string, fields map[string]string) entry {
	n.t.Helper()
	all := n.entries(kind)
	if len(all) != 1 {
		n.t.Errorf("%s: %d entries with MESSAGE_ID=%s, not 1: %v", n.name, len(all), kind.ID, all)
		return entry{}
	}
	e := all[0]
	want := map[string]string{
		"UNIT": n.name, "SYSLOG_IDENTIFIER": kind.Program, "PRIORITY": fmt.Sprint(kind.Priority), "DOCUMENTATION": kind.Documentation,
		"_TRANSPORT": "journal",
	}
	for name, value := range fields {
		want[name] = value
	}
	for name, value := range want {
		if got := e.field(name); got != value {
			n.t.Errorf("%s: %s=%q, not %q", n.name, name, got, value)
		}
	}
	if got := e.field("MESSAGE"); !regexp.MustCompile("^" + regexp.QuoteMeta(n.name) + ": " + text).MatchString(got) {
		n.t.Errorf("said %q, not %q", got, text)
	}
	return e
}

// assertOnly checks that nothing of ours is in the unit's log but what these
// kinds are.
func (n unit) assertOnly(kinds ...message.Kind) {
	n.t.Helper()
	programs := []string{message.NotifyMainPID, message.Hook, message.OCIMainPID, message.Generator}
	for _, e := range n.journalEntries("--unit="+n.name, "--priority=info") {
		text := e.field("MESSAGE")
		own := slices.Contains(programs, e.field("SYSLOG_IDENTIFIER")) || regexp.MustCompile(`^(notify-mainpid|oci-mainpid[a-z-]*): `).MatchString(text)
		if own && !slices.ContainsFunc(kinds, func(k message.Kind) bool { return k.ID == e.field("MESSAGE_ID") }) {
			n.t.Errorf("in the unit's log: %s %s", e.field("SYSLOG_IDENTIFIER"), text)
		}
	}
}

// assertExplained checks that journalctl -x shows the catalog's text of a kind,
// with the unit's name in it.
func (n unit) assertExplained(kind message.Kind) {
	n.t.Helper()
	out := n.run("journalctl", "--no-pager", "--catalog", "--unit="+n.name, "MESSAGE_ID="+kind.ID)
	// In the message, in the subject and in the text.
	if !strings.Contains(out, "Defined-By: oci-mainpid-hook") || strings.Count(out, n.name) < 3 {
		n.t.Errorf("journalctl -x does not explain %s of %s:\n%s", kind.ID, n.name, out)
	}
	if regexp.MustCompile(`@[A-Z_]+@`).MatchString(out) {
		n.t.Errorf("a field is missing:\n%s", out)
	}
}

// TestJournalOfAStart: each start says once which process is the main process.
func TestJournalOfAStart(t *testing.T) {
	onStacks(t, func(m machine) {
		for i, mode := range []string{"mixed", "service", "user"} {
			m.everyOther(i, mode, func(m machine) {
				u := m.user()
				m.run("usermod", "--append", "--groups=systemd-journal", u.name)
				n := u.unit(service{mode: mode, options: "--log-driver=journald", more: "Environment=OCI_MAINPID_VERBOSE=1",
					command: `sh -c 'trap "exit 0" TERM; echo said by the container; sleep 1000 & wait'`})
				n.start()
				p := n.assertMainPIDIsConmon()
				id := n.stored(n.container).id
				n.assertSaid(message.MainProcess, `conmon `+p.conmon+` of container `+id[:12]+` \(`+n.container+`\) is the main process$`, map[string]string{
					"CONMON_PID": p.conmon, "CONTAINER_ID": id[:12], "CONTAINER_NAME": n.container, "CONTAINER_ID_FULL": "",
					"INVOCATION_ID": n.property("InvocationID"), "_UID": "0",
				})
				n.assertExplained(message.MainProcess)
				n.assertOnly(message.MainProcess)
				if out := n.run("oci-mainpid", "explain", n.name); !strings.Contains(strings.Join(strings.Fields(out), " "), "notify-mainpid took: conmon "+p.conmon) {
					m.t.Errorf("%s", out)
				}
				// None of it is taken for the container's own output.
				if logs := n.podman("logs", n.container); logs != "said by the container" {
					m.t.Errorf("podman logs: %s", logs)
				}
			})
		}
	})
}

// TestJournalOfAFailure: each error is in the unit's log once, with what it is
// about.
func TestJournalOfAFailure(t *testing.T) {
	onStacks(t, func(m machine) {
		m.share("no hook", func(m machine) {
			u := m.user()
			u.useHooks() // none
			n := u.unit(service{mode: "user"})
			n.startFails()
			n.assertSaid(message.NoMainPID, `no PID in the mainpid file .*oci-mainpid explain `+n.name, map[string]string{"_UID": "0", "CONMON_PID": ""})
			n.assertExplained(message.NoMainPID)
			n.assertOnly(message.NoMainPID)
		})
		for _, mode := range []string{"mixed", "user"} {
			m.share("a refused PID, "+mode, func(m machine) {
				n := m.user().unit(service{mode: mode})
				n.dropin(60, fmt.Sprintf("[Service]\nExecStartPre=+/bin/sh -c 'echo 1 >%s'\n", n.mainPIDFile()))
				m.systemctl("daemon-reload")
				n.startFails()
				e := n.assertSaid(message.Refused, `refused: process 1: runs as UID 0, not as the unit's user `, map[string]string{"CONMON_PID": "1", "CONTAINER_ID": "", "_UID": "0"})
				if e.field("INVOCATION_ID") == "" {
					m.t.Error("no INVOCATION_ID")
				}
				n.assertExplained(message.Refused)
				n.assertOnly(message.Refused)
			})
		}
		m.share("a user that does not exist", func(m machine) {
			n := m.user().unit(service{mode: "mixed"})
			n.editDropin(`notify-mainpid --user=\d+`, "notify-mainpid --timeout=1s --user=nobody-of-that-name")
			m.systemctl("daemon-reload")
			n.startFails()
			n.assertSaid(message.HelperFailed, `user "nobody-of-that-name" does not exist`, map[string]string{"_UID": "0"})
			n.assertExplained(message.HelperFailed)
			n.assertOnly(message.HelperFailed)
		})
		m.share("a wrong command line", func(m machine) {
			n := m.user().unit(service{mode: "mixed"})
			n.editDropin(`notify-mainpid --user=\d+`, "notify-mainpid --usr")
			m.systemctl("daemon-reload")
			n.startFails()
			// What comes after the mistake was not read: no unit is known.
			if log := n.journal(n.name, "MESSAGE_ID="+message.HelperFailed.ID); strings.Count(log, "\n") != 0 || !strings.Contains(log, "(see notify-mainpid --help)") {
				m.t.Errorf("%q", log)
			}
		})
		for i, c := range []struct{ mode, runtime string }{{"mixed", "crun"}, {"user", "crun"}, {"user", "runc"}, {"mixed", "runc"}} {
			m.everyOther(i, "the hook cannot open the file, "+c.mode+" with "+c.runtime, func(m machine) {
				n := m.user().unit(service{mode: c.mode, runtime: c.runtime})
				n.editDropin(`OpenFile=.*\n`, "")
				n.editDropin(`notify-mainpid --user`, "notify-mainpid --timeout=2s --user")
				m.systemctl("daemon-reload")
				n.startFails()
				if c.mode == "mixed" {
					e := n.assertSaid(message.HookFailed, `open .*permission denied.*OpenFile=`, map[string]string{"_UID": n.uid, "CONTAINER_NAME": n.container, "ERRNO": "13"})
					if len(e.field("CONTAINER_ID")) != 12 || e.field("CONMON_PID") == "" || e.field("INVOCATION_ID") == "" {
						m.t.Errorf("%v", e)
					}
					n.assertExplained(message.HookFailed)
				}
				// The user cannot speak for the unit from outside of it.
				if all := n.journalEntries("UNIT="+n.name, "MESSAGE_ID="+message.HookFailed.ID); len(all) != 1 {
					m.t.Errorf("%v", all)
				}
				if out := n.run("oci-mainpid", "explain", n.name); !strings.Contains(strings.Join(strings.Fields(out), " "), "Why it failed: oci-mainpid-hook: open ") {
					m.t.Errorf("%s", out)
				}
				n.assertOnly(message.HookFailed, message.NoMainPID)
			})
		}
		m.share("what notify-mainpid answered, the hook does not repeat", func(m machine) {
			n := m.user().unit(service{mode: "user", runtime: "crun"})
			n.editDropin(`notify-mainpid --user`, "notify-mainpid --conmon=/usr/local/bin/conmon --user")
			m.systemctl("daemon-reload")
			n.startFails()
			n.assertSaid(message.Refused, `refused: .*does not execute conmon`, map[string]string{"_UID": "0"})
			if all := m.journalEntries("_UID="+n.uid, "SYSLOG_IDENTIFIER="+message.Hook); len(all) != 0 {
				m.t.Errorf("%v", all)
			}
		})
		m.share("a Quadlet file that the generator refuses", func(m machine) {
			u := m.user()
			u.quadlets(map[string]string{"NAME.container": "[Container]\nImage=" + imageName + "\n[Service]\nUser=nobody-of-that-name\n"})
			n := u.quadletUnit("NAME.service", "NAME")
			if r := n.try("systemctl", "start", n.name); r.status == 0 {
				m.t.Fatalf("started, with main PID %s", n.property("MainPID"))
			}
			const reason = `user "nobody-of-that-name" does not exist`
			n.assertSaid(message.NotStarted, `not started: `+reason, map[string]string{"_UID": "0", "INVOCATION_ID": n.property("InvocationID")})
			n.assertExplained(message.NotStarted)
			// Once for each time that units were read.
			all := n.entries(message.UnitRefused)
			if len(all) == 0 || !strings.Contains(all[0].field("MESSAGE"), n.name+": will not start: "+reason) || all[0].field("UNIT") != n.name {
				m.t.Errorf("%v", all)
			}
			n.assertExplained(message.UnitRefused)
		})
	})
}

// TestVerbose: a unit that asks for it has each step in its log.
func TestVerbose(t *testing.T) {
	onStacks(t, func(m machine) {
		for _, c := range []struct {
			mode, runtime string
			steps         []string // by program
		}{
			{"mixed", "crun", []string{
				`notify-mainpid: .*making `, `oci-mainpid-hook: .*container [0-9a-f]{12} is running, process \d+; its conmon is process \d+`,
				`oci-mainpid-hook: .*took .* from process \d+`, `oci-mainpid-hook: .*wrote \d+`, `notify-mainpid: .*the mainpid file has \d+, after `,
				`notify-mainpid: .*runs as UID \d+, executes conmon, has INVOCATION_ID=`, `notify-mainpid: .*systemd answered after `,
			}},
			{"user", "runc", []string{`oci-mainpid-hook: .*is created, process`, `oci-mainpid-hook: .*held podman for .* until notify-mainpid answered`, `notify-mainpid: .*systemd answered`}},
		} {
			m.share(c.mode+" with "+c.runtime, func(m machine) {
				n := m.user().unit(service{mode: c.mode, runtime: c.runtime, more: "Environment=OCI_MAINPID_VERBOSE=1"})
				n.start()
				n.assertMainPIDIsConmon()
				n.stop()
				var log strings.Builder
				for _, e := range n.journalEntries("UNIT="+n.name, "PRIORITY=7") {
					fmt.Fprintf(&log, "%s: %s\n", e.field("SYSLOG_IDENTIFIER"), e.field("MESSAGE"))
					if e.field("MESSAGE_ID") != "" {
						m.t.Errorf("%v", e)
					}
				}
				for _, step := range c.steps {
					if !regexp.MustCompile(`(?m)^` + step).MatchString(log.String()) {
						m.t.Errorf("no %q in\n%s", step, &log)
					}
				}
			})
		}
		m.share("not asked for", func(m machine) {
			n := m.user().unit(service{mode: "mixed"})
			n.start()
			if all := n.journalEntries("UNIT="+n.name, "PRIORITY=7", "_TRANSPORT=journal", "SYSLOG_IDENTIFIER="+message.NotifyMainPID, "SYSLOG_IDENTIFIER="+message.Hook); len(all) != 0 {
				m.t.Errorf("%v", all)
			}
		})
		m.share("oci-mainpid generate --verbose", func(m machine) {
			u := m.userWithoutImage()
			n := u.unitWithoutDropin(service{mode: "mixed"})
			args := []string{"oci-mainpid", "generate", "--dry-run", "--user=" + u.name, path.Join(unitDir, n.name)}
			quiet, verbose := m.try(args...), m.try(append(args, "--verbose")...)
			if quiet.stdout != verbose.stdout || strings.Contains(quiet.stderr, "is UID") || !strings.Contains(verbose.stderr, "oci-mainpid: user "+u.name+" is UID "+u.uid) {
				m.t.Errorf("%v\n%v", quiet, verbose)
			}
		})
		m.share("the generator at log level debug", func(m machine) {
			u := m.userWithoutImage()
			u.quadlets(map[string]string{"NAME.container": "[Container]\nImage=" + imageName + "\n[Service]\nUser=" + u.name + "\n"})
			const generator = "/usr/lib/systemd/system-generators/oci-mainpid-generator"
			quiet, verbose := m.try(generator, "--dry-run"), m.try("env", "SYSTEMD_LOG_LEVEL=debug", generator, "--dry-run")
			if want := "UID " + u.uid + ", Cgroup=mixed"; strings.Contains(quiet.stderr, want) || !strings.Contains(verbose.stderr, want) {
				m.t.Errorf("%v\n%v", quiet, verbose)
			}
		})
	})
}
