package quadlet

import (
	"strings"
	"testing"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

// TestReady: with Ready= the unit's own podman command runs through oci-mainpid run, or
// the unit is refused with the reason.
func TestReady(t *testing.T) {
	const run = "ExecStart=/usr/bin/podman run -d --rm --name vm --sdnotify=conmon localhost/vm /sbin/init\nExecStop=/usr/bin/podman rm -f -i vm\n"
	const wrapped = "ExecStart=/usr/bin/oci-mainpid run --ready=multi-user.target -- /usr/bin/podman run --log-driver=journald -d --rm --name vm --sdnotify=conmon localhost/vm /sbin/init\n"
	for _, test := range []struct {
		name, text string
		cgroup     dropin.Cgroup
		version    int // of systemd
		sockets    []string
		want       []string // lines of the drop-in
		not        string
		err        string
	}{
		{name: "notify, mixed", text: "Type=notify\n" + run, cgroup: dropin.Mixed, version: 257,
			want: []string{wrapped, "NotifyAccess=all\n", "Delegate=yes\n", "SuccessExitStatus=129 130\n", "RestartForceExitStatus=129\n", "--timeout=500ms", "OpenFile=/run/"}, not: "\nType="},
		{name: "notify, user", text: "Type=notify\n" + run, cgroup: dropin.User, version: 257,
			want: []string{wrapped, "NotifyAccess=all\n", "Delegate=no\n", "--timeout=500ms"}, not: "OCI_MAINPID_RESULT"},
		{name: "the container would be ready itself", text: "Type=notify\n" + strings.Replace(run, "--sdnotify=conmon", "--sdnotify=container", 1), cgroup: dropin.User, version: 257,
			want: []string{"oci-mainpid run --ready=multi-user.target -- "}},
		{name: "exec", text: "Type=exec\n" + run, cgroup: dropin.Mixed, version: 257, want: []string{"Type=notify\n", "NotifyAccess=all\n"}},
		{name: "argv[0]", text: "Type=notify\n" + strings.Replace(run, "/usr/bin/podman run", "@/usr/bin/podman podman run", 1), cgroup: dropin.Mixed, version: 257,
			want: []string{"ExecStart=@/usr/bin/oci-mainpid oci-mainpid run --ready=multi-user.target -- /usr/bin/podman run "}},
		{name: "service", text: "Type=notify\n" + run, cgroup: dropin.Service, version: 257, want: []string{"oci-mainpid run --ready=multi-user.target -- ", "--cgroups=split", "Delegate=yes\n"}},
		{name: "sockets", text: "Type=notify\n" + run, cgroup: dropin.Mixed, version: 257, sockets: []string{"vm.socket"},
			want: []string{"oci-mainpid run --ready=multi-user.target -- "}, not: "LISTEN_FDS"},
		{name: "systemd without OpenFile=", text: "Type=notify\n" + run, cgroup: dropin.Mixed, version: 252, err: "needs systemd 253"},
		{name: "oneshot", text: "Type=oneshot\n" + run, cgroup: dropin.Mixed, version: 257, err: "Type=oneshot"},
		{name: "podman start", text: "Type=exec\nExecStart=podman start vm\n", cgroup: dropin.Mixed, version: 257, err: "write podman run"},
		{name: "another program", text: "Type=exec\nExecStart=/usr/bin/sleep 9\n", cgroup: dropin.Mixed, version: 257, err: "is no podman run"},
		{name: "without --rm", text: "Type=notify\nExecStart=podman run -d --name vm localhost/vm\n", cgroup: dropin.Mixed, version: 257, err: "add --rm"},
		{name: "without -d", text: "Type=notify\nExecStart=podman run --rm --name vm localhost/vm\n", cgroup: dropin.Mixed, version: 257, err: "add -d"},
		{name: "oci-mainpid run already", text: "Type=notify\nExecStart=oci-mainpid run -- podman run -d --rm --name vm localhost/vm\n", cgroup: dropin.Mixed, version: 257, err: "remove one of the two"},
	} {
		t.Run(test.name, func(t *testing.T) {
			unit, err := unitfile.Parse([]byte("[Service]\n" + test.text))
			if err != nil {
				t.Fatal(err)
			}
			p := Planner{Programs: testPrograms}
			p.machine.systemdVersion, p.machine.sockets = test.version, Sockets{"vm.service": test.sockets}
			d := &Decision{Service: "vm.service", Account: web, Options: dropin.Options{Cgroup: test.cgroup, Ready: "multi-user.target"}, maker: dropin.Generate}
			err = p.derive(d, unit, false)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text := string(d.Dropin.Text())
			for _, want := range test.want {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
			if test.not != "" && strings.Contains(text, test.not) {
				t.Errorf("%q is in\n%s", test.not, text)
			}
		})
	}
}
