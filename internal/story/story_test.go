package story

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/internal/terminal"
)

var update = flag.Bool("update", false, "write the golden files")

// recorded reads entries of a real journal.
func recorded(t *testing.T, name string) []journal.Entry {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var entries []journal.Entry
	for line := range strings.Lines(string(b)) {
		var f map[string]string
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry(t, f))
	}
	return entries
}

func entry(t *testing.T, f map[string]string) journal.Entry {
	t.Helper()
	at, err := time.ParseDuration(f["__MONOTONIC_TIMESTAMP"] + "us")
	if err != nil {
		t.Fatal(err)
	}
	realtime, err := time.ParseDuration(f["__REALTIME_TIMESTAMP"] + "us")
	if err != nil {
		t.Fatal(err)
	}
	return journal.Entry{Time: time.UnixMicro(realtime.Microseconds()).UTC(), Monotonic: at, Message: f["MESSAGE"], Fields: f}
}

// at parses the clock of the recorded boot.
func at(t *testing.T, s string) time.Duration {
	t.Helper()
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// command is a command of a recorded unit.
func command(t *testing.T, pid, status int, from, to string, args ...string) manager.Command {
	t.Helper()
	c := manager.Command{Path: args[0], Arguments: args, StartedMonotonic: at(t, from), EndedMonotonic: at(t, to), PID: pid, Status: status}
	if to != "" {
		c.Code = 1
	}
	return c
}

// Of the commands that were recorded.
const (
	podmanPath = "/usr/bin/podman"
	notifyPath = "/usr/libexec/oci-mainpid/notify-mainpid"
)

func bare() []string {
	return []string{podmanPath, "run", "--name=bare", "--replace", "--rm", "--cgroups=no-conmon", "--sdnotify=conmon", "-d", "localhost/busybox", "sh", "-c", "while :; do sleep 1; done"}
}

// ours returns what podman runs with a drop-in of ours.
func ours(name, cgroups string) []string {
	return []string{podmanPath, "run", "--name=" + name, "--replace", "--rm", "--cgroups=" + cgroups, "--sdnotify=conmon", "-d", "localhost/busybox", "sh", "-c", `trap "exit 0" TERM; echo hello from ` + name + `; while :; do sleep 1; done`}
}

func mode(c dropin.Cgroup) dropin.Origin {
	return dropin.Origin{Options: dropin.Options{Cgroup: c}}
}

func units(t *testing.T) map[string]*manager.Unit {
	return map[string]*manager.Unit{
		"mixed": {
			Name: "mix.service", Origin: mode(dropin.Mixed), User: "web", UID: 1000, Type: "notify", Delegate: true, ActiveState: "active", SubState: "running", Result: "success",
			InvocationID: "0b5d4310753b4c0b9792f871ca329ac6", MainPID: 11252,
			InactiveExit: at(t, "1h31m49.295974s"), ActiveEnter: at(t, "1h31m49.552574s"), MainStart: at(t, "1h31m49.45s"),
			Pre: []manager.Command{
				command(t, 11216, 0, "1h31m49.295262s", "1h31m49.347622s", podmanPath, "unshare", "true"),
				command(t, 11226, 0, "1h31m49.347877s", "1h31m49.363262s", notifyPath, "--prepare", "--unit=mix.service", "/run/oci-mainpid/mix.service/mainpid", "/run/oci-mainpid/mix.service/result"),
			},
			Start: []manager.Command{command(t, 11232, 0, "1h31m49.363441s", "", ours("mix", "enabled")...)},
			Post:  []manager.Command{command(t, 11261, 0, "1h31m49.492513s", "1h31m49.552565s", notifyPath, "--user=1000", "--unit=mix.service", "/run/oci-mainpid/mix.service/mainpid", "/run/oci-mainpid/mix.service/result")},
		},
		"user": {
			Name: "usr.service", Origin: mode(dropin.User), User: "db", UID: 1001, Type: "exec", ActiveState: "active", SubState: "running", Result: "success",
			InvocationID: "24987b079d444ffe9e37bc3da6727c26", MainPID: 11143, Environment: []string{"OCI_MAINPID_RESULT=/run/oci-mainpid/usr.service/result"},
			InactiveExit: at(t, "1h31m46.835981s"), ActiveEnter: at(t, "1h31m47.125909s"), MainStart: at(t, "1h31m47.05s"),
			Pre:   []manager.Command{command(t, 11112, 0, "1h31m46.832998s", "1h31m46.856772s", notifyPath, "--prepare", "--unit=usr.service", "/run/oci-mainpid/usr.service/mainpid", "/run/oci-mainpid/usr.service/result")},
			Start: []manager.Command{command(t, 11116, 0, "1h31m46.85696s", "", ours("usr", "no-conmon")...)},
			Post:  []manager.Command{command(t, 11118, 0, "1h31m46.874319s", "1h31m47.12589s", notifyPath, "--user=1001", "--timeout=infinity", "--unit=usr.service", "/run/oci-mainpid/usr.service/mainpid", "/run/oci-mainpid/usr.service/result")},
		},
		"nohook": {
			Name: "usr.service", Origin: mode(dropin.User), User: "db", UID: 1001, Type: "exec", ActiveState: "failed", SubState: "failed", Result: "exit-code",
			InvocationID: "e31e839aa46c4f96b9371c6725f5ba27", Environment: []string{"OCI_MAINPID_RESULT=/run/oci-mainpid/usr.service/result"},
			InactiveExit: at(t, "1h31m51.644327s"), MainStart: at(t, "1h31m51.648769s"),
			Pre:   []manager.Command{command(t, 11331, 0, "1h31m51.641643s", "1h31m51.648649s", notifyPath, "--prepare", "--unit=usr.service", "/run/oci-mainpid/usr.service/mainpid", "/run/oci-mainpid/usr.service/result")},
			Start: []manager.Command{command(t, 11335, 0, "1h31m51.648769s", "1h31m51.750002s", ours("usr", "no-conmon")...)},
			Post:  []manager.Command{command(t, 11337, 3, "1h31m51.654242s", "1h31m51.751383s", notifyPath, "--user=1001", "--timeout=infinity", "--unit=usr.service", "/run/oci-mainpid/usr.service/mainpid", "/run/oci-mainpid/usr.service/result")},
		},
		"cold": {
			Name: "bare.service", User: "db", UID: 1001, Type: "notify", ActiveState: "failed", SubState: "failed", Result: "protocol",
			InvocationID: "9132e012a9bb41bca4c9fb1a46a7b406", InactiveExit: at(t, "1h31m45.191301s"), MainStart: at(t, "1h31m45.183774s"),
			Start: []manager.Command{command(t, 11018, 0, "1h31m45.183774s", "1h31m45.470118s", bare()...)},
		},
		// systemd forgot the unit when it was over.
		"warm": {
			Name: "bare.service", User: "db", UID: 1001, Type: "notify", ActiveState: "inactive", SubState: "dead", Result: "success",
			Start: []manager.Command{command(t, 0, 0, "", "", bare()...)},
		},
	}
}

func TestStoriesOfRealStarts(t *testing.T) {
	for name, unit := range units(t) {
		t.Run(name, func(t *testing.T) {
			s := Tell(unit.Name, unit, recorded(t, name))
			for _, o := range []struct {
				suffix  string
				unicode bool
			}{{".txt", true}, {".ascii.txt", false}} {
				if !o.unicode && name != "mixed" {
					continue
				}
				var b bytes.Buffer
				s.Write(&terminal.Output{Writer: &b, Width: 80, Unicode: o.unicode})
				golden(t, name+o.suffix, b.Bytes())
			}
			if name == "nohook" {
				golden(t, name+".svg", s.SVG())
			}
		})
	}
}

// TestReasonsOfRealFailures has units on Debian 13 that failed, or ended, each for
// a reason of its own. What systemd and the journal had is recorded.
func TestReasonsOfRealFailures(t *testing.T) {
	for name, c := range map[string]struct {
		outcome                   Outcome
		reason, remedy, exit, now string
		output                    []string
	}{
		"portused": {StartFailed, "podman: Failed to bind port 8080 (Address already in use)", "another process listens on that port", "", "failed since ", nil},
		"portlow":  {StartFailed, "pasta.avx2: Failed to bind port 80 (Permission denied)", "ip_unprivileged_port_start", "", "failed since ", nil},
		"touch":    {StartFailed, "container: ended with exit status 1", "", "ended with exit status 1", "failed since ", []string{"touch: /p/x: Permission denied"}},
		// systemd does not see the end of a conmon that it does not watch yet.
		"touchu":     {StartFailed, "container: ended before the hook", "", "ended before the hook could look at it", "failed since ", []string{"touch: /p/x: Permission denied"}},
		"exited":     {Started, "container: ended with exit status 3", "", "ended with exit status 3", "failed since ", []string{"reading configuration", "cannot open /etc/app.conf"}},
		"nojson":     {StartFailed, "podman: started container 720f24501440, but no hook gave", "oci-mainpid check nojson.service", "", "failed since ", nil},
		"nojsonu":    {StartFailed, "podman: started container 06593ab396fe, but no hook gave", "oci-mainpid check nojsonu.service", "", "failed since ", nil},
		"nohome":     {StartFailed, "podman: cannot resolve /home/nohome", "home directory is not there", "", "failed since ", nil},
		"roothome":   {StartFailed, "podman: stat /home/nohome/.config", "or is not the user's", "", "failed since ", nil},
		"pre":        {StartFailed, `systemd: sh of ExecStartPre= failed: exit status 4; its last line is "migration: no such database"`, "", "", "failed since ", nil},
		"dependency": {StartFailed, "systemd: Dependency failed for dep.service", "depdb.service did not start; to see why: oci-mainpid explain depdb.service", "", "", nil},
		"watchdog":   {Started, "systemd: Watchdog timeout (limit 2s)!", "WATCHDOG=1", "lost its conmon, the unit's main process: killed by signal 6/ABRT", "failed since ", nil},
		"loop":       {StartFailed, "container: ended with exit status 3", "", "ended with exit status 3", "waits to be started again (RestartSec=2s, restarts so far: 1)", []string{"cannot open /etc/app.conf"}},
		"restarting": {Started, "container: ended with exit status 3", "", "ended with exit status 3", "waits to be started again (RestartSec=3s, restarts so far: 1)", []string{"cannot open /etc/app.conf"}},
		"oneshot":    {Started, "", "", "", "over, with success: a unit with Type=oneshot", nil},
		"health":     {Started, "", "", "", "", nil},
		"stopped":    {Started, "", "", "", "stopped: systemd was told to stop it at +2.33 s", nil},
		"killed":     {Started, "container: lost its conmon", "", "lost its conmon, the unit's main process: killed by signal 9/KILL", "failed since ", nil},
		"noimage":    {StartFailed, "podman: Error: initializing source docker://localhost/nosuch", "podman has no such image for this user", "", "failed since ", nil},
		"noenvfile":  {StartFailed, "systemd: Failed to load environment files: No such file or directory", "EnvironmentFile=", "", "failed since ", nil},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join("testdata", name+".unit.json"))
			if err != nil {
				t.Fatal(err)
			}
			unit := &manager.Unit{}
			if err := json.Unmarshal(b, unit); err != nil {
				t.Fatal(err)
			}
			for property, value := range unit.Properties {
				if n, ok := value.(float64); ok { // as JSON has it
					unit.Properties[property] = uint64(n)
				}
			}
			s := Tell(unit.Name, unit, recorded(t, name))
			var text bytes.Buffer
			s.Write(&terminal.Output{Writer: &text, Width: 80})
			t.Logf("\n%s", &text)
			if name == "health" && !strings.Contains(text.String(), "unhealthy (11 times more, until +30.69 s)") {
				t.Error("health checks are told one by one")
			}
			if s.Outcome != c.outcome || !strings.HasPrefix(s.Reason, c.reason) || c.reason == "" && s.Reason != "" || !strings.Contains(s.Remedy, c.remedy) ||
				s.Exit != c.exit || !strings.HasPrefix(s.Now, c.now) || c.now == "" && s.Now != "" || !slices.Equal(s.Output, c.output) {
				t.Errorf("%s\nreason %s\nremedy %s\nexit %s\nnow %s\noutput %q", s.Outcome, s.Reason, s.Remedy, s.Exit, s.Now, s.Output)
			}
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got:\n%s", name, got)
	}
	if bytes.Contains(got, []byte("%!")) {
		t.Errorf("%s: a wrong format", name)
	}
	for line := range strings.Lines(string(got)) {
		if filepath.Ext(name) != ".txt" {
			break
		}
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
			t.Errorf("%s: %d columns: %s", name, n, line)
		}
	}
}

