//go:build e2e

package e2e

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/test/sandbox"
)

// rootful is a service of root's with an image that is nowhere else, a volume, a secret
// and a network.
type rootful struct {
	machine
	name string // of the service, without .service
}

// rootful makes and starts the service. more are more lines of [Container]. NAME stands
// for its name.
func (m machine) rootful(name, exec, more string) rootful {
	m.t.Helper()
	r := rootful{m, name}
	m.t.Cleanup(func() {
		if m.t.Failed() {
			m.t.Logf("%v", m.try("journalctl", "--no-pager", "--lines=60", "--unit="+name))
		}
		if *keep {
			return
		}
		for _, script := range []string{
			`systemctl stop "$1" "$1-network"; rm -f "/etc/systemd/system/$1-needs.service"`,
			`rm -rf /etc/containers/systemd/"$1".* "/var/lib/oci-mainpid/adopt/$1.service"`,
			`systemctl daemon-reload`,
			`podman volume rm "systemd-$1"; podman secret rm "$1-secret" "$1-env"; podman network rm "systemd-$1"; podman rmi "localhost/$1:v1"`,
			`systemctl kill --kill-whom=main "user@$(id -u "$1")" && userdel --force "$1"; rm -rf "/var/lib/$1" /etc/*.d/"oci-mainpid-$1.conf"`,
		} {
			m.try("sh", "-c", script, "sh", name)
		}
	})
	// With the label it has another ID than the image that the user has.
	m.run("podman", "import", "--quiet", "--change=LABEL=of="+name, sandbox.BusyboxTar, "localhost/"+name+":v1")
	m.must(m.feed("a\x00b\n", "podman", "secret", "create", name+"-secret", "-"))
	m.must(m.feed("environment", "podman", "secret", "create", name+"-env", "-"))
	expand := strings.NewReplacer("NAME", name).Replace
	m.shell(`umask 077; >"$1"`, r.file())
	m.write(r.file(), expand("[Unit]\nDescription=Root's\n[Container]\nImage=localhost/NAME:v1\nVolume=NAME.volume:/data\nNetwork=NAME.network\nSecret=NAME-secret\nSecret=NAME-env,type=env,target=VARIABLE\nExec="+exec+"\n"+more))
	m.write(quadletDir+"/"+name+".volume", "[Volume]\n")
	m.write(quadletDir+"/"+name+".network", "[Network]\n")
	// It stops with the service.
	m.write(unitDir+"/"+name+"-needs.service", expand("[Unit]\nRequires=NAME.service\nAfter=NAME.service\n[Service]\nExecStart=sleep 3000\n"))
	m.systemctl("daemon-reload")
	m.systemctl("start", name, name+"-needs")
	m.run("podman", "exec", "systemd-"+name, "sh", "-ec", `cd /data
		echo root >root; echo user >user; ln -s user link; mkdir -m 1777 dir; echo deep >dir/deep
		chown 1000:1001 user; chmod 4640 user; chown 33 dir/deep; chmod 711 .; chown 1000 .`)
	if err := unix.Lsetxattr(filepath.Join(m.box.Root(), r.rootsVolume(), "user"), "user.test", []byte("value"), 0); err != nil {
		m.t.Fatal(err)
	}
	return r
}

func (r rootful) file() string { return quadletDir + "/" + r.name + ".container" }

func (r rootful) rootsVolume() string {
	return "/var/lib/containers/storage/volumes/systemd-" + r.name + "/_data"
}

// data is all of root's that must stay.
func (r rootful) data() string {
	r.t.Helper()
	return r.shell(`tar -C "$1" --numeric-owner --xattrs --pax-option=delete=atime,delete=ctime -cf - . | sha256sum; podman image inspect --format '{{.Id}}' "localhost/$2:v1"
		podman secret inspect --showsecret --format '{{.SecretData}}' "$2-secret" | sha256sum`, r.rootsVolume(), r.name)
}

func (r rootful) files() string {
	r.t.Helper()
	return r.shell(`cd /etc/containers/systemd; head -n 50 "$1".*; stat -c "%a %n" *`, r.name)
}

func (r rootful) adopt(args ...string) []string {
	return append([]string{"oci-mainpid", "adopt"}, append(args, r.name)...)
}

// assertNeedsIsBack checks that the unit that stops with the service runs.
func (r rootful) assertNeedsIsBack() {
	r.t.Helper()
	if got := r.property(r.name+"-needs.service", "ActiveState"); got != "active" {
		r.t.Errorf("the unit that needs the service is %s", got)
	}
}

