package quadlet

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	web          = Account{"web", 1000}
	testPrograms = Programs{"/usr/bin/oci-mainpid", "/usr/libexec/oci-mainpid/notify-mainpid"}
)

// detached is a command line that most cases can use.
const detached = "ExecStart=/usr/bin/podman run -d --rm --name web --sdnotify=conmon localhost/web\nExecStop=/usr/bin/podman rm -f -i web\n"

func TestDerive(t *testing.T) {
	tests := []struct {
		name    string // of the golden file, too
		unit    string // the service's name, web.service if empty
		text    string // of [Service], or the whole file if it starts with a section
		quadlet bool
		cgroup  Cgroup // mixed if empty
		version int    // of systemd, 257 if 0
		sockets []string

		warnings []string // a part of each
	}{
		{name: "notify, mixed", text: "Type=notify\nNotifyAccess=all\n" + detached},
		{name: "notify, service", text: "Type=notify\n" + detached, cgroup: Service},
		{name: "notify, user", text: "Type=notify\nNotifyAccess=all\n" + detached, cgroup: User},
		{name: "exec", text: "Type=exec\n" + detached},
		{name: "no type", text: detached},
		{name: "notify-reload keeps its type", text: "Type=notify-reload\nNotifyAccess=main\n" + detached},
		{name: "forking with a PID file", text: `Type=forking
PIDFile=%t/web.pid
ExecStartPre=/bin/rm -f %t/web.pid %t/web.ctr-id
ExecStart=/usr/bin/podman run --conmon-pidfile %t/web.pid --cidfile=%t/web.ctr-id -d localhost/web
ExecStop=/usr/bin/podman stop --cidfile=%t/web.ctr-id
ExecStopPost=/usr/bin/podman rm --ignore -f --cidfile %t/web.ctr-id
`},
		{name: "systemd before OpenFile=", text: "Type=notify\nNotifyAccess=all\n" + detached, version: 252},
		{name: "unknown systemd", text: "Type=notify\nNotifyAccess=all\n" + detached, version: -1},
		{name: "template", unit: "web@.service", text: "Type=notify\nNotifyAccess=all\n" + detached, cgroup: User},
		{name: "instance", unit: "web@a.service", text: "Type=notify\nNotifyAccess=all\n" + detached},
		{name: "escaped name", unit: `srv-a\x2db@c:d.service`, text: "Type=notify\nNotifyAccess=all\n" + detached, cgroup: User},
		{name: "sockets", text: "Type=notify\nNotifyAccess=all\n" + detached, sockets: []string{"web.socket", "tls.socket"}},
		{name: "split in two words", text: "ExecStart=/usr/bin/podman --log-level debug run --cgroups \"split\" \\\n  -d localhost/web --cgroups=split\nExecStopPost=-podman rm -f web\n"},
		{name: "cgroups disabled", text: "ExecStart=podman run --cgroups=disabled localhost/web\nExecStop=podman stop web\n", cgroup: Service},
		{name: "what the unit does itself once podman is up", text: "ExecStartPost=/usr/bin/curl -f localhost\n" + detached},
		{name: "a container beside the container", text: `ExecStartPre=/usr/bin/podman run --rm localhost/web migrate
ExecStartPre=-@/usr/bin/podman web start other
ExecStart=/usr/bin/podman run -d localhost/web
ExecStopPost=+/usr/bin/podman rm -f -i web
`, warnings: []string{"as root, not as web"}},
		{name: "commands in the container", text: "Type=notify\nNotifyAccess=all\n" + detached + "ExecReload=/usr/bin/podman exec web kill -HUP 1\nExecStartPost=-@podman pod healthcheck run web\n"},
		{name: "a shell that enters the container", text: "Type=notify\nNotifyAccess=all\n" + detached + "ExecStartPost=sh -c 'podman exec web ready'\n", warnings: []string{"systemd-run --user --scope podman exec"}},
		{name: "commands in the container, user", cgroup: User, text: "Type=notify\nNotifyAccess=all\n" + detached + "ExecReload=/usr/bin/podman exec web kill -HUP 1\n"},
		{name: "created first, started then", text: `ExecStartPre=/usr/bin/podman create --replace --name web --cgroups=split localhost/web
ExecStart=/usr/bin/podman start web
ExecStop=/usr/bin/podman stop web
`, warnings: []string{"podman start keeps"}},
		{name: "a wrapper", text: "ExecStart=/usr/local/bin/run-web %t\n", warnings: []string{"--cgroups= was left", "neither ExecStop="}},
		{name: "limits", text: "Type=notify\nNotifyAccess=all\nMemoryMax=1G\nCPUQuota=50%\n" + detached, warnings: []string{"CPUQuota= MemoryMax= in [Service]"}},
		{name: "limits that bind", text: "Type=notify\nNotifyAccess=all\nMemoryMax=1G\n" + detached, cgroup: Service},
		{name: "health checks in the unit's control group", text: "Type=notify\nNotifyAccess=all\nExecStart=podman run -d --health-cmd true localhost/web\nExecStop=podman stop web\n", cgroup: Service, warnings: []string{"health checks"}},
		{name: "health checks by runc in the unit's control group", text: "Type=notify\nNotifyAccess=all\nExecStart=podman --runtime=runc run -d --sdnotify=healthy --health-cmd true localhost/web\nExecStop=podman stop web\n", cgroup: Service},
		{name: "health checks by another runtime in the unit's control group", text: "Type=notify\nNotifyAccess=all\nExecStart=podman --log-level=info --runtime /usr/bin/crun run -d --health-cmd true localhost/web\nExecStop=podman stop web\n", cgroup: Service, warnings: []string{"health checks"}},
		{name: "notify without sdnotify", text: "Type=notify\nNotifyAccess=all\nExecStart=podman run -d localhost/web\nExecStop=podman stop web\n", warnings: []string{"must send READY=1"}},
		{name: "several settings are reset once", text: "ExecStart=/bin/false\nExecStart=\nExecStart=podman run --cgroups=split localhost/web\nExecStop=podman rm -f --cidfile=%t/a\nExecStop=podman rm -f b\n"},

		{name: "Quadlet volume", unit: "data-volume.service", quadlet: true, text: "Type=oneshot\nRemainAfterExit=yes\nExecStart=/usr/bin/podman volume create --ignore systemd-data\n"},
		{name: "Quadlet job", quadlet: true, text: "Type=oneshot\nExecStartPre=/usr/bin/podman run --rm a\nExecStart=/usr/bin/podman run --cgroups=split localhost/job\n"},
		{name: "Quadlet kube", quadlet: true, text: "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman --module=m kube play --replace --service-container=true /k.yaml\nExecStopPost=/usr/bin/podman kube down /k.yaml\n"},
		{name: "Quadlet kube, user", quadlet: true, cgroup: User, text: "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman kube play --replace --service-container=true /k.yaml\nExecStopPost=/usr/bin/podman kube down /k.yaml\n"},
		{name: "Quadlet pod", unit: "p-pod.service", quadlet: true, text: `Type=forking
Restart=on-failure
PIDFile=%t/%N.pid
ExecStart=/usr/bin/podman pod start --pod-id-file=%t/%N.pod-id
ExecStop=/usr/bin/podman pod stop --pod-id-file=%t/%N.pod-id --ignore --time=10
ExecStopPost=/usr/bin/podman pod rm --pod-id-file=%t/%N.pod-id --ignore --force
ExecStartPre=/usr/bin/podman pod create --infra-conmon-pidfile=%t/%N.pid --pod-id-file=%t/%N.pod-id --replace --name p
`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.unit == "" {
				test.unit = "web.service"
			}
			if !strings.HasPrefix(test.text, "[") {
				test.text = "[Service]\n" + test.text
			}
			u, err := Parse([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if test.version == 0 {
				test.version = 257
			}
			cgroup, err := ParseCgroup(string(test.cgroup))
			if err != nil {
				t.Fatal(err)
			}
			r, err := Derive(Request{
				Name: test.unit, Unit: u, Quadlet: test.quadlet, Maker: " generate from /etc/systemd/system/" + test.unit,
				Account: web, Cgroup: cgroup, Sockets: test.sockets, SystemdVersion: test.version, Programs: testPrograms,
			})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, test.name, r.Dropin.Text())
			if len(r.Warnings) != len(test.warnings) {
				t.Errorf("warnings: %q", r.Warnings)
			}
			for i, w := range r.Warnings {
				if i < len(test.warnings) && !strings.Contains(w, test.warnings[i]) {
					t.Errorf("warning %q does not say %q", w, test.warnings[i])
				}
			}
		})
	}
}