// failedStart is a start of web.service with some messages in it.
func failedStart(t *testing.T, messages ...map[string]string) []journal.Entry {
	t.Helper()
	entries := []journal.Entry{entry(t, map[string]string{
		"MESSAGE": "Starting web.service...", "MESSAGE_ID": msgStarting, "_PID": "1", "_UID": "0", "UNIT": "web.service", "INVOCATION_ID": "aa",
		"__MONOTONIC_TIMESTAMP": "1000000", "__REALTIME_TIMESTAMP": "1700000000000000",
	})}
	for _, m := range messages {
		m["__MONOTONIC_TIMESTAMP"], m["__REALTIME_TIMESTAMP"] = "1500000", "1700000000500000"
		entries = append(entries, entry(t, m))
	}
	return append(entries, entry(t, map[string]string{
		"MESSAGE": "Failed to start web.service.", "MESSAGE_ID": msgNotStart, "_PID": "1", "_UID": "0", "UNIT": "web.service", "INVOCATION_ID": "aa",
		"__MONOTONIC_TIMESTAMP": "2000000", "__REALTIME_TIMESTAMP": "1700000001000000",
	}))
}

func TestReasons(t *testing.T) {
	unit := &manager.Unit{Name: "web.service", UID: 1000, InvocationID: "aa"}
	manager := func(message string) map[string]string {
		return map[string]string{"MESSAGE": message, "_PID": "1", "_UID": "0", "UNIT": "web.service", "INVOCATION_ID": "aa"}
	}
	process := func(uid, comm, message string) map[string]string {
		return map[string]string{"MESSAGE": message, "_PID": "7", "_UID": uid, "_COMM": comm, "_TRANSPORT": "stdout", "SYSLOG_IDENTIFIER": "podman", "_SYSTEMD_INVOCATION_ID": "aa"}
	}
	// What our programs send is found by its kind. journald may not know whose
	// process it was.
	own := func(uid string, k message.Kind, text string) map[string]string {
		return map[string]string{"MESSAGE": "web.service: " + text, "MESSAGE_ID": k.ID, "_PID": "7", "_UID": uid, "_TRANSPORT": "journal", "SYSLOG_IDENTIFIER": k.Program, "UNIT": "web.service", "INVOCATION_ID": "aa", "CONTAINER_NAME": "web"}
	}
	result := manager("web.service: Failed with result 'exit-code'.")
	other := own("0", message.Refused, "refused: everything")
	other["UNIT"] = "other.service"
	for name, c := range map[string]struct {
		messages []map[string]string
		want     string
	}{
		"systemd's word alone": {[]map[string]string{result}, "systemd: Failed with result 'exit-code'."},
		"podman's": {
			[]map[string]string{process("1000", "podman", "Error: short-name \"x\" did not resolve to an alias"), process("1000", "podman", "Error: no container with name or ID"), result},
			`podman: Error: short-name "x" did not resolve to an alias`,
		},
		"notify-mainpid refuses": {
			[]map[string]string{process("0", "notify-mainpid", "notify-mainpid: web.service: refused: process 9: runs as UID 0, not as the unit's user 1000"), manager("web.service: Control process exited, code=exited, status=1/FAILURE"), result},
			"notify-mainpid: refused: process 9: runs as UID 0, not as the unit's user 1000",
		},
		"a container says that notify-mainpid refuses": {
			[]map[string]string{process("1000", "sh", "notify-mainpid: web.service: refused: everything"), result},
			"systemd: Failed with result 'exit-code'.",
		},
		"a container says what systemd would": {
			[]map[string]string{process("1000", "sh", "New main PID 7 does not belong to service, refusing."), result},
			"systemd: Failed with result 'exit-code'.",
		},
		"the hook": {
			[]map[string]string{process("1000", "podman", "time=x msg=\"oci-mainpid-hook: web.service: open /run/x: permission denied\""), process("1000", "podman", "Error: OCI runtime error"), result},
			`oci-mainpid-hook: time=x msg="oci-mainpid-hook: web.service: open /run/x: permission denied"`,
		},
		"notify-mainpid refuses, by the journal": {
			[]map[string]string{own("0", message.Refused, "refused: process 9: runs as UID 0"), own("0", message.NoMainPID, "no PID"), result},
			"notify-mainpid: refused: process 9: runs as UID 0",
		},
		"the hook, by the journal": {
			[]map[string]string{own("1000", message.HookFailed, "open /run/x: permission denied"), own("0", message.NoMainPID, "no PID in the mainpid file"), result},
			"oci-mainpid-hook: open /run/x: permission denied",
		},
		"a user says, by the journal, that notify-mainpid refuses": {
			[]map[string]string{own("1000", message.Refused, "refused: everything"), result},
			"systemd: Failed with result 'exit-code'.",
		},
		"another user's hook": {
			[]map[string]string{own("1001", message.HookFailed, "open /run/x: permission denied"), result},
			"systemd: Failed with result 'exit-code'.",
		},
		"notify-mainpid of another unit, with a forged INVOCATION_ID": {
			[]map[string]string{other, result},
			"systemd: Failed with result 'exit-code'.",
		},
		"the timeout": {
			[]map[string]string{manager("web.service: start operation timed out. Terminating."), manager("web.service: Failed with result 'timeout'.")},
			"systemd: start operation timed out. Terminating.",
		},
	} {
		if s := Tell("web.service", unit, failedStart(t, c.messages...)); s.Reason != c.want || s.Outcome != "failed" {
			t.Errorf("%s: %s: %q, want %q", name, s.Outcome, s.Reason, c.want)
		}
	}
}

