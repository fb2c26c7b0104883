package quadlet

import (
	"strings"
	"testing"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

// deriveReload derives what web.service, or a template, gets with Reload=beside.
func deriveReload(t *testing.T, service, text string, sockets ...string) (*Decision, error) {
	t.Helper()
	return deriveReloadAs(t, dropin.Beside, service, text, sockets...)
}

func deriveReloadAs(t *testing.T, how dropin.Reload, service, text string, sockets ...string) (*Decision, error) {
	t.Helper()
	unit, err := unitfile.Parse([]byte("[Service]\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	p := Planner{Programs: testPrograms}
	p.machine.systemdVersion, p.machine.sockets = 257, Sockets{service: sockets}
	d := &Decision{
		Service: service, Source: "/etc/systemd/system/" + service, Account: web,
		Options: dropin.Options{Reload: how}.WithDefaults(), maker: dropin.Generate,
	}
	return d, p.derive(d, unit, false)
}

func TestDeriveReload(t *testing.T) {
	for _, c := range []struct {
		name, unit, text string
		sockets          []string
	}{
		{"reload", "web.service", "Type=notify\nNotifyAccess=all\n" + detached, nil},
		{"swap", "web.service", "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman run -d --rm --name web --publish 80:80 localhost/web\nExecStop=/usr/bin/podman rm -f -i web\n", []string{"web.socket"}},
		{"swap of a template", "web@.service", "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman run -d --name web-%i --ip=10.0.0.2 localhost/web\nExecStop=/usr/bin/podman rm -f -i web-%i\n", nil},
		{"reload of a template", "web@.service", "Type=notify\nNotifyAccess=all\nTimeoutStartSec=3min\nExecStart=:/usr/bin/podman run -d --name web-%i --cidfile=%t/%N.cid localhost/web\nExecStop=/usr/bin/podman rm -f -i --cidfile=%t/%N.cid\n", nil},
		{"reload with sockets", "web.service", "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman run -d --name web --sdnotify=healthy --health-cmd=true localhost/web\nExecStopPost=podman rm -f -i web\n", []string{"web.socket"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			how := dropin.Beside
			if strings.HasPrefix(c.name, "swap") {
				how = dropin.Swap
			}
			d, err := deriveReloadAs(t, how, c.unit, c.text, c.sockets...)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, c.name, d.Dropin.Text())
		})
	}
}

// TestReloadRefused: what cannot be exchanged, or cannot exist twice, is refused, with
// what to write instead.
func TestReloadRefused(t *testing.T) {
	run := func(options string) string {
		return "Type=notify\nExecStart=podman run -d --name web " + options + " localhost/web\nExecStop=podman rm -f -i web\n"
	}
	for _, c := range []struct{ name, text, want string }{
		{"an own ExecReload=", detached + "ExecReload=/bin/true\n", "has ExecReload="},
		{"a container that reloads itself", strings.Replace(run(""), "notify", "notify-reload", 1), "write Type=notify"},
		{"a job", "Type=oneshot\nExecStart=podman run --name web localhost/web\n", "oneshot"},
		{"a pod", "Type=forking\nExecStart=podman pod start web\n", "write a .container"},
		{"a kube file", "Type=notify\nExecStart=podman kube play x\n", "write a .container"},
		{"a container in a pod", run("--pod=web"), "remove Pod="},
		{"no podman", "ExecStart=/usr/local/bin/web\n", "must be one podman run --detach"},
		{"podman start", "ExecStart=podman start web\n", "must be one podman run --detach"},
		{"in the foreground", "ExecStart=podman run --name web localhost/web\n", "must be one podman run --detach"},
		{"another argv[0]", "ExecStart=@podman p run -d --name web localhost/web\n", "prefix @"},
		{"no name", "Type=notify\nExecStart=podman run -d localhost/web\n", "--name=NAME"},
		{"little time", strings.Replace(run(""), "ExecStop", "TimeoutStartSec=20\nExecStop", 1), "TimeoutStartSec=20s is too short"},
		{"a published port", run("-p 80:80"), "published port 80:80; write Reload=swap, or let a socket unit listen"},
		{"all ports", run("--publish-all"), "let a socket unit listen"},
		{"a fixed address", run("--ip=10.0.0.2"), "--ip=10.0.0.2; write Reload=swap"},
		{"a fixed address of a network", run("--network=front:alias=a,ip=10.0.0.2"), "ip=10.0.0.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := deriveReload(t, "web.service", c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "Reload=beside: ") {
				t.Errorf("got %v, want %q", err, c.want)
			}
			twice := strings.Contains(c.want, "listen") || strings.Contains(c.want, "10.0.0.2")
			if _, err := deriveReloadAs(t, dropin.Swap, "web.service", c.text); (err == nil) != twice || err != nil && !strings.HasPrefix(err.Error(), "Reload=swap: ") {
				t.Errorf("swap: %v", err)
			}
		})
	}
}

func TestReloadWithReady(t *testing.T) {
	unit, err := unitfile.Parse([]byte("[Service]\nType=notify\nExecStart=podman run -d --rm --name web localhost/web\nExecStop=podman rm -f -i web\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := &Decision{
		Service: "web.service", Source: "/etc/systemd/system/web.service", Account: web,
		Options: dropin.Options{Reload: dropin.Beside, Ready: "multi-user.target"}.WithDefaults(), maker: dropin.Generate,
	}
	if err := (&Planner{Programs: testPrograms}).derive(d, unit, false); err == nil || !strings.Contains(err.Error(), "write one of the two") {
		t.Errorf("got %v", err)
	}
}

func TestReloadTimeout(t *testing.T) {
	for text, want := range map[string]string{"": "1m0s", "30": "15s", "3min": "2m0s", "1min 30s": "1m0s", "infinity": "1h0m0s", "1week": "1m0s"} {
		d, err := deriveReload(t, "web.service", "Type=notify\nTimeoutStartSec="+text+"\n"+detached)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(d.Dropin.Text()), " --timeout="+want+" ") {
			t.Errorf("TimeoutStartSec=%s: not %s in\n%s", text, want, d.Dropin.Text())
		}
	}
}
