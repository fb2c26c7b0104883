package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/quadlet"
)

const unit = "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman run -d --cgroups=split --sdnotify=conmon x\nExecStop=/usr/bin/podman rm -f x\n"

// place is a directory to run oci-mainpid generate in.
type place struct {
	t   *testing.T
	dir string
}

func newPlace(t *testing.T) place {
	p := place{t, t.TempDir()}
	p.write("etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\ndb:x:1001:1001::/:/bin/sh\n")
	p.write("etc/subuid", "web:1:1\ndb:2:2\n")
	p.write("etc/subgid", "web:1:1\ndb:2:2\n")
	p.write("notify-mainpid", "")
	return p
}

func (p place) path(name string) string { return filepath.Join(p.dir, name) }

func (p place) write(name, text string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.path(name), []byte(text), 0o755); err != nil {
		p.t.Fatal(err)
	}
}

// read returns a file's text, "" if there is none.
func (p place) read(name string) string {
	data, err := os.ReadFile(p.path(name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.t.Error(err)
	}
	return string(data)
}

// generate runs the command; relative paths among args are the place's.
func (p place) generate(args ...string) (stdout, stderr string, err error) {
	p.t.Helper()
	for i, a := range args {
		if !strings.HasPrefix(a, "-") {
			args[i] = p.path(a)
		}
	}
	planner := quadlet.NewPlanner(dropin.Generate)
	planner.Accounts = &account.Accounts{Etc: p.path("etc"), Getent: "-"}
	planner.Programs = dropin.Programs{OCIMainPID: "/usr/bin/oci-mainpid", NotifyMainPID: p.path("notify-mainpid")}
	planner.FindQuadlet = func() (string, bool, error) { return p.path("quadlet"), false, nil }
	planner.UnitDirs = nil
	var o, e bytes.Buffer
	running := func(_ context.Context, services []string) []string {
		return slices.DeleteFunc(services, func(name string) bool { return name != "running.service" })
	}
	cmd := newGenerateCommand(generation{planner: planner, log: newLog(&e), running: running})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetFlagErrorFunc(command(newLog(io.Discard)).FlagErrorFunc())
	cmd.SetArgs(append([]string{"--systemd-version=257", "--output-dir=" + p.path("out")}, args...))
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	err = cmd.Execute()
	return o.String(), e.String(), err
}

func TestGenerate(t *testing.T) {
	p := newPlace(t)
	p.write("web.service", unit)
	p.write("web.service.d/10-limit.conf", "[Service]\nMemoryMax=1G\n")
	stdout, stderr, err := p.generate("--user=web", "web.service")
	if err != nil {
		t.Fatal(err)
	}
	path := "out/web.service.d/50-oci-mainpid.conf"
	text := p.read(path)
	if !strings.Contains(text, "User=web\n") || !strings.Contains(text, "--cgroups=enabled") {
		t.Errorf("wrote %s", text)
	}
	wrote := ""
	for _, name := range []string{path, "out/user-runtime-dir@1000.service.d/50-oci-mainpid.conf", "out/user@1000.service.d/50-oci-mainpid.conf"} {
		wrote += "wrote " + p.path(name) + "\n"
	}
	if stdout != wrote+"run: systemctl daemon-reload && systemctl restart web.service\n" {
		t.Errorf("stdout: %s", stdout)
	}
	for _, want := range []string{"warning: Cgroup=mixed: MemoryMax=", "the drop-in replaces ExecStart= of the unit"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("stderr without %q: %s", want, stderr)
		}
	}
	// Once more, over its own file, which it does not read.
	if _, _, err := p.generate("--user=db", "--cgroup=user", "web.service"); err != nil || !strings.Contains(p.read(path), "User=db") {
		t.Errorf("a second time: %v", err)
	}
}

// TestGenerateRunning: a unit that runs as root is stopped by root's commands.
func TestGenerateRunning(t *testing.T) {
	p := newPlace(t)
	p.write("running.service", unit)
	p.write("stopped.service", unit)
	stdout, _, err := p.generate("--user=web", "running.service", "stopped.service")
	if err != nil || !strings.HasSuffix(stdout, "\nrun: systemctl stop running.service && systemctl daemon-reload && systemctl restart running.service stopped.service\n") {
		t.Errorf("%v: %s", err, stdout)
	}
}