// assertRoots checks that root's service runs, and that the user has nothing of it.
func (r rootful) assertRoots(user string) {
	r.t.Helper()
	if got := r.property(r.name, "ActiveState") + " " + r.property(r.name, "User"); got != "active " {
		r.t.Errorf("root's service is %q", got)
	}
	r.assertNeedsIsBack()
	r.run("podman", "exec", "systemd-"+r.name, "cat", "/data/dir/deep")
	if r.try("id", user).status == 0 {
		for _, c := range [][]string{{"volume", "ls", "--format={{.Name}}"}, {"secret", "ls", "--format={{.Name}}"}, {"images", "--format={{.Repository}}"}, {"network", "ls", "--format={{.Name}}"}} {
			if got := r.run(append([]string{"oci-mainpid", "podman", "--user=" + user}, c...)...); strings.Contains(got, r.name) {
				r.t.Errorf("%s has %s", user, got)
			}
		}
	}
	if r.try("test", "-e", "/var/lib/oci-mainpid/adopt/"+r.name+".service").status == 0 {
		r.t.Error("the journal is left")
	}
}

// assertAdopted checks that the user's service runs, with all that root's had.
func (r rootful) assertAdopted(user string) {
	r.t.Helper()
	u := r.existingUser(user)
	n := unit{u, r.name + ".service", "systemd-" + r.name}
	n.assertMainPIDIsConmon()
	r.assertNeedsIsBack()
	got := n.podman("exec", n.container, "sh", "-ec", `cd /data; stat -c '%u:%g %a %n' . root user dir dir/deep; cat link dir/deep; readlink link; od -An -c /run/secrets/`+r.name+`-secret; echo $VARIABLE`)
	want := "1000:0 711 .\n0:0 644 root\n1000:1001 4640 user\n0:0 1777 dir\n33:0 644 dir/deep\nuser\ndeep\nuser\n   a  \\0   b  \\n\nenvironment"
	if got != want {
		r.t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	value := make([]byte, 100)
	path := filepath.Join(r.box.Root(), u.home(), ".local/share/containers/storage/volumes/systemd-"+r.name+"/_data/user")
	if size, err := unix.Lgetxattr(path, "user.test", value); err != nil || string(value[:size]) != "value" {
		r.t.Errorf("user.test: %q, %v", value[:max(size, 0)], err)
	}
	if networks := n.inspect(n.container, "range $n, $_ := .NetworkSettings.Networks}}{{$n}}{{end"); networks != "systemd-"+r.name {
		r.t.Errorf("networks: %q", networks)
	}
}

// killed runs a command that is killed by what it executes, which then goes on: by the
// first command line with the pattern, when a shell's condition holds.
func (m machine) killed(pattern, when string, args ...string) {
	m.t.Helper()
	m.write("/run/killer/systemctl", `#!/bin/sh
		if echo "${0##*/} $*" | grep -qe '`+pattern+`' && test -e /run/killer/armed && `+when+`; then rm /run/killer/armed; kill -KILL $PPID; fi
		exec /usr/bin/"${0##*/}" "$@"`)
	m.shell(`cd /run/killer; chmod 755 systemctl; for p in podman tar systemd-run; do cp -p systemctl $p; done; touch armed`)
	if res := m.try(append([]string{"env", "PATH=/run/killer:/usr/sbin:/usr/bin"}, args...)...); res.status != 137 {
		m.t.Errorf("%s: not killed: %v", pattern, res)
	}
	m.run("rm", "-r", "/run/killer")
}

// TestAdopt: oci-mainpid adopt hands a service of root's over to a user with all it has,
// or leaves it as it was.
func TestAdopt(t *testing.T) {
	onStacks(t, func(m machine) {
		m.share("handed over", func(m machine) {
			r := m.rootful("adopted1", sleeping, "")
			data, files := r.data(), r.files()
			out := m.run(r.adopt("--user="+r.name, "--create-user", "--dry-run", "--format=json")...)
			var plan struct {
				Unit, User string
				Items      []struct{ What, Name, How string }
			}
			if err := json.Unmarshal([]byte(out), &plan); err != nil || plan.Unit != r.name+".service" || len(plan.Items) != 10 {
				m.t.Errorf("%v: %s", err, out)
			}
			r.assertRoots(r.name)
			if r.files() != files || m.try("id", r.name).status == 0 {
				m.t.Error("--dry-run has changed something")
			}
			size := `\d.* .*B`
			if *runEverywhere {
				m.shell(`yes | head -c 2G >"$1/big"`, r.rootsVolume())
				data, size = r.data(), "2.0 GiB"
			}
			began := time.Now()
			call := r.adopt("--user="+r.name, "--create-user")
			if m.try("which", "script").status == 0 {
				screen := m.run("script", "--quiet", "--return", "--command", strings.Join(call, " "), "/dev/null")
				if !regexp.MustCompile(`of ` + size + `.* \[#*[ #]*\] volume systemd-adopted1`).MatchString(screen) {
					m.t.Errorf("no bar: %q", screen)
				}
			} else {
				m.t.Log("no script(1): the bar is not seen")
				m.run(call...)
			}
			m.t.Logf("%v with a volume of %s", time.Since(began), size)
			r.assertAdopted(r.name)
			if after := r.data(); after != data {
				m.t.Errorf("root's data was\n%s\nand is\n%s", data, after)
			}
			if res := m.try(r.adopt("--user=" + r.name)...); res.status != 1 || !strings.Contains(res.stderr, "is adopted1's already") {
				m.t.Error(res)
			}
			m.run(r.adopt("--clean")...)
			if left := m.shell(`podman volume ls --quiet; podman secret ls --quiet; podman images --format '{{.Repository}}'; ls /var/lib/oci-mainpid/adopt`); strings.Contains(left, r.name) {
				m.t.Errorf("root still has\n%s", left)
			}
			m.systemctl("restart", r.name, r.name+"-needs")
			r.assertAdopted(r.name)
		})
		m.subtestIn(onFirst, "undone", func(m machine) {
			u := m.user()
			r := m.rootful("adopted2", `sh -c 'read a b c </proc/self/uid_map; [ $b = 0 ] || exit 3; trap "exit 0" TERM; sleep 1000 & wait'`, "")
			// The image is the user's, under no name.
			id := m.run("podman", "image", "inspect", "--format={{.Id}}", "localhost/adopted2:v1")
			m.shell(`podman save "$1" | oci-mainpid podman --user="$2" load`, id, u.name)
			data, files := r.data(), r.files()
			res := m.try(r.adopt("--user=" + u.name)...)
			if res.status != 1 || !strings.Contains(res.stderr, "was not handed over; root's service is as before") {
				m.t.Error(res)
			}
			r.assertRoots(u.name)
			m.run("oci-mainpid", "podman", "--user="+u.name, "image", "exists", id)
			if r.data() != data || r.files() != files {
				m.t.Errorf("root's files are\n%s", r.files())
			}
			if res := m.try(r.adopt("--clean")...); res.status != 1 || !strings.Contains(res.stderr, "nothing is root's copy") {
				m.t.Error(res)
			}
		})
		m.subtestIn(onLast, "killed", func(m machine) {
			u := m.user()
			r := m.rootful("adopted3", sleeping, "")
			data := r.data()
			// Each call undoes the one before, and goes on with one that has written the
			// files.
			const forward = "grep -q User= /etc/containers/systemd/adopted3.network"
			const undo = "! " + forward // or before the files are written
			type step struct{ command, when string }
			steps := []step{{"tar -C .* -xpf", undo}, {"start adopted3", undo}}
			if *runEverywhere {
				for _, command := range []string{"stop adopted3", "podman save", "podman load", "podman tag", "secret inspect", "secret create", "volume create", "tar -C .* -cf", "volume rm", "daemon-reload"} {
					steps = append(steps, step{command, undo})
				}
			}
			steps = append(steps, step{"daemon-reload", forward}, step{"start adopted3", forward})
			for _, step := range steps {
				m.killed(step.command, step.when, r.adopt("--user="+u.name)...)
				if after := r.data(); after != data {
					m.t.Errorf("%v: root's data was\n%s\nand is\n%s", step, data, after)
				}
			}
			m.run(r.adopt("--user=" + u.name)...)
			r.assertAdopted(u.name)
			if after := r.data(); after != data {
				m.t.Errorf("root's data was\n%s\nand is\n%s", data, after)
			}
		})
		m.subtestIn(onLast, "a user's own", adoptOwn)
		m.subtestIn(onFirst, "errors", func(m machine) {
			u := m.user()
			r := m.rootful("adopted4", sleeping, "")
			for name, text := range map[string]string{
				"a.pod": "[Pod]\n", "b@.container": sleeper, "c.container": sleeper + "[Service]\nUser=" + u.name + "\n",
				"d.container": sleeper, "e.container": "[Container]\nImage=x\nPod=adopted4-a.pod\n",
				"f.container": strings.Replace(sleeper, "NAME", "adopted4-f", 1) + "PublishPort=80:80\n",
			} {
				m.write(quadletDir+"/adopted4-"+name, strings.ReplaceAll(text, "NAME", "adopted4-x"))
			}
			m.t.Cleanup(func() {
				m.try("systemctl", "stop", "adopted4-f")
				m.shell(`rm -f /etc/containers/systemd/adopted4*; systemctl daemon-reload`)
			})
			m.systemctl("daemon-reload")
			m.try("podman", "import", "--quiet", sandbox.BusyboxTar, imageName)
			m.systemctl("start", "adopted4-f")
			m.run("oci-mainpid", "podman", "--user="+u.name, "volume", "create", "systemd-adopted4")
			files := r.files()
			user := "--user=" + u.name
			at := func(name string) string { return quadletDir + "/adopted4" + name }
			for _, c := range []struct {
				args   []string
				status int
				want   string
			}{
				{[]string{}, 2, "no UNIT and no FILE given"},
				{[]string{"adopted4"}, 2, "--user is missing"},
				{[]string{"--clean", user, "adopted4"}, 2, "--clean goes with no other option"},
				{[]string{user, "--format=xml", "adopted4"}, 2, "neither table nor json"},
				{[]string{user, "nosuch"}, 1, "nosuch"},
				{[]string{user, "/nosuch.container"}, 1, "no such file"},
				{[]string{user, at(".volume")}, 1, "is no Quadlet file of a container"},
				{[]string{user, at("-a.pod")}, 1, "is no Quadlet file of a container"},
				{[]string{user, "/home/x/.config/containers/systemd/web.container"}, 1, "is not in " + u.home() + "/.config/containers/systemd"},
				{[]string{user, at("-b@.container")}, 1, "is a template"},
				{[]string{user, at("-c.container")}, 1, "has User=" + u.name + " already"},
				{[]string{user, at("-d.container")}, 1, "type: systemctl start adopted4-d.service"},
				{[]string{user, at("-e.container")}, 1, "references adopted4-a.pod"},
				{[]string{user, at("-f.container")}, 1, "publishes port 80"},
				{[]string{"--user=nosuch", "adopted4"}, 1, "add --create-user"},
				{[]string{"--user=root", "adopted4"}, 1, "is root"},
				{[]string{user, "adopted4"}, 1, "has a volume systemd-adopted4 already"},
				{[]string{"--clean", "adopted4"}, 1, "no adopt of it has ended well"},
			} {
				res := m.try(append([]string{"oci-mainpid", "adopt"}, c.args...)...)
				if res.status != c.status || !strings.Contains(res.stderr, c.want) || strings.Contains(res.stderr, "\n") {
					m.t.Errorf("want %d, %q: %v", c.status, c.want, res)
				}
			}
			if r.files() != files {
				m.t.Errorf("the files are\n%s", r.files())
			}
			if got := m.property(r.name, "ActiveState") + m.property(r.name, "User"); got != "active" {
				m.t.Errorf("root's service is %s", got)
			}
		})
	})
}

// adoptOwn: a user's own service becomes one of the system, unless its file asks for what
// the user may not.
func adoptOwn(m machine) {
	u, other := m.user(), m.user()
	dir := u.home() + "/.config/containers/systemd"
	n := unit{u, u.name + ".service", u.name}
	own := func(args ...string) string {
		m.t.Helper()
		return u.run(u.as(append([]string{"systemctl", "--user"}, args...)...)...)
	}
	write := func(name, text string) {
		u.writeHome(".config/containers/systemd/"+name, strings.ReplaceAll(text, "NAME", u.name))
	}
	list := func() string { return m.shell(`cd "$1"; find . | sort; ls /etc/containers/systemd`, dir) }
	m.systemctl("start", "user@"+u.uid)
	m.t.Cleanup(func() {
		m.try("systemctl", "stop", n.name)
		m.shell(`rm -rf /etc/containers/systemd/"$1".* /var/lib/oci-mainpid/adopt/"$1".service; systemctl daemon-reload`, u.name)
	})
	// The user's service would wait 90 s for network-online.target.
	text := sleeper + "Volume=NAME.volume:/data\nVolume=%h/site:/site\n[Quadlet]\nDefaultDependencies=false\n[Install]\nWantedBy=default.target\n"
	write(u.name+".container", text)
	write(u.name+".volume", "[Volume]\n[Quadlet]\nDefaultDependencies=false\n")
	u.writeHome("site/index", "site")
	own("daemon-reload")
	own("start", n.name)
	u.podman("exec", n.container, "sh", "-c", "echo kept >/data/kept")
	adopt := func(name string, more ...string) []string {
		return append([]string{"oci-mainpid", "adopt", "--user=" + u.name, dir + "/" + name}, more...)
	}

	for name, bad := range map[string]struct{ text, want string }{
		"root":     {"[Service]\nExecStartPre=+/bin/touch /run/root", "ExecStartPre=+/bin/touch /run/root in [Service] would be for the system"},
		"file":     {"[Service]\nStandardOutput=file:/etc/motd", "StandardOutput="},
		"secret":   {"[Service]\nLoadCredential=a:/etc/shadow", "LoadCredential="},
		"unit":     {"[Unit]\nRequires=ssh.service", "Requires=ssh.service in [Unit]"},
		"enemy":    {"[Unit]\nConflicts=dbus.service", "Conflicts="},
		"wanted":   {"[Install]\nWantedBy=sysinit.target", "WantedBy=sysinit.target"},
		"state":    {"Volume=%S/x:/x", "Volume=%S/x:/x in [Container]"},
		"relative": {"EnvironmentFile=x", "relative path"},
		"dbus":     {"", "has " + "/usr/lib/systemd/system/dbus.service already"},
		"name":     {"ServiceName=dbus", "/usr/lib/systemd/system/dbus.service already"},
		"user":     {"[Service]\nUser=root", "has User=root already"},
		"dropins":  {"", "has drop-ins"},
		"pod":      {"Pod=x.pod", "x.pod"},
	} {
		write(name+".container", strings.ReplaceAll(sleeper, "NAME", "x")+bad.text+"\n")
		write("dropins.container.d/a.conf", "")
		res := m.try(adopt(name + ".container")...)
		if res.status != 1 || !strings.Contains(res.stderr, bad.want) || strings.Contains(res.stderr, "\n") {
			m.t.Errorf("%s: want %q: %v", name, bad.want, res)
		}
		m.shell(`rm -r "$1" "$2"`, dir+"/"+name+".container", dir+"/dropins.container.d")
	}
	for want, args := range map[string][]string{
		"no such file":    adopt("none.container"),
		"is not in":       {"oci-mainpid", "adopt", "--user=" + other.name, dir + "/" + u.name + ".container"},
		"adopt --clean x": {"oci-mainpid", "adopt", "--clean", dir + "/x.container"},
	} {
		if res := m.try(args...); res.status != 1 || !strings.Contains(res.stderr, want) {
			m.t.Errorf("want %q: %v", want, res)
		}
	}

	before := list()
	plan := m.run(adopt(u.name+".container", "--dry-run")...)
	if !strings.Contains(plan, u.name+".volume") || list() != before {
		m.t.Errorf("%s\n%s", plan, list())
	}
	for _, pattern := range []string{"mv -f", "^systemctl start"} {
		m.killed(pattern, "true", adopt(u.name+".container")...)
	}
	m.run(adopt(u.name + ".container")...)
	n.assertMainPIDIsConmon()
	if got := n.podman("exec", n.container, "cat", "/data/kept", "/site/index"); got != "kept\nsite" {
		m.t.Errorf("data: %q", got)
	}
	if state := m.try(u.as("systemctl", "--user", "is-active", n.name)...).stdout; state != "inactive" {
		m.t.Errorf("the user's service is %s", state)
	}
	if wants := m.run("systemctl", "list-dependencies", "--plain", "default.target"); !strings.Contains(wants, n.name) {
		m.t.Errorf("not started at boot: %s", wants)
	}
	if res := m.try(adopt(u.name + ".container")...); res.status != 1 || !strings.Contains(res.stderr, "is a service of the system already") {
		m.t.Error(res)
	}
	m.run("oci-mainpid", "adopt", "--clean", u.name)
	if left := m.shell(`ls "$1" /var/lib/oci-mainpid/adopt`, dir); strings.Contains(left, u.name+".") {
		m.t.Errorf("left: %s", left)
	}
}
