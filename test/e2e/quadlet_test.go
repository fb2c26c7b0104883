//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// quadletDir is the administrator's directory of Quadlet files.
const quadletDir = "/etc/containers/systemd"

// The guest program, see guest/main.go, is on every machine; containers of
// Quadlet files have it at the same place.
const (
	guestPath   = "/usr/local/lib/guest"
	guestVolume = "Volume=" + guestPath + ":" + guestPath + ":ro\n"
)

func installGuest(root string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(root, guestPath), "./guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build guest: %w\n%s", err, out)
	}
	return nil
}

// sleeper is a container that runs until it is stopped.
const sleeper = "[Container]\nImage=" + imageName + "\nContainerName=NAME\nExec=" + sleeping + "\n"

// listener is a container that runs the guest.
const listener = "[Container]\nImage=" + imageName + "\nContainerName=NAME\n" + guestVolume

// owned is the section with which a Quadlet unit is the user's.
const owned = "[Service]\nUser=USER\n"

// inMode is the section with which a Quadlet unit has another Cgroup= than the
// default.
func inMode(cgroup string) string { return "[X-MainPID]\nCgroup=" + cgroup + "\n" }

// quadlets makes Quadlet files, and has systemd read them. In file names and
// texts NAME stands for what is the user's alone and USER for the user. What
// they are the files of is stopped, and they are removed, when the test ends.
func (u user) quadlets(files map[string]string) {
	u.t.Helper()
	expand := strings.NewReplacer("NAME", u.name, "USER", u.name).Replace
	dir := path.Join(quadletDir, u.name)
	var services []string
	for name, text := range files {
		name = expand(name)
		if !strings.Contains(name, "/") {
			name = path.Join(dir, name)
		}
		u.write(name, expand(text))
	}
	u.systemctl("daemon-reload")
	for _, drop := range strings.Fields(u.shell(`cd /run/systemd/generator; for d in *.service.d; do case $d in user*@$2.service.d) continue;; esac; ! grep -q "/$1/" "$d/50-oci-mainpid.conf" 2>/dev/null || echo "${d%.d}"; done`, u.name, u.uid)) {
		services = append(services, strings.Replace(drop, "@.service", "@*.service", 1))
	}
	u.t.Cleanup(func() {
		if u.t.Failed() {
			u.t.Logf("%v", u.try("sh", "-c", `for f in /run/systemd/generator/*.service.d/50-oci-mainpid.conf; do ! grep -q "/$1/" "$f" || cat "$f"; done`, "sh", u.name))
			for _, s := range services {
				u.t.Logf("%v", u.try("systemctl", "status", "--no-pager", "--full", "--lines=0", s))
				u.t.Logf("%v", u.try("journalctl", "--no-pager", "--output=short-precise", "--lines=100", "--unit="+s))
			}
		}
		if *keep {
			return
		}
		u.try(append([]string{"systemctl", "stop"}, services...)...)
		u.run("rm", "-rf", dir)
		u.systemctl("daemon-reload")
	})
}

// quadletUnit is the service that Quadlet makes, with the container whose conmon
// must be the main process.
func (u user) quadletUnit(name, container string) unit {
	expand := strings.NewReplacer("NAME", u.name).Replace
	return unit{u, expand(name), expand(container)}
}

// judge starts the unit and puts every question that a unit of ours must be able
// to answer: it is active, its main process is conmon, its user can use the
// container, the container got nothing of ours, and nothing is left once it has
// stopped. Each test of a kind of unit, and each cell of the matrix, is judged
// by this.
func (n unit) judge(o judgement) {
	n.t.Helper()
	n.start()
	p := n.judgeRunning(o)
	n.systemctl("daemon-reload")
	if after := n.assertMainPIDIsConmon(); after != p {
		n.t.Errorf("daemon-reload changed %v to %v", p, after)
	}
	n.stopAll(o)
}

// judgement is what is peculiar to a unit.
type judgement struct {
	// noExec says why podman exec cannot work in this mode; "" where it can.
	noExec string
	// execIn is the container to use, the main one if empty.
	execIn string
	// others are services that the unit pulled in and that must be stopped too.
	others []string
}