// TestGenerateByName: a word is the name of a service, as for the other commands.
func TestGenerateByName(t *testing.T) {
	p := newPlace(t)
	p.write("units/web.service", unit)
	p.write("units/i@.service", unit)
	p.write("q/front.container", "[Container]\nImage=x\n[Service]\nUser=web\n")
	p.write("q/named.container", "[Container]\nImage=x\nServiceName=other\n[Service]\nUser=web\n")
	planner := quadlet.Planner{UnitDirs: []string{p.path("units"), p.path("none")}, Dirs: []string{p.path("q")}}
	for arg, want := range map[string]string{
		"web":                 "units/web.service",
		"web.service":         "units/web.service",
		"i@":                  "units/i@.service",
		"front":               "q/front.container",
		"other.service":       "q/named.container",
		"named":               "units/named.service", // which is not there
		p.path("x/web"):       "x/web",
		p.path("web.service"): "web.service",
	} {
		if got := planner.File(arg); got != p.path(want) {
			t.Errorf("%s: %s, want %s", arg, got, p.path(want))
		}
	}
	if got := planner.File("front.container"); got != "front.container" {
		t.Errorf("a Quadlet file in the current directory: %s", got)
	}
	if got := quadlet.PodmanServices([]string{p.path("units"), p.path("none")}); strings.Join(got, " ") != "i@.service web.service" {
		t.Errorf("%q", got)
	}
}

// TestGenerateRemove: what was written for a unit goes, and that of the user's manager
// with the user's last unit.
func TestGenerateRemove(t *testing.T) {
	p := newPlace(t)
	for _, name := range []string{"a.service", "b.service"} {
		p.write(name, unit)
		if _, _, err := p.generate("--user=web", name); err != nil {
			t.Fatal(err)
		}
	}
	p.write("out/b.service.d/60-own.conf", "[Service]\n")
	p.write("out/foreign.service.d/50-oci-mainpid.conf", "[Service]\n")
	for arg, want := range map[string]string{
		"foreign":   "foreign.service: " + p.path("out/foreign.service.d/50-oci-mainpid.conf") + " was not made by oci-mainpid generate",
		"c":         "c.service: oci-mainpid generate has written nothing for it",
		"user@1000": "user@1000.service: ",
	} {
		if stdout, _, err := p.generate("--remove", "a.service", arg); err == nil || !strings.HasPrefix(err.Error(), want) || stdout != "" {
			t.Errorf("%s: %v, %s", arg, err, stdout)
		}
	}
	if stdout, _, err := p.generate("--remove", "--dry-run", "a.service"); err != nil || stdout != "would remove "+p.path("out/a.service.d/50-oci-mainpid.conf")+"\n" || p.read("out/a.service.d/50-oci-mainpid.conf") == "" {
		t.Errorf("--dry-run: %v, %s", err, stdout)
	}
	stdout, stderr, err := p.generate("--remove", "a")
	if err != nil || stdout != "removed "+p.path("out/a.service.d/50-oci-mainpid.conf")+"\nrun: systemctl daemon-reload\n" || !strings.Contains(stderr, "a.service has no User=, so from now on the unit runs as root; to keep it from being started, type: systemctl disable a.service") {
		t.Errorf("the first: %v, %s%s", err, stdout, stderr)
	}
	stdout, _, err = p.generate("--remove", "b.service")
	if err != nil || strings.Count(stdout, "removed ") != 3 || !strings.Contains(stdout, "out/user@1000.service.d/") {
		t.Errorf("the last: %v, %s", err, stdout)
	}
	var left []string
	entries, err := os.ReadDir(p.path("out"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if got := strings.Join(left, " "); got != "b.service.d foreign.service.d" {
		t.Errorf("left: %s", got)
	}
}

func TestGenerateDryRun(t *testing.T) {
	p := newPlace(t)
	p.write("web@.service", unit)
	stdout, _, err := p.generate("--user=1000", "--dry-run", "web@.service")
	if err != nil || !strings.HasPrefix(stdout, "# "+p.path("out/web@.service.d/50-oci-mainpid.conf")+"\n# Made by oci-mainpid generate") || strings.Contains(stdout, "run:") {
		t.Errorf("%v: %s", err, stdout)
	}
	if _, err := os.Stat(p.path("out")); err == nil {
		t.Error("it wrote")
	}
}

func TestGenerateRefuses(t *testing.T) {
	p := newPlace(t)
	p.write("web.service", unit)
	p.write("other.service", unit)
	p.write("bad.service", "[Unit]\nDescription=x\n")
	p.write("db.service", strings.Replace(unit, "Type=", "User=db\nType=", 1))
	p.write("text.service", "hello\n")
	p.write("huge.service", "[Service]\n"+strings.Repeat("#", 1<<20))
	p.write("dir.service/x", "")
	p.write("foreign.service", unit)
	p.write("out/foreign.service.d/50-oci-mainpid.conf", "[Service]\nMemoryMax=1G\n")
	tests := []struct {
		name  string
		args  []string
		want  string
		usage bool
	}{
		{"no file", []string{"--user=web"}, "no FILE given", true},
		{"no user", []string{"web.service"}, "--user is missing", true},
		{"unknown mode", []string{"--user=web", "--cgroup=x", "web.service"}, "\"--cgroup\" flag: Cgroup=x is none of", true},
		{"unknown flag", []string{"--usr=web", "web.service"}, "unknown flag", true},
		{"unknown user", []string{"--user=nobodyhere", "web.service"}, `--user: user "nobodyhere" does not exist`, false},
		{"root", []string{"--user=root", "web.service"}, "is root", false},
		{"one of several", []string{"--user=web", "web.service", "bad.service", "other.service"}, "bad.service: no [Service] section", false},
		{"another user", []string{"--user=web", "db.service"}, "db.service: has User=db already, and --user=web is another user", false},
		{"text", []string{"--user=web", "text.service"}, "not a unit file", false},
		{"huge", []string{"--user=web", "huge.service"}, "larger than 1 MiB", false},
		{"a directory", []string{"--user=web", "dir.service"}, "is a directory", false},
		{"missing", []string{"--user=web", "missing.service"}, "no such file", false},
		{"no service", []string{"--user=web", "etc/passwd"}, `"passwd" is not the name of a service`, false},
		{"a stranger's drop-in", []string{"--user=web", "foreign.service"}, "foreign.service: " + p.path("out/foreign.service.d/50-oci-mainpid.conf") + " was not made by oci-mainpid", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			stdout, _, err := p.generate(test.args...)
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, errUsage) != test.usage || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
			if stdout != "" {
				t.Errorf("stdout: %s", stdout)
			}
		})
	}
	if entries, _ := os.ReadDir(p.path("out")); len(entries) != 1 {
		t.Errorf("%d units were written to", len(entries)-1)
	}
	if _, _, err := p.generate("--user=web", "--force", "foreign.service"); err != nil || !strings.Contains(p.read("out/foreign.service.d/50-oci-mainpid.conf"), "User=web") {
		t.Errorf("--force: %v", err)
	}
}

