//go:build e2e

package e2e

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/autoupdate"
	"oci-mainpid-hook/test/sandbox"
)

// registry has the machine run a registry that every user may use. Of each image it has
// the tags one and two, which differ; broken, whose command fails; and
// large, with 24 MiB in /large.
func (m machine) registry() {
	m.t.Helper()
	m.debian("docker-registry")
	m.shell(`
		cat >/etc/docker/registry/config.yml <<-END
			version: 0.1
			storage: {filesystem: {rootdirectory: /var/lib/docker-registry}}
			http: {addr: "127.0.0.1:5000"}
		END
		cat >/etc/containers/registries.conf.d/50-registry.conf <<-END
			[[registry]]
			location = "localhost:5000"
			insecure = true
		END
		systemctl restart docker-registry
		until curl -s http://localhost:5000/v2/; do sleep 0.1; done
		command='["sh", "-c", "trap \"exit 0\" TERM; sleep 1000 & wait"]'
		import() { tag=$1 from=$2; shift 2; podman import --quiet "$@" $from localhost:5000/app:$tag; podman push --quiet localhost:5000/app:$tag; }
		import one "$1" --change "CMD $command" --change "LABEL version=one"
		import two "$1" --change "CMD $command" --change "LABEL version=two"
		import broken "$1" --change 'CMD ["sh", "-c", "exit 3"]'
		mkdir /var/tmp/large; tar -x -C /var/tmp/large -f "$1"; head -c 25165824 /dev/urandom >/var/tmp/large/large
		tar -c -C /var/tmp/large . | import large - --change "CMD $command"`, sandbox.BusyboxTar)
}

// release makes latest of an image what a tag of app is.
func (m machine) release(image, tag string) {
	m.t.Helper()
	m.run("podman", "push", "--quiet", "localhost:5000/app:"+tag, image)
}

// updates runs oci-mainpid auto-update.
func (m machine) updates(args ...string) (updates []autoupdate.Update, r result) {
	m.t.Helper()
	r = m.try(append([]string{"oci-mainpid", "auto-update", "--format=json"}, args...)...)
	if err := json.Unmarshal([]byte(r.stdout), &updates); err != nil {
		m.t.Fatalf("%v: %v", err, r)
	}
	return updates, r
}

// updated is a unit whose container is to be updated.
type updated struct {
	unit
	image string
}

// updated starts a unit with a container of the image of that name.
func (u user) updated(name, policy, container, more string) updated {
	u.t.Helper()
	image := "localhost:5000/" + u.name + name + ":latest"
	u.release(image, "one")
	unitName := strings.TrimSuffix("NAME-"+name, "-")
	u.quadlets(map[string]string{unitName + ".container": "[Container]\nImage=" + image + "\nContainerName=" + unitName + "\nAutoUpdate=" + policy + "\n" + container + owned + more})
	n := updated{u.quadletUnit(unitName+".service", unitName), image}
	n.start()
	return n
}

// version returns which tag of app the unit runs, which must be as a unit must run.
func (n updated) version() string {
	n.t.Helper()
	n.assertMainPIDIsConmon()
	return n.inspect(n.container, `index .Config.Labels "version"`)
}

// as it is now: its container.
func (n updated) id() string { n.t.Helper(); return n.stored(n.container).id }

// saidOneLine checks that a command failed with one line that matches.
func (m machine) saidOneLine(r result, pattern string) {
	m.t.Helper()
	if r.status != 1 || !regexp.MustCompile(`^oci-mainpid: `+pattern+`$`).MatchString(r.stderr) {
		m.t.Errorf("not one line %s: %v", pattern, r)
	}
}

// TestAutoUpdate: units of users get newer images, of a real registry, and whatever is
// wrong with the image or the registry, the service that ran runs on.
func TestAutoUpdate(t *testing.T) {
	t.Parallel()
	onFreshMachinesIn(t, onLast, testAutoUpdate)
}