// golden compares text with the file in testdata/dropins that is named after the
// case.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	words := strings.FieldsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) })
	path := filepath.Join("testdata/dropins", strings.ToLower(strings.Join(words, "-"))+".conf")
	if *update {
		write(t, path, string(got))
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs:\n%s", path, got)
	}
}

func TestDeriveRefuses(t *testing.T) {
	notify := "[Service]\nType=notify\nExecStop=podman stop web\n"
	tests := []struct {
		name, unit, text string
		cgroup           Cgroup
		want             string
	}{
		{"no service", "web.socket", detached, Mixed, "not the name of a service"},
		{"a name with a slash", "a/b.service", detached, Mixed, "not a valid unit name"},
		{"a name with a space", "a b.service", detached, Mixed, "not a valid unit name"},
		{"no name", ".service", detached, Mixed, "not a valid unit name"},
		{"a name that is too long", strings.Repeat("a", 250) + ".service", detached, Mixed, "not a valid unit name"},
		{"no section", "web.service", "[Unit]\nDescription=x\n", Mixed, "no [Service] section"},
		{"no command", "web.service", "[Service]\nExecStart=podman run x\nExecStart=\n", Mixed, "no ExecStart="},
		{"a job", "web.service", "[Service]\nType=oneshot\n" + detached, Mixed, "Type=oneshot"},
		{"a bus name", "web.service", "[Service]\nType=dbus\n" + detached, Mixed, "Type=dbus"},
		{"an open quote", "web.service", "[Service]\nExecStart=podman run \"x\n", Mixed, "unbalanced quotes"},
		{"the container notifies from the user's control group", "web.service", notify + "ExecStart=podman run -d --sdnotify=container x\n", User, "READY=1 would be lost"},
		{"the same by default", "web.service", notify + "ExecStart=podman run -d x\n", User, "READY=1 would be lost"},
		{"a healthy container notifies", "web.service", notify + "ExecStart=podman run -d --sdnotify=healthy x\n", User, "Cgroup=mixed"},
		{"a pod in the unit's control group", "web.service", notify + "ExecStart=podman pod start x\n", Service, "write Cgroup=mixed"},
		{"kube in the unit's control group", "web.service", notify + "ExecStart=podman kube play x\n", Service, "write Cgroup=mixed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if !strings.HasPrefix(test.text, "[") {
				test.text = "[Service]\n" + test.text
			}
			u, err := Parse([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			_, err = Derive(Request{Name: test.unit, Unit: u, Account: web, Cgroup: test.cgroup, Programs: testPrograms})
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestRefusal(t *testing.T) {
	reason := &os.PathError{Op: "read", Path: `/etc/100%/"$x"`, Err: os.ErrNotExist}
	golden(t, "refusal", Refusal(`a\x2db.service`, "-generator from /etc/a\nb", testPrograms, reason, false).Text())
	golden(t, "refusal of a template", Refusal("a@.service", "-generator", testPrograms, reason, true).Text())
}

func TestRepeated(t *testing.T) {
	u, err := Parse([]byte("[Service]\nExecStart=podman run --cgroups=split x\nExecStop=podman stop x\nExecStartPost=/bin/true\nExecStopPost=/bin/false\n"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Derive(Request{Name: "x.service", Unit: u, Account: web, Cgroup: Mixed, Programs: testPrograms})
	if err != nil || !reflect.DeepEqual(r.Repeated, []string{"ExecStart", "ExecStartPost", "ExecStopPost"}) {
		t.Errorf("got %q, %v", r.Repeated, err)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	d := Refusal("web.service", " x", testPrograms, os.ErrNotExist, false)
	path := filepath.Join(dir, "new/web.service.d/50-oci-mainpid.conf")
	if d.Path(dir+"/new") != path {
		t.Fatal(d.Path(dir + "/new"))
	}
	for _, write := range []func(string) error{d.Write, d.Write, d.WriteNew} {
		if err := write(dir + "/new"); err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(path)
		if err != nil || string(have) != string(d.Text()) {
			t.Errorf("%v: %s", err, have)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%d files are left", len(entries))
	}
	if err := Check(path); err != nil {
		t.Errorf("our own: %v", err)
	}
	write(t, path, "[Service]\nUser=a\n")
	if err := Check(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a stranger's: %v", err)
	}
	if err := Check(dir + "/none"); err != nil {
		t.Errorf("none: %v", err)
	}
	if err := d.WriteNew(dir + "/missing"); err == nil {
		t.Error("a directory that does not exist")
	}
	write(t, dir+"/file", "")
	if err := d.Write(dir + "/file"); err == nil {
		t.Error("a file as the directory")
	}
}

// FuzzDropin checks that the settings of a unit, written into a drop-in, read
// back the same.
func FuzzDropin(f *testing.F) {
	f.Add([]byte("[Unit]\nAfter=a \\\n# c\n b\n[Service]\nExecStart=\nExecStart=-/bin/a 'b c' \\x20\nEnvironment=\"A=\\\\\"\n"))
	f.Add([]byte("[Service]\nA=b\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := Parse(data)
		if err != nil {
			return
		}
		d := &Dropin{Unit: "web.service"}
		var want []Assignment
		for _, section := range []string{"Unit", "Service"} {
			for _, a := range u.Assignments {
				switch {
				case a.Section != section:
					continue
				case section == "Unit":
					d.setUnit(a.Key, a.Value)
				default:
					d.set(a.Key, a.Value)
				}
				want = append(want, a)
			}
		}
		got, err := Parse(d.Text())
		if err != nil {
			t.Fatalf("%s\n%v", d.Text(), err)
		}
		if !slices.Equal(got.Assignments, want) {
			t.Errorf("%q became %q", want, got.Assignments)
		}
	})
}
