package quadlet

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	web          = account.Account{Name: "web", UID: 1000, GID: 1000, Home: "/srv/web"}
	testPrograms = dropin.Programs{OCIMainPID: "/usr/bin/oci-mainpid", NotifyMainPID: "/usr/libexec/oci-mainpid/notify-mainpid"}
)

// deriveText derives what a service of that text gets, on a machine with that
// systemd.
func deriveText(t *testing.T, service, text string, madeByQuadlet bool, cgroup dropin.Cgroup, systemdVersion int, sockets ...string) (*Decision, error) {
	t.Helper()
	if !strings.HasPrefix(text, "[") {
		text = "[Service]\n" + text
	}
	unit, err := unitfile.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p := Planner{Programs: testPrograms}
	p.machine.systemdVersion, p.machine.sockets = systemdVersion, Sockets{service: sockets}
	d := &Decision{
		Service: service, Source: "/etc/systemd/system/" + service, Account: web,
		Options: dropin.Options{Cgroup: cgroup}.WithDefaults(), maker: dropin.Generate,
	}
	return d, p.derive(d, unit, madeByQuadlet)
}

// detached is a command line that most cases can use.
const detached = "ExecStart=/usr/bin/podman run -d --rm --name web --sdnotify=conmon localhost/web\nExecStop=/usr/bin/podman rm -f -i web\n"