func testAutoUpdate(m machine) {
	if err := install(m.box); err != nil {
		m.t.Fatal(err)
	}
	m.registry()
	web, db := m.user(), m.user()
	site := web.updated("", "registry", "", "")
	other := db.updated("", "local", "", "")

	m.subtest("a dry run", func(m machine) {
		site := site
		site.machine = m
		if updates, r := m.updates("--dry-run"); r.status != 0 || len(updates) != 2 || updates[0].Updated != autoupdate.UpToDate {
			m.t.Fatalf("%+v %v", updates, r)
		}
		m.release(site.image, "two")
		id := site.id()
		updates, r := m.updates("--dry-run", site.name)
		want := autoupdate.Update{Unit: site.name, User: web.name, Container: site.container, ContainerID: id, Image: site.image, Policy: "registry", Updated: autoupdate.Pending}
		if r.status != 0 || len(updates) != 1 || updates[0] != want {
			m.t.Errorf("%+v %v, not %+v", updates, r, want)
		}
		table := m.run("oci-mainpid", "auto-update", "--dry-run")
		if !regexp.MustCompile(`(?m)^UNIT +USER +CONTAINER +IMAGE +POLICY +UPDATED\n`+web.name+` +`+web.name+` +`+web.name+` +`+site.image+` +registry pending$`).MatchString(table) || !strings.Contains(table, "local    false") {
			m.t.Error(table)
		}
		if site.id() != id || site.version() != "one" {
			m.t.Error("a dry run has changed the container")
		}
	})
	m.subtest("two users, registry and local; another user's label changes nothing", func(m machine) {
		site, other := site, other
		site.machine, other.machine = m, m
		db.podman("pull", "--quiet", "localhost:5000/app:two")
		// A container of no unit that names another user's.
		db.podman("run", "-d", "--name=liar", "--label=PODMAN_SYSTEMD_UNIT="+site.name, "--label=io.containers.autoupdate=local", other.image)
		db.podman("tag", "localhost:5000/app:two", other.image)
		before := site.property("InvocationID")
		if updates, r := m.updates(other.name); r.status != 0 || len(updates) != 1 || updates[0].Updated != autoupdate.Updated {
			m.t.Errorf("%+v %v", updates, r)
		}
		if site.property("InvocationID") != before {
			m.t.Errorf("%s was restarted by another user's label", site.name)
		}
		db.podman("rm", "--force", "--time=0", "liar")
		if updates, r := m.updates(); r.status != 0 || len(updates) != 2 || updates[0].Updated != autoupdate.Updated || updates[1].Updated != autoupdate.UpToDate {
			m.t.Errorf("%+v %v", updates, r)
		}
		if a, b := site.version(), other.version(); a != "two" || b != "two" {
			m.t.Errorf("they run %s and %s", a, b)
		}
		if left := web.podman("images", "--quiet", "--filter=dangling=true"); left != "" {
			m.t.Errorf("the image before is left: %s", left)
		}
	})
	m.subtest("a reload: no connection is refused", func(m machine) {
		u := m.user()
		socket, path := u.name+"-sock.socket", "/run/"+u.name+".sock"
		m.write(unitDir+"/"+socket, "[Socket]\nListenStream="+path+"\nFileDescriptorName=web\n")
		n := u.updated("sock", "registry", guestVolume+"Exec="+guestPath+"\nNotify=yes\n", reloading("beside", "mixed"))
		m.systemctl("stop", n.name)
		m.systemctl("start", socket, n.name)
		client := u.name + "-client.service"
		m.run("systemd-run", "--quiet", "--unit="+client, guestPath, "ask", path)
		m.release(n.image, "two")
		before := n.property("InvocationID")
		if updates, r := m.updates(n.name); r.status != 0 || updates[0].Updated != autoupdate.Updated {
			m.t.Errorf("%+v %v", updates, r)
		}
		m.assertNoneLost(client, 100)
		if n.version() != "two" || n.property("InvocationID") != before {
			m.t.Errorf("it runs %s", n.version())
		}
		n.assertOneContainer()
		m.release(n.image, "broken") // whose command the unit replaces; sh is there
		m.run("sed", "-i", "s|^Exec=.*|Exec=false|", quadletDir+"/"+u.name+"/"+u.name+"-sock.container")
		m.systemctl("daemon-reload")
		id := n.id()
		updates, r := m.updates(n.name)
		m.saidOneLine(r, n.name+`: rolled back to the image before: reload: .*ended.*`)
		if updates[0].Updated != autoupdate.RolledBack || n.id() != id || n.version() != "two" {
			m.t.Errorf("%+v", updates)
		}
		m.systemctl("stop", socket, n.name)
	})
	m.subtest("a swap that fails", func(m machine) {
		// With the image large the container ends before it is ready.
		n := m.user().updated("", "registry", guestVolume+"Exec=sh -c 'test ! -e /large && exec "+guestPath+"'\nNotify=yes\n", reloading("swap", "mixed"))
		m.release(n.image, "large")
		updates, r := m.updates(n.name)
		m.saidOneLine(r, n.name+`: rolled back to the image before: reload: .*ended.*`)
		if updates[0].Updated != autoupdate.RolledBack || n.version() != "one" {
			m.t.Errorf("%+v", updates)
		}
		if said := m.journal(n.name, "--identifier=systemd"); strings.Contains(said, "Failed with result") {
			m.t.Errorf("the swap that failed has ended the unit:\n%s", said)
		}
		// The name of the image that runs is what the next one looks for.
		if updates, r := m.updates("--dry-run", n.name); r.status != 0 || updates[0].Updated != autoupdate.Pending {
			m.t.Errorf("%+v %v", updates, r)
		}
		m.systemctl("stop", n.name)
	})
	u := m.user()
	n := u.updated("", "registry", "HealthCmd=test ! -e /large\nHealthInterval=1s\nHealthRetries=1\n", "Restart=always\nRestartSec=100ms\n")
	// unchanged checks that the container that ran runs, and that the image before is back.
	unchanged := func(m machine, id string) {
		m.t.Helper()
		n := n
		n.machine = m
		if n.id() != id || n.version() != "one" {
			m.t.Errorf("it runs %s", n.version())
		}
	}
	m.subtest("the registry is down", func(m machine) {
		m.systemctl("stop", "docker-registry")
		id := n.id()
		updates, r := m.updates(n.name)
		m.systemctl("start", "docker-registry")
		m.await("the registry answers", soon, func() bool { return m.try("curl", "-s", "http://localhost:5000/v2/").status == 0 })
		m.saidOneLine(r, n.name+`: not updated: (fetching manifest .*: )?pinging container registry localhost:5000: .* connection refused`)
		if len(updates) != 1 || updates[0].Updated != autoupdate.Failed {
			m.t.Errorf("%+v", updates)
		}
		unchanged(m, id)
	})
	m.subtest("the pull is cut off", func(m machine) {
		m.release(n.image, "large")
		blob := m.shell(`find /var/lib/docker-registry -name data -size +20M`)
		m.shell(`cp "$1" /var/tmp/blob; truncate --size=1M "$1"`, blob)
		id := n.id()
		_, r := m.updates(n.name)
		m.shell(`cat /var/tmp/blob >"$1"`, blob)
		m.saidOneLine(r, n.name+`: not updated: pull `+n.image+`: .*`)
		unchanged(m, id)
	})
	m.subtest("the disk is full", func(m machine) {
		m.release(n.image, "large")
		id := n.id()
		// Where the pull writes what it gets.
		m.shell(`tmp=$1/tmp; mkdir -p $tmp; mount -t tmpfs -o size=4m,mode=1777 full $tmp`, u.home())
		m.write(u.home()+"/.config/containers/containers.conf", "[engine]\nimage_copy_tmp_dir = \""+u.home()+"/tmp\"\n")
		_, r := m.updates(n.name)
		m.shell(`umount $1/tmp; rm -r $1/.config`, u.home())
		m.saidOneLine(r, n.name+`: not updated: pull `+n.image+`: .*no space left on device`)
		unchanged(m, id)
	})
	for _, c := range []struct{ tag, reason string }{
		{"broken", `the unit does not stay active.*`}, {"large", `container .* does not become healthy`},
	} {
		deal := m.subtest
		if c.tag == "large" {
			deal = m.rare
		}
		deal("rolled back: the image is "+c.tag, func(m machine) {
			m.release(n.image, c.tag)
			before := n.property("InvocationID")
			updates, r := m.updates(n.name)
			m.saidOneLine(r, n.name+`: rolled back to the image before: `+c.reason)
			if len(updates) != 1 || updates[0].Updated != autoupdate.RolledBack {
				m.t.Errorf("%+v", updates)
			}
			if n.property("InvocationID") == before {
				m.t.Error("the image was not tried")
			}
			unchanged(m, n.id())
		})
	}
	m.subtest("--rollback=no leaves it", func(m machine) {
		m.release(n.image, "broken")
		updates, r := m.updates("--rollback=no", n.name)
		m.saidOneLine(r, n.name+`: not updated: .*`)
		if len(updates) != 1 || updates[0].Updated != autoupdate.Failed {
			m.t.Errorf("%+v", updates)
		}
		m.systemctl("stop", n.name)
	})
	m.subtest("the timer", func(m machine) {
		const timer = "oci-mainpid-auto-update.timer"
		site := site
		site.machine = m
		if r := m.try("systemctl", "is-enabled", timer); r.stdout != "disabled" {
			m.t.Errorf("%v", r)
		}
		m.release(site.image, "one")
		m.write("/etc/systemd/system/"+timer+".d/now.conf", "[Timer]\nOnCalendar=\nRandomizedDelaySec=0\nOnActiveSec=1s\nAccuracySec=100ms\n")
		m.systemctl("daemon-reload")
		m.systemctl("start", timer)
		m.await("the timer's service has updated it", 2*soon, func() bool {
			return strings.Contains(m.journal("oci-mainpid-auto-update"), "registry true")
		})
		if got := site.version(); got != "one" {
			m.t.Errorf("it runs %s", got)
		}
	})
	m.subtest("what is asked for must be there", func(m machine) {
		m.saidOneLine(m.try("oci-mainpid", "auto-update", "docker-registry"), `docker-registry.service: does not run its container as a user: type podman auto-update`)
		m.saidOneLine(m.try("oci-mainpid", "auto-update", "none"), `none.service: systemd knows no such unit.*`)
	})
}
