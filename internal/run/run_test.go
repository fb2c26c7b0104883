package run

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/sdnotify"
)

func TestParseCommand(t *testing.T) {
	for _, test := range []struct {
		name, in string
		ready    bool
		want     string // podman's command line
		err      string // part of the error
	}{
		{name: "plain", in: "podman run -d --rm --name=a IMAGE", want: "podman run --sdnotify=ignore --replace -d --rm --name=a IMAGE"},
		{name: "its own --replace", in: "podman run --rm --replace -d --name a IMAGE x", want: "podman run --sdnotify=ignore --rm --replace -d --name a IMAGE x"},
		{name: "its own --sdnotify", in: "podman --log-level info container run --sdnotify=conmon --rm -dt --sdnotify container --name=a IMAGE --sdnotify=x", want: "podman --log-level info container run --sdnotify=ignore --replace --rm -dt --name=a IMAGE --sdnotify=x"},
		{name: "through env", in: "/usr/bin/env A=B podman run -d --rm --name=a IMAGE", want: "/usr/bin/env A=B podman run --sdnotify=ignore --replace -d --rm --name=a IMAGE"},
		{name: "nothing", err: "no command given"},
		{name: "no podman", in: "docker run -d --rm --name=a IMAGE", err: "docker is no podman"},
		{name: "no subcommand", in: "podman", err: "no podman with a subcommand"},
		{name: "another subcommand", in: "podman start a", err: "write podman run"},
		{name: "in the foreground", in: "podman run --rm --name=a IMAGE -d", err: "add -d"},
		{name: "--detach=false", in: "podman run --detach=false --rm --name=a IMAGE", err: "add -d"},
		{name: "without --rm", in: "podman run -d --name=a IMAGE", err: "add --rm"},
		{name: "--rm=false", in: "podman run -d --rm=false --name=a IMAGE", err: "add --rm"},
		{name: "without a name", in: "podman run -d --rm IMAGE", err: "add --name=NAME"},
		{name: "a name with a slash", in: "podman run -d --rm --name=../a IMAGE", err: "--name=../a is no name"},
		{name: "a name of dots", in: "podman run -d --rm --name=.. IMAGE", err: "--name=.. is no name"},
		{name: "--replace=false", in: "podman run -d --rm --replace=false --name=a IMAGE", err: "remove it"},
		{name: "--sdnotify of none", in: "podman run -d --rm --name=a --sdnotify=x IMAGE", err: "--sdnotify=x is none of"},
		{name: "--remote", in: "podman --remote run -d --rm --name=a IMAGE", err: "--remote"},
		{name: "--init with targets", in: "podman run -d --rm --init --name=a IMAGE", ready: true, err: "--init"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := parseCommand(strings.Fields(test.in), test.ready)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if got := strings.Join(c.args, " "); err != nil || got != test.want || c.name != "a" {
				t.Errorf("got %q, container %q, %v", got, c.name, err)
			}
		})
	}
	c, err := parseCommand(strings.Fields("env A=B podman --root /r run -d --rm --name=a IMAGE"), false)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(c.podman("stop", "a"), " "); got != "env A=B podman --root /r stop a" {
		t.Errorf("another command of podman's is %q", got)
	}
}

// said returns a message of these assignments.
func said(assignments ...string) (m sdnotify.Message) {
	for _, a := range assignments {
		name, value, _ := strings.Cut(a, "=")
		m = append(m, sdnotify.Assignment{Name: name, Value: value})
	}
	return m
}