func TestDerive(t *testing.T) {
	tests := []struct {
		name    string // of the golden file, too
		unit    string // the service's name, web.service if empty
		text    string // of [Service], or the whole file if it starts with a section
		quadlet bool
		cgroup  dropin.Cgroup // mixed if empty
		version int           // of systemd, 257 if 0
		sockets []string

		warnings []string // a part of each
	}{
		{name: "notify, mixed", text: "Type=notify\nNotifyAccess=all\n" + detached},
		{name: "notify, service", text: "Type=notify\n" + detached, cgroup: dropin.Service},
		{name: "notify, user", text: "Type=notify\nNotifyAccess=all\n" + detached, cgroup: dropin.User},
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
		{name: "template", unit: "web@.service", text: "Type=notify\nNotifyAccess=all\n" + detached, cgroup: dropin.User},
		{name: "instance", unit: "web@a.service", text: "Type=notify\nNotifyAccess=all\n" + detached},
		{name: "escaped name", unit: `srv-a\x2db@c:d.service`, text: "Type=notify\nNotifyAccess=all\n" + detached, cgroup: dropin.User},
		{name: "sockets", text: "Type=notify\nNotifyAccess=all\n" + detached, sockets: []string{"web.socket", "tls.socket"}},
		{name: "split in two words", text: "ExecStart=/usr/bin/podman --log-level debug run --cgroups \"split\" \\\n  -d localhost/web --cgroups=split\nExecStopPost=-podman rm -f web\n"},
		{name: "cgroups disabled", text: "ExecStart=podman run --cgroups=disabled localhost/web\nExecStop=podman stop web\n", cgroup: dropin.Service},
		{name: "what the unit does itself once podman is up", text: "ExecStartPost=/usr/bin/curl -f localhost\n" + detached},
		{name: "a container beside the container", text: `ExecStartPre=/usr/bin/podman run --rm localhost/web migrate
ExecStartPre=-@/usr/bin/podman web start other
ExecStart=/usr/bin/podman run -d localhost/web
ExecStopPost=+/usr/bin/podman rm -f -i web
`, warnings: []string{"as root, not as web"}},
		{name: "commands in the container", text: "Type=notify\nNotifyAccess=all\n" + detached + "ExecReload=/usr/bin/podman exec web kill -HUP 1\nExecStartPost=-@podman pod healthcheck run web\n"},
		{name: "a shell that enters the container", text: "Type=notify\nNotifyAccess=all\n" + detached + "ExecStartPost=sh -c 'podman exec web ready'\n", warnings: []string{"systemd-run --user --scope podman exec"}},
		{name: "commands in the container, user", cgroup: dropin.User, text: "Type=notify\nNotifyAccess=all\n" + detached + "ExecReload=/usr/bin/podman exec web kill -HUP 1\n"},
		{name: "created first, started then", text: `ExecStartPre=/usr/bin/podman create --replace --name web --cgroups=split localhost/web
ExecStart=/usr/bin/podman start web
ExecStop=/usr/bin/podman stop web
`},
		{name: "started only", text: "ExecStart=/usr/bin/podman start web\nExecStop=/usr/bin/podman stop web\n", warnings: []string{"podman start keeps"}},
		{name: "specifiers", text: `Type=notify
NotifyAccess=all
EnvironmentFile=%h/env
WorkingDirectory=/srv/%%h
ExecStartPre=/bin/mkdir -p %h/data
ExecStart=/usr/bin/podman run -d --sdnotify=conmon --userns=keep-id:uid=%U,gid=%G -v "%h/data:/data" -v %S/web:/state --env=A=%%h --label=%u localhost/web
ExecStop=/usr/bin/podman rm -f -i web
`, warnings: []string{"ExecStartPre=/bin/mkdir -p %h/data: %h is root's home here; write /srv/web", "EnvironmentFile=%h/env: %h is root's home here; write /srv/web"}},
		{name: "podman's socket", text: "Type=notify\nNotifyAccess=all\nExecStart=podman run -d --sdnotify=conmon -v %t/podman/podman.sock:/s localhost/web\nExecStop=podman stop web\n",
			warnings: []string{"type once: systemd-run --wait --uid=1000 --setenv=XDG_RUNTIME_DIR=/run/user/1000 systemctl --user enable --now podman.socket"}},
		{name: "root's socket of podman", text: "Type=notify\nNotifyAccess=all\nExecStart=podman run -d --sdnotify=conmon -v /run/podman/podman.sock:/s localhost/web\nExecStop=podman stop web\n",
			warnings: []string{"web may not open it; write %t/podman/podman.sock"}},
		{name: "a network made by hand", text: "Type=notify\nNotifyAccess=all\nExecStart=podman run -d --sdnotify=conmon --network=host --network front:ip=10.0.0.2 localhost/web\nExecStop=podman stop web\n",
			warnings: []string{"the network front must be there for web; type once: oci-mainpid podman --user=web network create --ignore front; or write front.network"}},
		{name: "Quadlet networks", quadlet: true, text: "[X-Container]\nNetwork=back.network\nNetwork=front\n[Service]\nType=notify\nNotifyAccess=all\nExecStart=podman run -d --sdnotify=conmon --network systemd-back --network=front localhost/web\nExecStop=podman stop web\n",
			warnings: []string{"the network front must be there"}},
		{name: "files below run", text: "Type=notify\nNotifyAccess=all\nRuntimeDirectory=web\nExecStart=podman run -d --sdnotify=conmon --cidfile=/run/web/cid --conmon-pidfile=/run/web.pid localhost/web\nExecStop=podman stop web\n",
			warnings: []string{"--conmon-pidfile=/run/web.pid: web can create nothing in /run; write %t/web.pid"}},
		{name: "kube by hand", text: "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman play kube --replace /k.yaml\nExecStop=/usr/bin/podman play kube --down /k.yaml\n"},
		{name: "a job by hand", text: "Type=oneshot\nExecStart=/usr/bin/podman run --rm --cgroups=split -v %h/a:/a localhost/job\nExecStartPost=/usr/bin/true\n"},
		{name: "a job by hand that remains", text: "Type=oneshot\nRemainAfterExit=yes\nExecStart=/usr/bin/podman-compose up -d\nExecStop=/usr/bin/podman-compose down\n"},
		{name: "a wrapper", text: "ExecStart=/usr/local/bin/run-web %t\n", warnings: []string{"--cgroups= was left", "neither ExecStop="}},
		{name: "limits", text: "Type=notify\nNotifyAccess=all\nMemoryMax=1G\nCPUQuota=50%\n" + detached, warnings: []string{"CPUQuota= MemoryMax= in [Service]"}},
		{name: "a slice", text: "Type=notify\nNotifyAccess=all\nSlice=web.slice\n" + detached, warnings: []string{"Slice= in [Service] does not bind the container"}},
		{name: "credentials that the container does not see", text: "Type=notify\nNotifyAccess=all\nLoadCredential=key:/etc/key\n" + detached, warnings: []string{"write Volume=%d:/run/credentials:ro"}},
		{name: "credentials", text: "Type=notify\nNotifyAccess=all\nLoadCredential=key:/etc/key\nExecStart=podman run -d --sdnotify=conmon -v %d:/run/credentials:ro localhost/web\nExecStop=podman stop web\n"},
		{name: "limits that bind", text: "Type=notify\nNotifyAccess=all\nMemoryMax=1G\n" + detached, cgroup: dropin.Service},
		{name: "health checks in the unit's control group", text: "Type=notify\nNotifyAccess=all\nExecStart=podman run -d --health-cmd true localhost/web\nExecStop=podman stop web\n", cgroup: dropin.Service, warnings: []string{"health checks"}},
		{name: "health checks by runc in the unit's control group", text: "Type=notify\nNotifyAccess=all\nExecStart=podman --runtime=runc run -d --sdnotify=healthy --health-cmd true localhost/web\nExecStop=podman stop web\n", cgroup: dropin.Service},
		{name: "health checks by another runtime in the unit's control group", text: "Type=notify\nNotifyAccess=all\nExecStart=podman --log-level=info --runtime /usr/bin/crun run -d --health-cmd true localhost/web\nExecStop=podman stop web\n", cgroup: dropin.Service, warnings: []string{"health checks"}},
		{name: "health checks that are turned off", text: "Type=notify\nNotifyAccess=all\nExecStart=podman run -d --health-cmd none --sdnotify=conmon localhost/web\nExecStop=podman stop web\n", cgroup: dropin.Service},
		{name: "podman through env", text: "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/env TZ=UTC podman run -d --sdnotify=conmon localhost/web\nExecStop=podman stop web\n", cgroup: dropin.Service},
		{name: "notify without sdnotify", text: "Type=notify\nNotifyAccess=all\nExecStart=podman run -d localhost/web\nExecStop=podman stop web\n", warnings: []string{"must send READY=1"}},
		{name: "several settings are reset once", text: "ExecStart=/bin/false\nExecStart=\nExecStart=podman run --cgroups=split localhost/web\nExecStop=podman rm -f --cidfile=%t/a\nExecStop=podman rm -f b\n"},

		{name: "Quadlet volume", unit: "data-volume.service", quadlet: true, text: "Type=oneshot\nRemainAfterExit=yes\nExecStart=/usr/bin/podman volume create --ignore systemd-data\n"},
		{name: "Quadlet job", quadlet: true, text: "Type=oneshot\nExecStartPre=/usr/bin/podman run --rm a\nExecStart=/usr/bin/podman run --cgroups=split localhost/job\n"},
		{name: "Quadlet kube", quadlet: true, text: "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman --module=m kube play --replace --service-container=true /k.yaml\nExecStopPost=/usr/bin/podman kube down /k.yaml\n"},
		{name: "Quadlet kube, user", quadlet: true, cgroup: dropin.User, text: "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman kube play --replace --service-container=true /k.yaml\nExecStopPost=/usr/bin/podman kube down /k.yaml\n"},
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
			if test.version == 0 {
				test.version = 257
			}
			r, err := deriveText(t, test.unit, test.text, test.quadlet, test.cgroup, test.version, test.sockets...)
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
		cgroup           dropin.Cgroup
		want             string
	}{
		{"no service", "web.socket", detached, dropin.Mixed, "not the name of a service"},
		{"a name with a slash", "a/b.service", detached, dropin.Mixed, "not a valid unit name"},
		{"a name with a space", "a b.service", detached, dropin.Mixed, "not a valid unit name"},
		{"no name", ".service", detached, dropin.Mixed, "not a valid unit name"},
		{"a name that is too long", strings.Repeat("a", 250) + ".service", detached, dropin.Mixed, "not a valid unit name"},
		{"a prefix of other units' names", "web-.service", detached, dropin.Mixed, "would change every unit whose name begins with \"web-\""},
		{"no section", "web.service", "[Unit]\nDescription=x\n", dropin.Mixed, "no [Service] section"},
		{"no command", "web.service", "[Service]\nExecStart=podman run x\nExecStart=\n", dropin.Mixed, "no ExecStart="},
		{"a hidden home", "web.service", "[Service]\nProtectHome=read-only\n" + detached, dropin.Mixed, "ProtectHome=read-only keeps podman from its storage in /srv/web and from /run/user/1000; write ProtectHome=no"},
		{"kube without a service container", "web.service", notify + "ExecStart=podman kube play --service-container=false x\n", dropin.Mixed, "write --service-container=true"},
		{"a bus name", "web.service", "[Service]\nType=dbus\n" + detached, dropin.Mixed, "Type=dbus"},
		{"an open quote", "web.service", "[Service]\nExecStart=podman run \"x\n", dropin.Mixed, "unbalanced quotes"},
		{"the container notifies from the user's control group", "web.service", notify + "ExecStart=podman run -d --sdnotify=container x\n", dropin.User, "READY=1 would be lost"},
		{"the same by default", "web.service", notify + "ExecStart=podman run -d x\n", dropin.User, "READY=1 would be lost"},
		{"a healthy container notifies", "web.service", notify + "ExecStart=podman run -d --sdnotify=healthy x\n", dropin.User, "Cgroup=mixed"},
		{"a pod in the unit's control group", "web.service", notify + "ExecStart=podman pod start x\n", dropin.Service, "write Cgroup=mixed"},
		{"kube in the unit's control group", "web.service", notify + "ExecStart=podman kube play x\n", dropin.Service, "write Cgroup=mixed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := deriveText(t, test.unit, test.text, false, test.cgroup, 0)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestRepeated(t *testing.T) {
	d, err := deriveText(t, "x.service", "ExecStart=podman run --cgroups=split x\nExecStop=podman stop x\nExecStartPost=/bin/true\nExecStopPost=/bin/false\n", false, "", 0)
	if err != nil || !slices.Equal(d.Repeated, []string{"ExecStart", "ExecStartPost", "ExecStopPost"}) {
		t.Errorf("got %q, %v", d.Repeated, err)
	}
}