// judgeRunning is judge for a unit that has been started.
func (n unit) judgeRunning(o judgement) processes {
	n.t.Helper()
	p := n.assertMainPIDIsConmon()
	in := o.execIn
	if in == "" {
		in = n.container
	}
	if o.noExec == "" {
		if r := n.try(n.as("podman", "exec", in, "cat", "/proc/self/comm")...); n.must(r) != "cat" {
			n.t.Error(r)
		}
	}
	n.assertNothingLeaked(in)
	return p
}

// assertNothingLeaked checks that no process of a container has the mainpid
// file, or knows of it.
func (n unit) assertNothingLeaked(container string) {
	n.t.Helper()
	if has := n.shell(`
		ls -l /proc/$1/fd | grep -e oci-mainpid -e deleted || :
		tr '\0' '\n' </proc/$1/environ | grep -e OCI_MAINPID -e mainpidfile || :`, n.stored(container).payload); has != "" {
		n.t.Errorf("%s has open files or an environment of ours: %s", container, has)
	}
}

// stopAll stops the unit, and checks that it ended well and left nothing.
func (n unit) stopAll(o judgement) {
	n.t.Helper()
	n.stop()
	for _, other := range o.others {
		n.systemctl("stop", other)
	}
	n.assertEnded("inactive", "success", "0")
	n.assertGone()
}

// assertNoPod checks that the user has no pod.
func (u user) assertNoPod() {
	u.t.Helper()
	if pods := u.podman("pod", "ps", "--format={{.Name}}"); pods != "" {
		u.t.Errorf("pods are left: %s", pods)
	}
}

const noExecInService = "crun may not move a process from the user's tree into the unit's"

// TestQuadletContainer: one line makes a Quadlet unit the user's.
func TestQuadletContainer(t *testing.T) {
	cases := []struct {
		name, container, mode, user string
		runtime                     string
		rare                        bool // nearly what TestMainPID tries
		judgement
	}{
		{name: "a container", container: sleeper},
		{name: "with runc", container: sleeper, runtime: "runc", rare: true},
		{name: "cgroups enabled", container: sleeper + "PodmanArgs=--cgroups=enabled\n"},
		{name: "cgroups no-conmon", container: sleeper + "PodmanArgs=--cgroups=no-conmon\n"},
		{name: "cgroups split", container: sleeper, mode: "service", rare: true, judgement: judgement{noExec: noExecInService}},
		{name: "cgroups split with runc", container: sleeper, mode: "service", runtime: "runc"},
		{name: "Cgroup user", container: sleeper, mode: "user"},
		{name: "Cgroup user with runc", container: sleeper, mode: "user", runtime: "runc", rare: true},
		{name: "Notify yes", container: listener + "Exec=" + guestPath + "\nNotify=yes\n"},
		{name: "Notify healthy", container: sleeper + "HealthCmd=/bin/true\nHealthInterval=1s\nNotify=healthy\n"},
		{name: "options without a key", container: sleeper + "[X-MainPID]\n", rare: true},
		{name: "a user by UID", container: sleeper, user: "UID"},
		{name: "a file name with characters that units escape", container: sleeper},
	}
	onStacks(t, func(m machine) {
		for _, c := range cases {
			deal := m.share
			if c.rare {
				deal = m.rare
			}
			deal(c.name, func(m machine) {
				u := m.user()
				u.useRuntime(c.runtime)
				section := owned
				if c.user == "UID" {
					section = "[Service]\nUser=" + u.uid + "\n"
				}
				if c.mode != "" {
					section += inMode(c.mode)
				}
				file := "NAME.container"
				service := "NAME.service"
				if strings.HasPrefix(c.name, "a file name") {
					file, service = `NAME:a_b-c.d.container`, `NAME:a_b-c.d.service`
				}
				u.quadlets(map[string]string{file: c.container + section})
				u.quadletUnit(service, "NAME").judge(c.judgement)
			})
		}
	})
}

// useRuntime makes a runtime the default of the user's podman.
func (u user) useRuntime(name string) {
	u.t.Helper()
	if name != "" {
		u.writeHome(".config/containers/containers.conf", fmt.Sprintf("[engine]\nruntime = %q\n", name))
	}
}

