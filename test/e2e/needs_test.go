//go:build e2e

package e2e

import (
	"fmt"
	"path"
	"strings"
	"testing"
)

// TestNeeds: check says what a start needs and lacks, with what to type or to write,
// changes nothing, and takes a second for twenty units.
func TestNeeds(t *testing.T) {
	const image = "[Container]\nImage=" + imageName + "\n"
	onStacks(t, func(m machine) {
		u := m.user()
		m.shell(`install -m 600 /dev/null /etc/$1.env; install -d -m 700 /etc/$1.d; install -m 644 /dev/null /etc/$1.d/file`, u.name)
		port := 20000 + len(u.name) // of a listener of root's
		m.run("systemd-run", "--quiet", "--unit=listen-"+u.name, guestPath, fmt.Sprintf("127.0.0.1:%d", port))
		m.t.Cleanup(func() { m.try("systemctl", "stop", "listen-"+u.name) })
		cases := []struct {
			name, text, what, found, fix string
			files                        map[string]string
		}{
			{"env", image + "EnvironmentFile=/etc/NAME.env\n", "needs", "is root's only: podman reads it as NAME", "chgrp NAME /etc/NAME.env", nil},
			{"secret", image + "Secret=NAME-key\n", "needs", "the secret NAME-key is not there for NAME", "oci-mainpid podman --user=NAME secret create NAME-key FILE", nil},
			{"network", image + "Network=NAME-front\n", "needs", "the network NAME-front is not there for NAME", "oci-mainpid podman --user=NAME network create --ignore NAME-front", nil},
			{"image", "[Container]\nImage=localhost/nobodys\n", "needs", "the image localhost/nobodys is not there for NAME", "oci-mainpid podman --user=NAME load", nil},
			{"file", image + "Volume=/etc/NAME.none:/x\n", "needs", "/etc/NAME.none, is not there", "make it", nil},
			{"dir", image + "Volume=/etc/NAME.d/file:/x\n", "needs", "is in /etc/NAME.d, which only root may enter", "chmod o+x /etc/NAME.d", nil},
			{"tilde", image + "PodmanArgs=--volume=~/data:/x\n", "needs", "podman knows no ~", "write %h", nil},
			{"low", image + "PublishPort=80:80\n", "needs", "port 80/tcp is below 1024", "sysctl net.ipv4.ip_unprivileged_port_start=80", nil},
			{"used", image + fmt.Sprintf("PublishPort=%d:80\n", port), "needs", fmt.Sprintf("port %d/tcp is in use", port), "ss -lnp", nil},
			{"one", image + "ContainerName=NAME-same\n", "needs", "NAME-two.service has the same", "write another ContainerName=", nil},
			{"two", image + "ContainerName=NAME-same\n", "needs", "NAME-one.service has the same", "write another ContainerName=", nil},
			{"dependency", "[Unit]\nRequires=NAME-nobody.service\n" + image, "needs", "Requires=NAME-nobody.service: systemd knows no such unit", "remove the line", nil},
			{"slice", image, "limits", "Slice= in the unit does not bind the container", "--cgroup=service", nil},
			{"syntax", "[Container]\nImage=" + imageName + "\nNonsense=1\n", "unit", "Nonsense", "daemon-reload", nil},
		}
		files := map[string]string{}
		for _, c := range cases {
			text := c.text + owned
			if c.name == "slice" {
				text += "Slice=user.slice\n"
			}
			files["NAME-"+c.name+".container"] = text
		}
		for i := len(files); i < 20; i++ {
			files[fmt.Sprintf("NAME-well%d.container", i)] = image + "Exec=" + sleeping + "\n" + owned
		}
		u.quadlets(files)
		before := m.shell(`find "$1" -newer /etc/$2.env -printf '%p %T@\n' 2>/dev/null | sort`, u.home(), u.name)
		expand := func(text string) string { return strings.ReplaceAll(text, "NAME", u.name) }
		for _, c := range cases {
			m.share(c.name, func(m machine) {
				n := u.in(m).quadletUnit("NAME-"+c.name+".service", "")
				p := n.point(c.what)
				if p.Level == "ok" || !strings.Contains(p.Found, expand(c.found)) || !strings.Contains(p.Fix, expand(c.fix)) {
					m.t.Errorf("%+v", p)
				}
			})
		}
		m.share("nothing is changed", func(m machine) {
			if after := m.shell(`find "$1" -newer /etc/$2.env -printf '%p %T@\n' 2>/dev/null | sort`, u.home(), u.name); after != before {
				m.t.Errorf("in the home: %s, not %s", after, before)
			}
			if got := m.property("user@"+u.uid, "ActiveState"); got != "inactive" {
				m.t.Errorf("the user's manager is %s", got)
			}
		})
		m.share("twenty units", func(m machine) {
			var names []string
			for name := range files {
				names = append(names, strings.TrimSuffix(expand(name), ".container"))
			}
			// The time of the processor: the machine has other work, too.
			least := 1e9
			for range 3 {
				out := m.shell(`exec bash -c 'TIMEFORMAT="%U %S"; { time oci-mainpid check "$@" >/dev/null 2>&1; } 2>&1 || :' bash "$@"`, names...)
				var user, system float64
				if _, err := fmt.Sscan(out, &user, &system); err != nil {
					m.t.Fatalf("%v: %s", err, out)
				}
				least = min(least, user+system)
			}
			m.t.Logf("%d units: %.2f s of a processor", len(names), least)
			if least > 1 {
				m.t.Errorf("%d units: %.2f s of a processor", len(names), least)
			}
		})
		m.share("what it says to type helps", func(m machine) {
			u := u.in(m)
			m.write("/etc/"+u.name+".key", "of the secret")
			for _, name := range []string{"secret", "network"} {
				n := u.quadletUnit("NAME-"+name+".service", "systemd-NAME-"+name)
				m.shell(strings.ReplaceAll(n.point("needs").Fix, "FILE", "/etc/"+u.name+".key"))
				if p := n.point("needs"); p.Level != "ok" {
					m.t.Errorf("%+v", p)
				}
			}
			file := path.Join(quadletDir, u.name, u.name+"-secret.container")
			m.run("sed", "-i", "/^Secret=/aExec="+sleeping, file)
			m.systemctl("daemon-reload")
			n := u.quadletUnit("NAME-secret.service", "systemd-NAME-secret")
			n.start()
			n.assertMainPIDIsConmon()
			if got := n.podman("exec", n.container, "cat", "/run/secrets/"+u.name+"-key"); got != "of the secret" {
				m.t.Errorf("the secret is %q", got)
			}
			n.stop()
		})
	})
}