// TestRemedies has messages that were seen on Debian 13, or are in podman's or
// systemd's source, beside others that are not the cause.
func TestRemedies(t *testing.T) {
	podman := func(text string) map[string]string {
		return map[string]string{"MESSAGE": text, "_PID": "7", "_UID": "1000", "_COMM": "podman", "_TRANSPORT": "stdout", "_SYSTEMD_INVOCATION_ID": "aa"}
	}
	systemd := func(text string) map[string]string {
		return map[string]string{"MESSAGE": "web.service: " + text, "_PID": "1", "_UID": "0", "UNIT": "web.service", "INVOCATION_ID": "aa"}
	}
	for want, messages := range map[string][]map[string]string{
		"the user's home directory is not there, or": {
			podman(`Error: creating runtime static files directory "/home/web/.local/share/containers/storage/libpod": mkdir /home/web/.local: permission denied`),
		},
		"the user's home directory":  {podman("stat /home/web/.config: permission denied"), podman("Error: no such container")},
		"another process listens":    {podman("Error: rootlessport listen tcp 0.0.0.0:8080: bind: address already in use")},
		"users may not bind ports":   {podman("Error: pasta failed with exit code 1:"), podman("Listen failed for HOST TCP port */80: Permission denied")},
		"another process listens on": {podman("Error: pasta failed with exit code 1:"), podman("Listen failed for HOST TCP port */8080: Address already in use")},
		"users may not bind":         {podman("Error: rootlessport cannot expose privileged port 80, you can add 'net.ipv4.ip_unprivileged_port_start=80' to /etc/sysctl.conf")},
		"there was not enough memory": {
			podman("ID"), systemd("A process of this unit has been killed by the OOM killer."), systemd("Main process exited, code=killed, status=9/KILL"), podman("Error: conmon exited prematurely"),
		},
		"systemd could not run the command": {
			{"MESSAGE": "web.service: Failed at step EXEC spawning podman: No such file or directory", "_PID": "7", "_UID": "1000", "_COMM": "(podman)", "_EXE": "/usr/lib/systemd/systemd-executor", "_SYSTEMD_INVOCATION_ID": "aa"},
			systemd("Main process exited, code=exited, status=203/EXEC"),
		},
	} {
		s := Tell("web.service", &manager.Unit{Name: "web.service", UID: 1000, InvocationID: "aa"}, failedStart(t, append(messages, systemd("Failed with result 'exit-code'."))...))
		if !strings.HasPrefix(s.Remedy, want) {
			t.Errorf("%q: %q -> %q", want, s.Reason, s.Remedy)
		}
	}
}