func TestGenerateQuadlet(t *testing.T) {
	p := newPlace(t)
	p.write("q/web.container", "[Container]\nImage=x\nVolume=data.volume:/data\n[Service]\nUser=web\n")
	p.write("q/data.volume", "[Volume]\n[Service]\nUser=web\n")
	p.write("q/root.container", "[Container]\nImage=x\n")
	p.write("q/bad.container", "[Container]\nNonsense=x\n")
	p.write("q/asks.container", "[Container]\nImage=x\n[Service]\nUser=db\n")
	p.write("quadlet", `#!/bin/sh
[ "$QUADLET_UNIT_DIRS" = `+p.path("q")+` ] || exit 2
echo 'quadlet-generator[1]: converting "bad.container": no Image or Rootfs key specified' >&2
cat <<END
---web.service---
[X-Container]
Image=x
Volume=data.volume:/data
[Unit]
SourcePath=`+p.path("q/web.container")+`
`+strings.Replace(unit, "Type", "#\nUser=web\nType", 1)+`
---data-volume.service---
[X-Volume]
[Unit]
SourcePath=`+p.path("q/data.volume")+`
[Service]
User=web
Type=oneshot
ExecStart=/usr/bin/podman volume create systemd-data
---asks.service---
[X-Container]
Image=x
[Unit]
SourcePath=`+p.path("q/asks.container")+`
`+unit+`User=db
---root.service---
[X-Container]
Image=x
[Unit]
SourcePath=`+p.path("q/root.container")+`
`+unit+`
END
exit 1
`)
	stdout, _, err := p.generate("q/web.container")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(p.read("out/web.service.d/50-oci-mainpid.conf"), "--cgroups=enabled") || !strings.Contains(p.read("out/data-volume.service.d/50-oci-mainpid.conf"), "User=web") {
		t.Errorf("wrote %s", stdout)
	}
	if p.read("out/asks.service.d/50-oci-mainpid.conf") != "" {
		t.Error("wrote for a file that was not given")
	}
	if _, _, err := p.generate("--cgroup=user", "q/asks.container"); err != nil || !strings.Contains(p.read("out/asks.service.d/50-oci-mainpid.conf"), "Delegate=no") {
		t.Errorf("another mode: %v", err)
	}
	for _, test := range []struct{ file, want string }{
		{"q/root.container", "root.container: has no user; write User=NAME in [Service] of "},
		{"q/bad.container", "bad.container: Quadlet makes no service of bad.container: no Image or Rootfs key specified"},
		{"q/missing.container", "missing.container: open "},
	} {
		if _, _, err := p.generate(test.file); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s: %v", test.file, err)
		}
	}
	if _, _, err := p.generate("--user=db", "q/web.container"); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "write User=db in [Service] of") {
		t.Errorf("--user: %v", err)
	}
}

func TestRefuse(t *testing.T) {
	for _, test := range []struct {
		args  []string
		want  string
		usage bool
	}{
		{[]string{"refuse", "--unit=web.service", "no user"}, "web.service: not started: no user", false},
		{[]string{"refuse"}, "0 arguments", true},
		{[]string{"nonsense"}, `unknown command "nonsense"`, true},
		{nil, "no command given", true},
	} {
		cmd := command(newLog(io.Discard))
		cmd.SetArgs(append([]string{}, test.args...))
		err := cmd.Execute()
		if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, errUsage) != test.usage {
			t.Errorf("%q: %v", test.args, err)
		}
	}
}
