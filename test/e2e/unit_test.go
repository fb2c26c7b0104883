//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// service is a unit as an administrator would write it.
type service struct {
	mode      string // of oci-mainpid generate --cgroup=
	cgroups   string // of podman run --cgroups=; what suits the mode, if empty
	runtime   string // of podman --runtime=; podman's own choice, if empty
	options   string // more options of podman run
	command   string // of the container; if empty, one that sleeps
	container string // the container's name; web, if empty
	more      string // more lines of [Service]
	template  bool
}

// The commands of containers. As PID 1, a program without a handler ignores
// the signal.
const (
	sleeping  = `sh -c 'trap "exit 0" TERM; sleep 1000 & wait'`
	exiting7  = `sh -c 'trap "exit 7" USR1; sleep 1000 & wait'`
	container = "web"
)

// text returns the unit file.
func (s service) text() string {
	podman := "podman"
	if s.runtime != "" {
		podman += " --runtime=" + s.runtime
	}
	run := fmt.Sprintf("run --rm -d --replace --name %s --sdnotify=conmon --cgroups=%s", s.container, s.cgroups)
	if s.options != "" {
		run += " " + s.options
	}
	return fmt.Sprintf(`[Unit]
Description=A service in a container
[Service]
Type=notify
ExecStart=%[1]s %[2]s %[3]s %[4]s
ExecStop=podman stop --ignore --time=5 %[5]s
ExecStopPost=podman rm --force --ignore --time=0 %[5]s
%[6]s
[Install]
WantedBy=multi-user.target
`, podman, run, imageName, s.command, s.container, s.more)
}

func (s service) withDefaults() service {
	if s.cgroups == "" {
		s.cgroups = map[string]string{"mixed": "enabled", "service": "split", "user": "no-conmon"}[s.mode]
	}
	if s.command == "" {
		s.command = sleeping
	}
	if s.container == "" {
		s.container = container
	}
	return s
}

// unit is a service that systemd knows and oci-mainpid gave to a user.
type unit struct {
	user
	name      string // with @ before the dot for a template
	container string
}

// unitDir is the administrator's directory of units.
const unitDir = "/etc/systemd/system"

// unit makes a unit for the service, and the drop-in with which it runs as the
// user.
func (u user) unit(s service) unit {
	u.t.Helper()
	n := u.unitWithoutDropin(s)
	n.run("oci-mainpid", "generate", "--user="+u.name, "--cgroup="+s.mode, path.Join(unitDir, n.name))
	n.systemctl("daemon-reload")
	return n
}

// unitWithoutDropin makes a unit for the service. Reloading is left to the
// caller.
func (u user) unitWithoutDropin(s service) unit {
	u.t.Helper()
	s = s.withDefaults()
	n := unit{u, u.name + ".service", s.container}
	if s.template {
		n.name = u.name + "@.service"
	}
	// A user may have several.
	for i := 2; n.try("test", "-e", path.Join(unitDir, n.name)).status == 0; i++ {
		n.name = fmt.Sprintf("%s-%d.service", u.name, i)
	}
	n.write(path.Join(unitDir, n.name), s.text())
	if !s.template {
		n.cleanUp()
	}
	return n
}

// instance returns an instance of the template.
func (n unit) instance(name string) unit {
	n.name = strings.Replace(n.name, "@.", "@"+name+".", 1)
	n.container = strings.ReplaceAll(n.container, "%i", name)
	n.cleanUp()
	return n
}

// in returns the unit in the hands of another test.
func (n unit) in(m machine) unit {
	n.machine = m
	return n
}

// cleanUp has the unit stopped at the end of the test, and shown if that failed.
func (n unit) cleanUp() {
	n.t.Cleanup(func() {
		if n.t.Failed() {
			n.t.Logf("%v", n.try("systemctl", "status", "--no-pager", "--full", "--lines=0", n.name))
			n.t.Logf("%v", n.try("journalctl", "--no-pager", "--output=short-precise", "--lines=200", "--unit="+n.name))
		}
		if !*keep {
			n.try("systemctl", "stop", n.name)
		}
	})
}

// dropin gives the unit another drop-in, of the number; that of oci-mainpid is
// number 50. Reloading is left to the caller.
func (n unit) dropin(number int, text string) {
	n.t.Helper()
	n.write(path.Join(unitDir, n.name+".d", fmt.Sprintf("%d-test.conf", number)), text)
}

// editDropin changes the drop-in of oci-mainpid, which must have what is
// replaced. Reloading is left to the caller.
func (n unit) editDropin(old, new string) {
	n.t.Helper()
	file := path.Join(unitDir, n.name+".d", "50-oci-mainpid.conf")
	text := n.run("cat", file)
	edited := regexp.MustCompile(old).ReplaceAllString(text, new)
	if edited == text {
		n.t.Fatalf("no %q in\n%s", old, text)
	}
	n.write(file, edited)
}

// dir is where the unit's result file is.
func (n unit) dir() string { return "/run/oci-mainpid/" + n.name }

// userDir is where the unit's mainpid file is.
func (n unit) userDir() string     { return "/run/oci-mainpid/users/" + n.uid + "/" + n.name }
func (n unit) mainPIDFile() string { return n.userDir() + "/mainpid" }
func (n unit) resultFile() string  { return n.dir() + "/result" }