// TestForgedWords: what a user's process, or another of root's, says in the words
// of systemd or notify-mainpid is told as theirs, and decides nothing.
func TestForgedWords(t *testing.T) {
	const accepted = "New main PID 7 does not belong to service, but we'll accept it as the request to change it came from a privileged process."
	const became = "web.service: conmon 7 of container 123 (web) is the main process"
	with := func(f map[string]string, more ...string) map[string]string {
		m := map[string]string{"_PID": "7", "_UID": "1000", "_TRANSPORT": "journal", "_SYSTEMD_INVOCATION_ID": "aa"}
		for k, v := range f {
			m[k] = v
		}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	for name, c := range map[string]struct {
		entry  map[string]string
		source string // "" if it must not be told at all
	}{
		"SYSLOG_IDENTIFIER=systemd":         {with(nil, "MESSAGE", accepted, "SYSLOG_IDENTIFIER", "systemd", "_COMM", "logger"), "logger"},
		"the same, of a process that ended": {with(nil, "MESSAGE", accepted, "SYSLOG_IDENTIFIER", "systemd"), "UID 1000: systemd"},
		"SYSLOG_IDENTIFIER=notify-mainpid":  {with(nil, "MESSAGE", "took: "+became, "SYSLOG_IDENTIFIER", "notify-mainpid"), "UID 1000: notify-mainpid"},
		"a process called systemd":          {with(nil, "MESSAGE", accepted, "_COMM", "systemd"), "UID 1000: systemd"},
		"a process called notify-mainpid":   {with(nil, "MESSAGE", "notify-mainpid: "+became, "_COMM", "notify-mainpid"), "UID 1000: notify-mainpid"},
		"a process called container":        {with(nil, "MESSAGE", accepted, "_COMM", "container"), "UID 1000: container"},
		"with its MESSAGE_ID":               {with(nil, "MESSAGE", became, "MESSAGE_ID", message.MainProcess.ID, "_COMM", "sh", "UNIT", "web.service", "INVOCATION_ID", "aa"), "sh"},
		"a set-user-ID program of that name": {
			with(nil, "MESSAGE", "notify-mainpid: "+became, "_UID", "0", "_COMM", "notify-mainpid", "_EXE", "/usr/bin/su"), "su",
		},
		"a script of root's":         {with(nil, "MESSAGE", "notify-mainpid: "+became, "_UID", "0", "_COMM", "sh"), "sh"},
		"CONTAINER_NAME= of another": {with(nil, "MESSAGE", "Error: all is lost", "CONTAINER_NAME", "web", "_COMM", "sh"), "sh"},
		"what PID 1 quotes": {
			with(nil, "MESSAGE", "web.service: Got notification message from PID 7: STATUS="+accepted, "_PID", "1", "_UID", "0", "UNIT", "web.service", "INVOCATION_ID", "aa"), "systemd",
		},
		"another user who names unit and start": {
			map[string]string{"MESSAGE": "Error: all is lost", "_PID": "7", "_UID": "1001", "UNIT": "web.service", "INVOCATION_ID": "aa", "OBJECT_SYSTEMD_UNIT": "web.service"}, "",
		},
	} {
		unit := &manager.Unit{Name: "web.service", UID: 1000, InvocationID: "aa"}
		s := Tell("web.service", unit, failedStart(t, c.entry))
		source := ""
		for _, e := range s.Events {
			if strings.HasPrefix(e.Text, "Starting ") || strings.HasPrefix(e.Text, "Failed to start ") {
				continue
			}
			if source = e.Source; e.Verdict == Took || e.rank != 0 {
				t.Errorf("%s: %+v", name, e)
			}
		}
		if source != c.source {
			t.Errorf("%s: told by %q, not %q", name, source, c.source)
		}
		var b bytes.Buffer
		s.Write(&terminal.Output{Writer: &b, Width: 200})
		if strings.Contains(b.String(), "  took: ") {
			t.Errorf("%s: looks as if systemd took it:\n%s", name, &b)
		}
	}
}

// TestFlood: 5,200 messages of a user's hide neither what podman nor what systemd
// said.
func TestFlood(t *testing.T) {
	var messages []map[string]string
	for i := range 5200 {
		messages = append(messages, map[string]string{"MESSAGE": fmt.Sprintf("word %d", i), "_PID": "7", "_UID": "1000", "_COMM": fmt.Sprintf("name%d", i), "_SYSTEMD_INVOCATION_ID": "aa"})
	}
	messages = append(messages,
		map[string]string{"MESSAGE": "Error: no such image", "_PID": "8", "_UID": "1000", "_COMM": "podman", "_SYSTEMD_INVOCATION_ID": "aa"},
		map[string]string{"MESSAGE": "web.service: Failed with result 'exit-code'.", "_PID": "1", "_UID": "0", "UNIT": "web.service", "INVOCATION_ID": "aa"})
	s := Tell("web.service", nil, failedStart(t, messages...))
	if s.Reason != "podman: Error: no such image" || s.LeftOut["others"] != 5200-maxFirst-maxLast || len(s.LeftOut) != 1 || len(s.Events) > 100 {
		t.Errorf("%q, left out %v, %d events", s.Reason, s.LeftOut, len(s.Events))
	}
	var b bytes.Buffer
	s.Write(&terminal.Output{Writer: &b, Width: 80})
	if !strings.Contains(b.String(), "5160 more messages are left out here (others)\nAll messages: journalctl -u web.service\n") {
		t.Errorf("%s", &b)
	}
}

func TestConmonIsNotTakenForPodman(t *testing.T) {
	unit := &manager.Unit{
		Name: "web.service", User: "web", UID: 1000, Type: "notify", Delegate: true, ActiveState: "failed", Result: "exit-code",
		InvocationID: "aa", InactiveExit: at(t, "1s"),
		Pre: []manager.Command{command(t, 40, 0, "1.000100s", "1.2005s", notifyPath, "--prepare")},
		// As it is once conmon has ended, whom systemd had as the main process.
		Start: []manager.Command{command(t, 50, 0, "1.45s", "1.9s", ours("web", "enabled")...)},
		Post:  []manager.Command{command(t, 60, 3, "1.600001s", "1.800001s", notifyPath, "--user=1000")},
	}
	s := Tell(unit.Name, unit, failedStart(t))
	found := false
	for _, e := range s.Events {
		found = found || e.Text == "conmon, process 50, was started by podman" && e.At == 450*time.Millisecond
		if strings.Contains(e.Text, "started process 50") {
			t.Errorf("%+v", e)
		}
	}
	if !found {
		t.Errorf("%+v", s.Events)
	}
	for _, step := range s.Steps {
		if step.Name == "podman run" && (step.From != 200500*time.Microsecond || step.To != 600001*time.Microsecond) {
			t.Errorf("%+v", step)
		}
	}
}

func TestLastReload(t *testing.T) {
	const program = "/usr/bin/oci-mainpid"
	reload := func(status int, finish string) *manager.Unit {
		return &manager.Unit{Reload: []manager.Command{
			command(t, 70, 0, "100s", "100.1s", notifyPath, "--reload", "--prepare"),
			command(t, 71, status, "100.1s", "101s", program, "replace", "start"),
			command(t, 72, 0, "101s", "101.2s", notifyPath, "--reload", "--user=1000"),
			command(t, 73, 0, "101.2s", "102s", program, "replace", "finish"),
			command(t, 74, status, finish, "102.5s", program, "replace", "finish", "--last"),
		}}
	}
	for _, c := range []struct {
		name string
		unit *manager.Unit
		want Reload
		text string
	}{
		{"good", reload(0, "102s"), Reload{Took: 2500 * time.Millisecond, Ended: true}, "The last reload took 2.50 s"},
		{"failed", reload(1, "102s"), Reload{Took: 2500 * time.Millisecond, Ended: true, Failed: true}, "The last reload failed after 2.50 s: the container of before goes on"},
		{"cut off, after one that was not", reload(0, "90s"), Reload{Took: 2 * time.Second}, "The last reload goes on, since 2.00 s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := lastReload(c.unit)
			if r == nil || r.Took != c.want.Took || r.Ended != c.want.Ended || r.Failed != c.want.Failed {
				t.Fatalf("got %+v", r)
			}
			var text strings.Builder
			r.write(&terminal.Output{Writer: &text, Width: 80})
			if got := text.String(); !strings.Contains(got, c.text) || !strings.Contains(got, "verify and move") {
				t.Errorf("got %s", got)
			}
		})
	}
	if r := lastReload(&manager.Unit{Reload: []manager.Command{command(t, 70, 0, "1s", "2s", "/bin/true")}}); r != nil {
		t.Errorf("a reload of the unit's own: %+v", r)
	}
}