// TestQuadletFamilies: what belongs to a unit is its user's too.
func TestQuadletFamilies(t *testing.T) {
	onStacks(t, func(m machine) {
		m.share("a volume, a bridge network and a published port that answers over HTTP", func(m machine) {
			u := m.user()
			u.quadlets(map[string]string{
				"NAME.container": listener + "Exec=" + guestPath + " :80\nVolume=NAME.volume:/data\nNetwork=NAME.network\nPublishPort=127.0.0.1:8080:80\n" + owned,
				"NAME.volume":    "[Volume]\n" + owned,
				"NAME.network":   "[Network]\n" + owned,
			})
			n := u.quadletUnit("NAME.service", "NAME")
			n.start()
			n.judgeRunning(judgement{})
			n.assertAnswers("http://127.0.0.1:8080/", ":80")
			for what, want := range map[string]string{"volume": "systemd-" + u.name, "network": "systemd-" + u.name} {
				if got := u.podman(what, "ls", "--format={{.Name}}"); !strings.Contains(got, want) {
					m.t.Errorf("%s of the user: %s, not %s", what, got, want)
				}
				if got := m.run("podman", what, "ls", "--format={{.Name}}"); strings.Contains(got, want) {
					m.t.Errorf("%s of root: %s", what, got)
				}
			}
			n.stopAll(judgement{others: []string{u.name + "-network.service", u.name + "-volume.service"}})
		})
		m.share("an image and a build", func(m machine) {
			u := m.user()
			// An image to pull without a registry, and one to build from it.
			u.systemctl("start", "user@"+u.uid)
			u.podman("save", "--quiet", "--format=oci-dir", "--output="+u.home()+"/image", imageName)
			u.writeHome("context/Containerfile", "FROM "+imageName+"\nRUN echo built > /tmp/built\n")
			u.quadlets(map[string]string{
				"NAME-i.container": strings.Replace(sleeper, imageName, "NAME.image", 1) + owned,
				"NAME.image":       "[Image]\nImage=oci:" + u.home() + "/image\nImageTag=" + imageName + "\n" + owned,
				"NAME.build":       "[Build]\nImageTag=localhost/NAME-built\nSetWorkingDirectory=" + u.home() + "/context\n" + owned,
				"NAME-b.container": strings.NewReplacer(imageName, "NAME.build", "ContainerName=NAME", "ContainerName=NAME-b").Replace(sleeper) + owned,
			})
			n := u.quadletUnit("NAME-b.service", "NAME-b")
			n.start()
			n.judgeRunning(judgement{})
			if got := u.podman("exec", n.container, "cat", "/tmp/built"); got != "built" {
				m.t.Errorf("the container is not of the built image: %q", got)
			}
			n.stopAll(judgement{})
			u.quadletUnit("NAME-i.service", "NAME").judge(judgement{})
		})
		m.share("a pod with two containers", func(m machine) {
			u := m.user()
			u.quadlets(map[string]string{
				"NAME.pod":         "[Pod]\nPodName=NAME-p\n" + owned,
				"NAME-a.container": strings.Replace(sleeper, "ContainerName=NAME", "ContainerName=NAME-a", 1) + "Pod=NAME.pod\n" + owned,
				"NAME-b.container": strings.Replace(sleeper, "ContainerName=NAME", "ContainerName=NAME-b", 1) + "Pod=NAME.pod\n" + owned,
			})
			pod := u.quadletUnit("NAME-pod.service", "NAME-p-infra")
			pod.start()
			if exists := u.try(u.as("podman", "container", "exists", pod.container)...); exists.status != 0 {
				pod.container = u.podman("ps", "--filter=name=-infra", "--format={{.Names}}")
			}
			pod.assertMainPIDIsConmon()
			for _, name := range []string{"NAME-a", "NAME-b"} {
				n := u.quadletUnit(name+".service", name)
				n.await(n.name+" is active", soon, func() bool { return n.property("ActiveState") == "active" })
				n.judgeRunning(judgement{})
			}
			pod.stopAll(judgement{})
			u.assertNoPod()
		})
		m.share("a kube file with two containers", func(m machine) {
			u := m.user()
			u.quadlets(map[string]string{
				"NAME.kube": "[Kube]\nYaml=" + u.home() + "/pod.yml\n" + owned,
			})
			u.writeHome("pod.yml", podYAML(u.name))
			n := u.quadletUnit("NAME.service", "")
			n.start()
			n.container = n.serviceContainer()
			n.judgeRunning(judgement{execIn: u.name + "-a"})
			n.judgeRunning(judgement{execIn: u.name + "-b"})
			n.stopAll(judgement{})
			u.assertNoPod()
		})
		m.share("two instances of a template, started at once", func(m machine) {
			u := m.user()
			u.quadlets(map[string]string{
				"NAME@.container": strings.Replace(sleeper, "ContainerName=NAME", "ContainerName=NAME-%I", 1) + owned,
			})
			names := []string{"one", `two\x2dtwo`}
			u.systemctl("start", u.name+"@one.service", u.name+`@two\x2dtwo.service`)
			for _, name := range names {
				n := u.quadletUnit("NAME@"+name+".service", "")
				n.container = u.podman("ps", "--filter=label=PODMAN_SYSTEMD_UNIT="+n.name, "--format={{.Names}}")
				n.judgeRunning(judgement{})
			}
			for _, name := range names {
				u.systemctl("stop", u.name+"@"+name+".service")
			}
			u.quadletUnit("NAME@one.service", "").assertGone()
		})
		m.share("two users at once", func(m machine) {
			one, two := m.user(), m.user()
			for _, u := range []user{one, two} {
				u.quadlets(map[string]string{"NAME.container": sleeper + owned})
			}
			m.systemctl("start", one.name+".service", two.name+".service")
			for _, u := range []user{one, two} {
				n := u.quadletUnit("NAME.service", "NAME")
				n.judgeRunning(judgement{})
				n.stopAll(judgement{})
			}
		})
	})
}