func (n unit) start() {
	n.t.Helper()
	n.systemctl("start", n.name)
}

// startFails starts the unit, which must fail as a whole: no main process, no
// container, no file is left.
func (n unit) startFails() {
	n.t.Helper()
	r := n.try("systemctl", "start", n.name)
	if r.status == 0 {
		n.t.Fatalf("started, with main PID %s", n.property("MainPID"))
	}
	n.assertState("failed")
	n.assertGone()
}

func (n unit) stop() {
	n.t.Helper()
	n.systemctl("stop", n.name)
}

// property returns a property of the unit, see systemctl show.
func (n unit) property(name string) string {
	n.t.Helper()
	return n.properties(name)[name]
}

// properties returns these properties of the unit, or all. Of those that it has several
// of, the last counts.
func (n unit) properties(names ...string) map[string]string {
	n.t.Helper()
	show := []string{"show", "--"}
	if len(names) > 0 {
		show = []string{"show", "--property=" + strings.Join(names, ","), "--"}
	}
	all := map[string]string{}
	for line := range strings.Lines(n.systemctl(append(show, n.name)...)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		all[name] = value
	}
	return all
}

// messages returns what a program said in the journal of the unit.
func (n unit) messages(program string) []string {
	n.t.Helper()
	out := n.journal(n.name, "--identifier="+program)
	if out == "" {
		return nil
	}
	return strings.Split(out, "\n")
}

// helperSaid checks that notify-mainpid said one line, which names the unit and
// matches, and that the unit has its exit status.
func (n unit) helperSaid(status, pattern string) {
	n.t.Helper()
	pattern = "^" + regexp.QuoteMeta(n.name) + ": .*" + pattern
	said := n.messages("notify-mainpid")
	if len(said) != 1 || !regexp.MustCompile(pattern).MatchString(said[0]) {
		n.t.Errorf("notify-mainpid said %q, not one line that matches %q", said, pattern)
	}
	exit := regexp.MustCompile(`--user=.* status=(\d+)`).FindStringSubmatch(n.property("ExecStartPost"))
	if exit == nil || exit[1] != status {
		n.t.Errorf("notify-mainpid's exit status is not %s: %s", status, n.property("ExecStartPost"))
	}
}

// assertState checks ActiveState.
func (n unit) assertState(want string) {
	n.t.Helper()
	n.assertProperties(map[string]string{"ActiveState": want})
}

// assertEnded checks in which state the unit is, with which result and with
// which exit status of its main process.
func (n unit) assertEnded(state, result, exitStatus string) {
	n.t.Helper()
	n.assertProperties(map[string]string{"ActiveState": state, "Result": result, "ExecMainStatus": exitStatus})
}

func (n unit) assertProperties(want map[string]string) {
	n.t.Helper()
	got := n.properties(slices.Collect(maps.Keys(want))...)
	for name, value := range want {
		if got[name] != value {
			n.t.Errorf("%s: %s=%s, not %s", n.name, name, got[name], value)
		}
	}
}

// awaitState waits for an ActiveState.
func (n unit) awaitState(want string) {
	n.t.Helper()
	n.await(n.name+" is "+want, soon, func() bool { return n.property("ActiveState") == want })
}

// processes are those of a unit that runs.
type processes struct{ conmon, payload string }

// assertMainPIDIsConmon checks that the unit runs, and that its main process is
// the conmon of its container.
func (n unit) assertMainPIDIsConmon() processes {
	n.t.Helper()
	p := n.stored(n.container).processes
	n.assertProperties(map[string]string{"ActiveState": "active", "MainPID": p.conmon})
	if exe := n.try("readlink", "/proc/"+p.conmon+"/exe").stdout; path.Base(exe) != "conmon" {
		n.t.Fatalf("conmon of %s, PID %s, executes %s", n.container, p.conmon, exe)
	}
	return p
}

// assertGone checks that nothing is left of the unit: no process in its control
// group, none of a container of its user, no container, no file.
func (n unit) assertGone() {
	n.t.Helper()
	const remains = `
		find /sys/fs/cgroup/system.slice -path "*/$1/*" -name cgroup.procs -exec cat {} + || :
		ps --no-headers -o pid,args -U "$2" | grep -E '[c]onmon|[s]leep 1000|[c]run|[r]unc' || :
		ls -d "/run/oci-mainpid/$1" "/run/oci-mainpid/users/$2/$1" 2>/dev/null || :`
	// What podman has conmon run at the end may still be at it.
	var left string
	for deadline := time.Now().Add(soon); ; time.Sleep(200 * time.Millisecond) {
		if left = n.shell(remains, n.name, n.uid); left == "" {
			break
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("of %s there is left:\n%s", n.name, left)
		}
	}
	r := n.try(n.as("podman", "ps", "--all", "--format={{.Names}} {{.Status}}")...)
	if n.try("test", "-e", n.runtimeDir()).status != 0 {
		return // without it, or while it goes, podman cannot run, nor can a container
	}
	if containers := n.must(r); containers != "" {
		n.t.Errorf("containers are left: %s", containers)
	}
}