func TestNothingReachesTheTerminal(t *testing.T) {
	evil := "\x1b]0;owned\a\x1b[2J\u009b31m\r\nFAKE LINE" + strings.Repeat("x", 100000)
	s := Tell("web.service", nil, failedStart(t,
		map[string]string{"MESSAGE": evil, "_PID": "7", "_UID": "1000", "SYSLOG_IDENTIFIER": evil, "_COMM": "sh", "_SYSTEMD_INVOCATION_ID": "aa"},
		map[string]string{"MESSAGE": "oci-mainpid-hook: " + evil, "_PID": "7", "_UID": "1000", "_COMM": "sh", "_SYSTEMD_INVOCATION_ID": "aa"},
	))
	var b bytes.Buffer
	s.Write(&terminal.Output{Writer: &b, Width: 80})
	if strings.ContainsAny(b.String(), "\x1b\a\r\u009b") {
		t.Errorf("%q", b.String())
	}
	if n := strings.Count(b.String(), "\n"); n > 60 {
		t.Errorf("%d lines", n)
	}
	svg := s.SVG()
	if bytes.ContainsAny(svg, "\x1b\a\r\u009b") {
		t.Errorf("%q", svg)
	}
	decoder := xml.NewDecoder(bytes.NewReader(svg))
	for {
		if _, err := decoder.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestWithoutAnything(t *testing.T) {
	s := Tell("web.service", nil, nil)
	if s.Outcome != "starting" || len(s.Events) != 0 {
		t.Errorf("%+v", s)
	}
	var b bytes.Buffer
	s.Write(&terminal.Output{Writer: &b, Width: 80})
	s.SVG()
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 ms", 0: "0 ms", 1234 * time.Microsecond: "1.2 ms", 15400 * time.Microsecond: "15 ms",
		1234 * time.Millisecond: "1.23 s", 95 * time.Second: "95.00 s", 125 * time.Second: "2m5s",
	} {
		if got := duration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestGridStep(t *testing.T) {
	for whole, want := range map[time.Duration]time.Duration{
		time.Microsecond:        200 * time.Nanosecond,
		7 * time.Millisecond:    time.Millisecond,
		time.Second:             200 * time.Millisecond,
		1170 * time.Millisecond: 200 * time.Millisecond,
		30 * time.Second:        5 * time.Second,
	} {
		if got := gridStep(whole); got != want {
			t.Errorf("%v: %v, not %v", whole, got, want)
		}
	}
}