// What systemd is told is on a list, with values that are checked.
func TestHear(t *testing.T) {
	long := strings.Repeat("x", 4000)
	for _, test := range []struct {
		name string
		in   sdnotify.Message
		pass sdnotify.Message
		is   func(Inside) bool
	}{
		{name: "what would take the unit over", in: said("MAINPID=1", "MAINPIDFD=1", "MAINPIDFDID=1", "NOTIFYACCESS=all", "FDSTORE=1", "FDNAME=x", "FDSTOREREMOVE=1", "WATCHDOG_USEC=1", "RESTART_RESET=1", "BARRIER=1", "X_OWN=1")},
		{name: "READY is not passed on as it is", in: said("READY=1")},
		{name: "STATUS is not passed on as it is", in: said("STATUS=" + "a\x1b[31m" + long), is: func(i Inside) bool {
			return strings.HasPrefix(i.Status, `a\x1b[31m`) && len(i.Status) <= maxText
		}},
		{name: "WATCHDOG", in: said("WATCHDOG=1"), pass: said("WATCHDOG=1")},
		{name: "WATCHDOG=trigger", in: said("WATCHDOG=trigger")},
		{name: "STOPPING", in: said("STOPPING=1"), pass: said("STOPPING=1"), is: func(i Inside) bool { return i.Stopping }},
		{name: "RELOADING before it is ready", in: said("RELOADING=1")},
		{name: "ERRNO", in: said("ERRNO=2"), pass: said("ERRNO=2"), is: func(i Inside) bool { return i.Errno == 2 }},
		{name: "ERRNO of text", in: said("ERRNO=x")},
		{name: "BUSERROR", in: said("BUSERROR=org.x.Failed"), pass: said("BUSERROR=org.x.Failed")},
		{name: "BUSERROR of text", in: said("BUSERROR=x y.z")},
		{name: "EXIT_STATUS", in: said("EXIT_STATUS=7"), is: func(i Inside) bool { return i.ExitStatus != nil && *i.ExitStatus == 7 }},
		{name: "EXIT_STATUS out of range", in: said("EXIT_STATUS=256"), is: func(i Inside) bool { return i.ExitStatus == nil }},
		{name: "more time", in: said("EXTEND_TIMEOUT_USEC=5000000"), pass: said("EXTEND_TIMEOUT_USEC=5000000")},
		{name: "too much more time", in: said("EXTEND_TIMEOUT_USEC=9000000000000000000"), pass: said("EXTEND_TIMEOUT_USEC=60000000")},
		{name: "a systemd", in: said("X_SYSTEMD_HOSTNAME=vm", "X_SYSTEMD_MACHINE_ID="+strings.Repeat("a", 32), "X_SYSTEMD_SIGNALS_LEVEL=2", "X_SYSTEMD_UNIT_ACTIVE=basic.target", "X_SYSTEMD_UNIT_ACTIVE=a.target", "X_SYSTEMD_UNIT_ACTIVE=a.target", "X_SYSTEMD_UNIT_INACTIVE=basic.target", "X_SYSTEMD_SHUTDOWN=reboot", "X_SYSTEMD_REBOOT_PARAMETER=x"), is: func(i Inside) bool {
			return reflect.DeepEqual(i, Inside{Hostname: "vm", MachineID: strings.Repeat("a", 32), SignalsLevel: 2, Active: []string{"a.target"}, Shutdown: "reboot", RebootParameter: "x"})
		}},
		{name: "a systemd that lies", in: said("X_SYSTEMD_HOSTNAME=a\x1bb", "X_SYSTEMD_MACHINE_ID=x", "X_SYSTEMD_SIGNALS_LEVEL=-1", "X_SYSTEMD_UNIT_ACTIVE=a b", "X_SYSTEMD_SHUTDOWN=rm -rf"), is: func(i Inside) bool {
			return reflect.DeepEqual(i, Inside{Active: nil})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var i Inside
			pass, _ := i.hear(test.in)
			if !reflect.DeepEqual(pass, test.pass) {
				t.Errorf("passes %q, want %q", pass, test.pass)
			}
			if test.is != nil && !test.is(i) {
				t.Errorf("knows %+v", i)
			}
		})
	}
	var i Inside
	for range 10 * maxActive {
		i.hear(said("X_SYSTEMD_UNIT_ACTIVE=" + strings.Repeat("a", 1+len(i.Active)%200) + strings.Repeat("b", len(i.Active)/200) + ".target"))
	}
	if len(i.Active) > maxActive {
		t.Errorf("%d units are remembered", len(i.Active))
	}
}