// podYAML is a pod of two containers.
func podYAML(name string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  containers:
  - {name: a, image: %[2]s, imagePullPolicy: Never, command: [sh, -c, 'trap "exit 0" TERM; sleep 1000 & wait']}
  - {name: b, image: %[2]s, imagePullPolicy: Never, command: [sh, -c, 'trap "exit 0" TERM; sleep 1000 & wait']}
`, name, imageName)
}

// serviceContainer returns the name of the service container of the user's only
// kube unit.
func (n unit) serviceContainer() string {
	n.t.Helper()
	names := strings.Fields(n.podman("ps", "--format={{.Names}}"))
	i := slices.IndexFunc(names, func(s string) bool { return strings.HasSuffix(s, "-service") })
	if i < 0 {
		n.t.Fatalf("no service container among %v", names)
	}
	return names[i]
}

// assertAnswers asks over HTTP from the machine itself.
func (m machine) assertAnswers(url, socket string, args ...string) {
	m.t.Helper()
	var r result
	m.await(url+" answers", soon, func() bool {
		r = m.try(append([]string{"curl", "--silent", "--max-time", "5", url}, args...)...)
		return r.status == 0
	})
	if !strings.Contains(r.stdout+"\n", "hello from "+socket+"\n") {
		m.t.Errorf("%s answers %q, not by %s", url, r.stdout, socket)
	}
	if strings.Contains(r.stdout, "mainpid") {
		m.t.Errorf("the container has %s", r.stdout)
	}
}

// TestQuadletSockets: the container gets the unit's sockets under their names,
// and nothing else.
func TestQuadletSockets(t *testing.T) {
	onStacks(t, func(m machine) {
		for _, mode := range []string{"mixed", "service", "user"} {
			m.share("two sockets, Cgroup "+mode, func(m machine) {
				u := m.user()
				notify := "Notify=yes\n"
				if mode == "user" {
					notify = ""
				}
				socket := func(path, name string) {
					unit := name + ".socket"
					u.write(filepath.Join(unitDir, unit), fmt.Sprintf("[Socket]\nListenStream=%s\nSocketMode=0666\nFileDescriptorName=%s\nService=%s.service\n", path, name, u.name))
					u.t.Cleanup(func() { u.try("systemctl", "stop", unit); u.run("rm", filepath.Join(unitDir, unit)) })
				}
				web, admin := "/run/"+u.name+"-web.sock", "/run/"+u.name+"-admin.sock"
				socket(web, u.name+"-web")
				socket(admin, u.name+"-admin")
				u.quadlets(map[string]string{
					"NAME.container": listener + "Exec=" + guestPath + "\n" + notify + owned + inMode(mode),
				})
				u.systemctl("start", u.name+"-web.socket", u.name+"-admin.socket")
				m.assertAnswers("http://localhost/", u.name+"-web", "--unix-socket", web)
				m.assertAnswers("http://localhost/", u.name+"-admin", "--unix-socket", admin)
				n := u.quadletUnit("NAME.service", "NAME")
				if got := n.stored(n.container).payload; n.shell(`tr '\0' '\n' </proc/$1/environ | grep ^LISTEN_FDS=`, got) != "LISTEN_FDS=2" {
					m.t.Errorf("the container has not got exactly two descriptors")
				}
				noExec := ""
				if mode == "service" {
					noExec = noExecInService
				}
				// The image's own programs serve for podman exec.
				n.judgeRunning(judgement{noExec: noExec})
				m.systemctl("stop", u.name+"-web.socket", u.name+"-admin.socket")
				n.stopAll(judgement{})
			})
		}
	})
}

// TestQuadletDependencies: it is a system unit like any other.
func TestQuadletDependencies(t *testing.T) {
	onStacks(t, func(m machine) {
		m.share("requires a mount and another system service", func(m machine) {
			u := m.user()
			mount, other := "mnt-"+u.name+".mount", u.name+"-other.service"
			u.write(path.Join(unitDir, mount), "[Mount]\nWhat=tmpfs\nWhere=/mnt/"+u.name+"\nType=tmpfs\n")
			u.write(path.Join(unitDir, other), "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=touch /mnt/"+u.name+"/here\n[Unit]\nRequires="+mount+"\nAfter="+mount+"\n")
			u.t.Cleanup(func() {
				u.try("systemctl", "stop", other, mount)
				u.run("rm", path.Join(unitDir, mount), path.Join(unitDir, other))
			})
			u.quadlets(map[string]string{
				"NAME.container": "[Unit]\nRequiresMountsFor=/mnt/NAME\nRequires=NAME-other.service\nAfter=NAME-other.service\n" +
					sleeper + "Volume=/mnt/NAME:/data\n" + owned,
			})
			n := u.quadletUnit("NAME.service", "NAME")
			n.start()
			n.judgeRunning(judgement{})
			if got := n.podman("exec", n.container, "ls", "/data"); got != "here" {
				m.t.Errorf("the mount has %q", got)
			}
			// What it requires takes it along.
			m.systemctl("stop", mount)
			n.awaitState("inactive")
			n.assertGone()
		})
		m.share("Restart always, conmon killed", func(m machine) {
			u := m.user()
			u.quadlets(map[string]string{"NAME.container": sleeper + owned + "Restart=always\n"})
			n := u.quadletUnit("NAME.service", "NAME")
			n.start()
			before := n.assertMainPIDIsConmon()
			n.run("kill", "-9", before.conmon)
			n.await("restarted", soon, func() bool {
				p := n.properties()
				return p["NRestarts"] == "1" && p["ActiveState"] == "active"
			})
			if after := n.judgeRunning(judgement{}); after == before {
				m.t.Errorf("still %v", after)
			}
			n.stopAll(judgement{})
		})
	})
}

// TestQuadletRefuses: a unit that cannot be served fails on its own, says why,
// and nothing runs as root instead.
func TestQuadletRefuses(t *testing.T) {
	cases := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"a user that does not exist", map[string]string{"NAME.container": sleeper + "[Service]\nUser=nobody-there\n"}, "nobody-there"},
		{"no user", map[string]string{"NAME.container": sleeper + inMode("user")}, "User="},
		{"root", map[string]string{"NAME.container": sleeper + "[Service]\nUser=root\n" + inMode("mixed")}, "User="},
		{"an unknown key", map[string]string{"NAME.container": sleeper + owned + "[X-MainPID]\nUsr=web\n"}, "Usr"},
		{"an unknown mode", map[string]string{"NAME.container": sleeper + owned + inMode("none")}, "Cgroup=none"},
		{"Cgroup user with Notify yes", map[string]string{"NAME.container": sleeper + "Notify=yes\n" + owned + inMode("user")}, "Cgroup=mixed"},
		{"a user without subordinate IDs", map[string]string{"NAME.container": sleeper + "[Service]\nUser=daemon\n"}, "daemon"},
		{"a volume of another user's", map[string]string{
			"NAME.container": sleeper + "Volume=NAME.volume:/data\n" + owned,
			"NAME.volume":    "[Volume]\n[Service]\nUser=OTHER\n",
		}, "NAME.volume"},
		{"a volume without a user", map[string]string{
			"NAME.container": sleeper + "Volume=NAME.volume:/data\n" + owned,
			"NAME.volume":    "[Volume]\n",
		}, "in [Service] of NAME.volume"},
		{"the user in our section", map[string]string{"NAME.container": sleeper + "[X-MainPID]\nUser=USER\n"}, "write User="},
		{"a misspelt section", map[string]string{"NAME.container": sleeper + owned + "[X-MianPID]\nCgroup=user\n"}, "write [X-MainPID]"},
		{"a section with an en dash", map[string]string{"NAME.container": sleeper + "[X\u2013MainPID]\nCgroup=user\n"}, "write [X-MainPID]"},
		{"a misspelt key", map[string]string{"NAME.container": sleeper + "[Service]\nuser=USER\n"}, "write User="},
		{"an unknown section with a user", map[string]string{"NAME.container": sleeper + "[Servise]\nUser=USER\n"}, "in [Service]"},
	}
	onStacks(t, func(m machine) {
		other := m.user()
		for _, c := range cases {
			m.share(c.name, func(m machine) {
				u := m.user()
				files := maps.Clone(c.files)
				for name, text := range files {
					files[name] = strings.ReplaceAll(text, "OTHER", other.name)
				}
				root := m.existingUser("root")
				before := root.containers()
				u.quadlets(files)
				n := u.quadletUnit("NAME.service", "NAME")
				if r := n.try("systemctl", "start", n.name); r.status == 0 {
					m.t.Fatalf("started, with main PID %s", n.property("MainPID"))
				}
				want := strings.ReplaceAll(c.want, "NAME", u.name)
				if journal := n.journal(n.name); !strings.Contains(journal, want) {
					m.t.Errorf("the journal does not name %q:\n%s", want, journal)
				}
				if after := root.containers(); !maps.Equal(after, before) {
					m.t.Errorf("root has a container: %v", after)
				}
				if strings.HasPrefix(c.name, "a misspelt section") {
					if all := m.try("oci-mainpid", "check"); all.status != 1 || !strings.Contains(all.stdout, n.name) {
						m.t.Errorf("check of all units does not name it: %v", all)
					}
				}
			})
		}
	})
}

// TestQuadletBoot: enabled by [Install], it is up after a boot, with no
// lingering anywhere.
func TestQuadletBoot(t *testing.T) {
	onFreshMachinesIn(t, onFirst, func(m machine) {
		if err := install(m.box); err != nil {
			m.t.Fatal(err)
		}
		u := m.user()
		u.write(path.Join(quadletDir, "boot.container"), strings.ReplaceAll(sleeper, "NAME", "boot")+
			"[Install]\nWantedBy=multi-user.target\n"+strings.ReplaceAll(owned, "USER", u.name))
		u.write(path.Join(unitDir, "hand.service"), service{mode: "user", container: "hand"}.withDefaults().text())
		u.run("oci-mainpid", "generate", "--user="+u.name, "--cgroup=user", path.Join(unitDir, "hand.service"))
		u.systemctl("daemon-reload")
		u.systemctl("enable", "hand.service")
		if err := m.box.Reboot(interrupted); err != nil {
			m.t.Fatal(err)
		}
		for _, name := range []string{"boot", "hand"} {
			n := unit{u, name + ".service", name}
			n.cleanUp()
			n.await(n.name+" is active", time.Minute, func() bool { return n.property("ActiveState") == "active" })
			n.judgeRunning(judgement{})
		}
		if lingering := m.shell("ls -A /var/lib/systemd/linger 2>/dev/null || :"); lingering != "" {
			m.t.Errorf("lingering: %s", lingering)
		}
		for _, name := range []string{"boot", "hand"} {
			unit{u, name + ".service", name}.stop()
		}
		m.subtest("a file that Quadlet cannot read", func(m machine) {
			broken, n := path.Join(quadletDir, "broken.container"), unit{u.in(m), "boot.service", "boot"}
			m.write(broken, "[Container]\nthis is no setting\n")
			m.systemctl("daemon-reload")
			if r := m.try("systemctl", "start", n.name); r.status == 0 {
				m.t.Error("started")
			}
			want := "Quadlet makes no service of boot.container: it cannot read " + broken + " ("
			if journal := n.journal(n.name); !strings.Contains(journal, want) {
				m.t.Errorf("no %q in %s", want, journal)
			}
			if p := n.point("unit"); p.Level != "fail" || !strings.Contains(p.Found, want) || !strings.HasPrefix(p.Fix, "correct that") {
				m.t.Errorf("%+v", p)
			}
		})
	})
}