func TestStatusLine(t *testing.T) {
	targets := []string{"a.target", "b.target"}
	for want, i := range map[string]Inside{
		"Waiting for a.target, b.target":           {Waiting: targets},
		"Waiting for b.target; inside: Starting x": {Waiting: targets[1:], Status: "Starting x"},
		"Active: a.target, b.target":               {Ready: true},
		"No longer active: b.target":               {Ready: true, Waiting: targets[1:]},
		"Shutting down: reboot":                    {Ready: true, Waiting: targets, Shutdown: "reboot"},
	} {
		if got := i.statusLine(targets); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestPIDFile(t *testing.T) {
	dir := t.TempDir()
	path, precious := filepath.Join(dir, "a.pid"), filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(precious, path); err != nil {
		t.Fatal(err)
	}
	if err := checkPIDFile(path); err != nil {
		t.Fatal(err)
	}
	if err := writePIDFile(path, 42); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "42\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if b, err := os.ReadFile(precious); err != nil || string(b) != "precious" {
		t.Errorf("a link was followed: %q, %v", b, err)
	}
	removePIDFile(path, 43)
	if _, err := os.Lstat(path); err != nil {
		t.Error("another's file is gone")
	}
	removePIDFile(path, 42)
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
	for _, bad := range []string{"a.pid", "/nonexistent/a.pid", dir + "/../a.pid"} {
		if checkPIDFile(bad) == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

// What a killed run has left is gone before the container is ready. What is no PID file
// stays.
func TestClearPIDFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.pid")
	clearPIDFile(path)
	for text, stays := range map[string]bool{"42\n": false, "precious": true, "": true, "-1\n": true} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		clearPIDFile(path)
		if _, err := os.Lstat(path); (err == nil) != stays {
			t.Errorf("a file with %q: %v", text, err)
		}
		os.Remove(path)
	}
}

// One run has a container's directory; the next one gets it when the first has ended.
func TestPlace(t *testing.T) {
	top := filepath.Join(t.TempDir(), "top")
	base := filepath.Join(top, "run")
	p, err := takePlace(base, top, "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takePlace(base, top, "a"); err == nil || !strings.Contains(err.Error(), "another oci-mainpid run has it") {
		t.Error(err)
	}
	p.close()
	if _, err := os.Lstat(p.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the directory is left:", err)
	}
	if p, err = takePlace(base, top, "a"); err != nil {
		t.Fatal(err)
	}
	p.close()
}

// TestLeftPodman: after a run that was killed, the next one waits for its podman, and for
// no other.
func TestLeftPodman(t *testing.T) {
	top := filepath.Join(t.TempDir(), "top")
	p, err := takePlace(top, top, "a")
	if err != nil {
		t.Fatal(err)
	}
	file, err := p.makeMainPID()
	if err != nil {
		t.Fatal(err)
	}
	p.lock.Close() // as it is when the process is killed
	// A shell by the name of a podman.
	podman, other := filepath.Join(t.TempDir(), "podman"), filepath.Join(t.TempDir(), "other")
	for _, name := range []string{podman, other} {
		if err := os.Symlink("/bin/sh", name); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, program, file, script string
		waits                       bool
	}{
		{"its podman", podman, file, "echo; sleep 1; true", true},
		{"another program", other, file, "echo; sleep 10; true", false},
		{"the podman of another container", podman, filepath.Join(top, "b/mainpid"), "echo; sleep 10; true", false},
		{"the pause process", podman, file, "echo podman pause >/proc/$$/comm; echo; sleep 10; true", false},
	} {
		cmd := exec.Command(c.program, "-c", c.script)
		cmd.Env = []string{handover.EnvMainPIDFile + "=" + c.file, "PATH=/usr/bin:/bin"}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		go cmd.Wait()
		began := time.Now()
		next, err := takePlace(top, top, "a")
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began) > 900*time.Millisecond; waited != c.waits {
			t.Errorf("%s: waited: %v", c.name, waited)
		}
		if _, err := next.makeMainPID(); err != nil {
			t.Fatal(err)
		}
		next.lock.Close()
	}
}
