//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// reloading is the section with which systemctl reload replaces the container.
func reloading(how, cgroup string) string {
	return "[X-MainPID]\nReload=" + how + "\nCgroup=" + cgroup + "\n"
}

// reload reloads the unit, which must replace its container and nothing else, and
// returns the processes of the new one.
func (n unit) reload() processes {
	n.t.Helper()
	before, id := n.properties(), n.stored(n.container).id
	n.systemctl("reload", n.name)
	p := n.assertMainPIDIsConmon()
	n.assertStayed(before)
	if after := n.stored(n.container).id; after == id || p.conmon == before["MainPID"] {
		n.t.Errorf("the same container %s, conmon %s", id, p.conmon)
	}
	n.assertOneContainer()
	return p
}

// assertStayed checks that the unit has been active since it had those properties.
func (n unit) assertStayed(before map[string]string) {
	n.t.Helper()
	same := map[string]string{"ActiveState": "active"}
	for _, name := range []string{"InvocationID", "NRestarts", "ActiveEnterTimestampMonotonic"} {
		same[name] = before[name]
	}
	n.assertProperties(same)
}

// assertOneContainer checks that the unit has one container, by its own name, and that
// everything that knows of a container knows that one.
func (n unit) assertOneContainer() {
	n.t.Helper()
	if all := n.containers(); len(all) != 1 {
		n.t.Errorf("podman has %v, not %s alone", all, n.container)
	}
	known := n.inspect(n.container, `.Id}} {{or (index .Config.Labels "PODMAN_SYSTEMD_UNIT") "`+n.name+`"}} {{.HostConfig.ContainerIDFile`)
	id, rest, _ := strings.Cut(known, " ")
	label, file, _ := strings.Cut(rest, " ")
	if label != n.name {
		n.t.Errorf("PODMAN_SYSTEMD_UNIT=%s", label)
	}
	if file != "" && file != "<no value>" {
		if r := n.try("cat", file); r.stdout != id {
			n.t.Errorf("the container has %s, %s has %s %s", id, file, r.stdout, r.stderr)
		}
	}
	p := n.properties()
	if conmon := n.run("sh", "-c", `tr '\0' ' ' <"/proc/$1/cmdline"`, "sh", p["MainPID"]); !strings.Contains(conmon, " -c "+id+" ") || !strings.Contains(conmon, " -n "+n.container+" ") {
		n.t.Errorf("the main process is %s, not conmon of %s, %s", conmon, n.container, id)
	}
	record := n.run("cat", n.dir()+"/record")
	if !strings.Contains(record, "CONTAINER_ID="+id+"\n") || !strings.Contains(record, "CONMON="+p["MainPID"]+"\n") {
		n.t.Errorf("the record is of another container than %s:\n%s", id, record)
	}
	if left := n.run("sh", "-c", `ls "$1/oci-mainpid/$2" 2>/dev/null || :`, "sh", n.runtimeDir(), n.name); left != "" {
		n.t.Errorf("a reload has left %s", left)
	}
	if r := n.try("oci-mainpid", "status", n.name); r.status != 0 {
		n.t.Error(r)
	}
}

// TestReload: systemctl reload puts another container in the place of the one that runs.
func TestReload(t *testing.T) {
	onStacks(t, func(m machine) { m.reloads("beside") })
}

// reloads tests what is the same with each word of Reload=: another container, or the
// reason why not.
func (m machine) reloads(how string) {
	swap := how == "swap"
	for _, c := range []struct {
		mode, runtime, notify string
		rare                  string // the word with which it is rare
	}{
		{"mixed", "crun", "conmon", ""}, {"mixed", "runc", "container", ""}, {"mixed", "crun", "healthy", "swap"},
		{"service", "crun", "container", ""}, {"service", "runc", "conmon", "beside"},
		{"user", "crun", "conmon", "swap"}, {"user", "runc", "conmon", "beside"},
	} {
		deal := m.share
		if c.rare == how {
			deal = m.rare
		}
		deal(fmt.Sprintf("Cgroup=%s, %s, %s", c.mode, c.runtime, c.notify), func(m machine) {
			u := m.user()
			port := "1" + u.uid[len(u.uid)-4:]
			text := map[string]string{"conmon": sleeper, "container": listener + "Exec=" + guestPath + " :80\nNotify=yes\n", "healthy": sleeper + "HealthCmd=true\nHealthInterval=1s\nNotify=healthy\n"}[c.notify]
			if swap { // which a published port needs
				text += "PublishPort=127.0.0.1:" + port + ":80\n"
			}
			u.quadlets(map[string]string{"NAME.container": text + "GlobalArgs=--runtime=" + c.runtime + "\n" + owned + reloading(how, c.mode)})
			n := u.quadletUnit("NAME.service", "NAME")
			n.start()
			first := n.assertMainPIDIsConmon()
			n.reload()
			second := n.reload()
			if m.try("test", "-e", "/proc/"+first.payload).status == 0 {
				m.t.Errorf("the first container still runs, process %s", first.payload)
			}
			if c.mode != "user" && !strings.Contains(m.cgroup(second.conmon), "/"+n.name) {
				m.t.Errorf("conmon is in %s", m.cgroup(second.conmon))
			}
			if swap && c.notify == "container" {
				m.assertAnswers("http://127.0.0.1:"+port, ":80")
			}
			n.podman("kill", "--signal=KILL", n.container)
			n.awaitState("failed")
			n.assertEnded("failed", "exit-code", "137")
			n.assertGone()
		})
	}
	m.share("an instance of a template", func(m machine) {
		u := m.user()
		u.quadlets(map[string]string{"NAME@.container": strings.Replace(sleeper, "ContainerName=NAME", "ContainerName=NAME-%i", 1) + owned + reloading(how, "mixed")})
		n := u.quadletUnit("NAME@one.service", "NAME-one")
		n.start()
		n.reload()
		n.stop()
		n.assertGone()
	})
	m.share("written by hand", func(m machine) {
		n := m.user().unitWithoutDropin(service{mode: "mixed"})
		m.run("oci-mainpid", "generate", "--user="+n.user.name, "--reload="+how, unitDir+"/"+n.name)
		m.systemctl("daemon-reload")
		n.start()
		n.reload()
		told := map[string]string{"beside": "verify and move", "swap": "end old one, start new"}[how]
		if out := m.run("oci-mainpid", "explain", n.name); !strings.Contains(out, "The last reload took") || !strings.Contains(out, told) {
			m.t.Errorf("explain: %s", out)
		}
		if s := n.status(); s.Problem != "" || s.Agrees == nil || !*s.Agrees {
			m.t.Errorf("status: %+v", s)
		}
		for _, p := range n.points() {
			if p.Level == "fail" {
				m.t.Errorf("check: %+v", p)
			}
		}
		n.stop()
		n.assertGone()
	})
	for _, c := range []struct {
		name, lines, reason string
		before              bool // known before the old container ends
	}{
		{"a command that ends", "Exec=false\n", "ended", false},
		{"an image that is not there", "Image=localhost/none\nPull=never\n", "none", true},
		{"READY=1 that does not come", "Notify=yes\nHealthCmd=none\n", "not ready within 15s", false},
	} {
		m.share("fails: "+c.name, func(m machine) {
			u := m.user()
			more := owned + "TimeoutStartSec=30\n" + reloading(how, "mixed")
			// The container of the start gets another command than that of the reload.
			u.quadlets(map[string]string{"NAME.container": sleeper + more})
			n := u.quadletUnit("NAME.service", "NAME")
			n.start()
			before, id := n.properties(), n.stored(n.container).id
			m.write(quadletDir+"/"+u.name+"/"+u.name+".container", strings.NewReplacer("NAME", u.name, "USER", u.name).Replace(strings.TrimSuffix(sleeper, "\n")+"\n"+c.lines+more))
			m.systemctl("daemon-reload")
			if r := m.try("systemctl", "reload", n.name); r.status == 0 {
				m.t.Errorf("reloaded: %v", r)
			}
			n.assertMainPIDIsConmon()
			n.assertStayed(before)
			n.assertOneContainer()
			stays := !swap || c.before
			if after := n.stored(n.container).id; (after == id) != stays || stays && n.property("MainPID") != before["MainPID"] {
				m.t.Errorf("the container was %s, and is %s", id, after)
			}
			said := n.messages("oci-mainpid")
			if len(said) != 1 || !regexp.MustCompile(`^`+n.name+`: not reloaded: .*`+c.reason).MatchString(said[0]) {
				m.t.Errorf("oci-mainpid said %q, not one line about %s", said, c.reason)
			}
			if status := n.property("StatusText"); !strings.Contains(status, c.reason) {
				m.t.Errorf("STATUS=%s", status)
			}
			n.stop()
			n.assertGone()
		})
	}
}

// TestReloadSockets: a client that connects without a pause loses no connection by
// reloads of a socket-activated unit.
func TestReloadSockets(t *testing.T) {
	onStacksIn(t, onFirst, func(m machine) {
		u := m.user()
		name, path := u.name+".socket", "/run/"+u.name+".sock"
		port := "1" + u.uid[len(u.uid)-4:]
		m.write(unitDir+"/"+name, "[Socket]\nListenStream="+path+"\nListenStream=127.0.0.1:"+port+"\nFileDescriptorName=web\n")
		u.t.Cleanup(func() { m.try("systemctl", "stop", name); m.run("rm", unitDir+"/"+name) })
		u.quadlets(map[string]string{"NAME.container": listener + "Exec=" + guestPath + "\nNotify=yes\n" + owned + reloading("beside", "mixed")})
		n := u.quadletUnit("NAME.service", "NAME")
		m.systemctl("start", name, n.name)
		client := u.name + "-client.service"
		m.run("systemd-run", "--quiet", "--unit="+client, guestPath, "ask", path, "127.0.0.1:"+port)
		for range 9 {
			m.systemctl("reload", n.name)
		}
		n.reload()
		m.assertAnswers("http://localhost/", "web", "--unix-socket", path)
		m.assertNoneLost(client, 1_000)
		m.systemctl("stop", name, n.name)
		n.assertGone()
	})
}

// slow is a container that says READY=1 once there is no file /flag/slow.
const slow = `sh -c 'trap "exit 0" TERM; while [ -e /flag/slow ]; do sleep 0.2; done; exec ` + guestPath + `'`

// slowUnit starts a unit with Reload=, for beginReload.
func (m machine) slowUnit(how string) unit {
	m.t.Helper()
	u := m.user()
	flag := u.home() + "/flag"
	u.shell(`mkdir "$1"; chown "$2:" "$1"`, flag, u.name)
	n := u.unitWithoutDropin(service{mode: "mixed", container: u.name, command: slow, more: "TimeoutStartSec=45",
		options: "--sdnotify=container --volume=" + flag + ":/flag:ro --volume=" + guestPath + ":" + guestPath + ":ro"})
	m.run("oci-mainpid", "generate", "--user="+u.name, "--reload="+how, unitDir+"/"+n.name)
	m.systemctl("daemon-reload")
	n.start()
	return n
}

// beginReload begins a reload whose new container is not ready before endSlow, and
// returns the conmon of the new container once that runs.
func (n unit) beginReload() (conmon string) {
	n.t.Helper()
	n.run("touch", n.home()+"/flag/slow")
	n.systemctl("reload", "--no-block", n.name)
	n.await("the new container runs", soon, func() bool {
		conmon = n.try("cat", n.runtimeDir()+"/oci-mainpid/"+n.name+"/mainpid").stdout
		return conmon != ""
	})
	return conmon
}

// endSlow has slow containers get ready.
func (n unit) endSlow() {
	n.t.Helper()
	n.run("rm", "-f", n.home()+"/flag/slow")
}

// awaitReloaded waits until the reload has ended, in whatever way.
func (n unit) awaitReloaded() {
	n.t.Helper()
	n.await("the reload has ended", 2*soon, func() bool {
		p := n.properties()
		return p["SubState"] != "reload" && p["Job"] == ""
	})
}

// assertNoneLost ends a unit that runs guest ask. At least some connections were answered,
// and none was lost.
func (m machine) assertNoneLost(client string, some int) {
	m.t.Helper()
	m.systemctl("stop", client)
	said := m.journal(client, "--identifier=guest")
	answered, lost, longest := 0, 0, ""
	fmt.Sscanf(said[max(0, strings.LastIndex(said, "answered")):], "answered %d lost %d longest %s", &answered, &lost, &longest)
	m.t.Logf("%d answered, %d lost, the longest took %s", answered, lost, longest)
	if lost > 0 || answered < some {
		m.t.Errorf("of %d connections %d were lost:\n%.2000s", answered+lost, lost, said)
	}
}

// killed is a command of a reload that is killed at its start.
const killed = "ExecReload=-/bin/sh -c 'kill -9 $$$$'\n"

// claims is a command of a reload that writes a PID into the file of the new container.
func (n unit) claims(pid string) string {
	return "ExecReload=-/bin/sh -c 'echo " + pid + " >" + n.userDir() + "/next'\n"
}

// reloadLines returns a function that puts other commands in the place of lines of
// ExecReload=, of which there are count. The first one is 1.
func (n unit) reloadLines(count int) (replaced func(changes map[int]string)) {
	n.t.Helper()
	dropin := n.run("cat", unitDir+"/"+n.name+".d/50-oci-mainpid.conf")
	all := regexp.MustCompile(`(?m)^ExecReload=.*\n`).FindAllString(dropin, -1)
	if len(all) != count {
		n.t.Fatalf("%d lines of ExecReload=", len(all))
	}
	return func(changes map[int]string) {
		n.t.Helper()
		text := "[Service]\nExecReload=\n"
		for i, line := range all {
			if other, ok := changes[i+1]; ok {
				line = other
			}
			text += line
		}
		n.dropin(60, text)
		n.endSlow()
		n.systemctl("daemon-reload")
	}
}

// atOnce tests what else happens at the time of a reload of the unit, which runs. What is
// nearly the same with each word of Reload= is run by like.
func (n unit) atOnce(m machine, like func(name string, test func(m machine))) {
	m.subtest("two reloads at once", func(m machine) {
		n := n.in(m)
		n.endSlow()
		before, id := n.properties(), n.stored(n.container).id
		m.shell(`systemctl reload "$1" & first=$!; systemctl reload "$1"; wait $first`, n.name)
		n.assertMainPIDIsConmon()
		n.assertStayed(before)
		n.assertOneContainer()
		if n.stored(n.container).id == id {
			m.t.Error("the same container")
		}
	})
	like("MAINPID= of the user's meanwhile", func(m machine) {
		n := n.in(m)
		// Since the start systemd hears everybody in the unit.
		m.systemctl("restart", n.name)
		before := n.properties()
		n.beginReload()
		// A process of the user's in the unit, which says that another one is the main process.
		stranger := m.shell(`echo $$ >"/sys/fs/cgroup/system.slice/$1/.control/cgroup.procs"
			exec setpriv --reuid="$2" --clear-groups sh -ec 'sleep 1001 >/dev/null 2>&1 & NOTIFY_SOCKET=/run/systemd/notify systemd-notify MAINPID=$!; echo $!'`, n.name, n.uid)
		defer m.try("kill", stranger)
		m.t.Logf("the main process is %s, the user's is %s", n.property("MainPID"), stranger)
		n.endSlow()
		n.awaitReloaded()
		n.assertMainPIDIsConmon()
		n.assertStayed(before)
		n.assertOneContainer()
	})
	like("the unit's file is removed", func(m machine) {
		n := n.in(m)
		m.run("mv", unitDir+"/"+n.name, unitDir+"/"+n.name+".away")
		n.reload()
		m.systemctl("daemon-reload")
		// Its drop-in is there, so it is reloaded as before.
		n.reload()
		m.run("mv", unitDir+"/"+n.name+".away", unitDir+"/"+n.name)
		m.systemctl("daemon-reload")
		n.reload()
	})
	m.subtest("a reload while it stops", func(m machine) {
		n := n.in(m)
		m.shell(`systemctl stop "$1" & stop=$!; systemctl reload "$1" || :; wait $stop || :`, n.name)
		n.awaitReloaded()
		if n.property("ActiveState") == "active" {
			n.assertMainPIDIsConmon()
			n.assertOneContainer()
			return
		}
		n.assertGone()
		n.start()
	})
}

// TestReloadReexec: systemd is executed anew, and reloaded, in the middle of a reload, which
// goes on. Nothing else runs on the machine, because connections to systemd end with it.
func TestReloadReexec(t *testing.T) {
	onStacks(t, func(m machine) {
		for _, how := range []string{"beside", "swap"} {
			m.share(how, func(m machine) {
				n := m.slowUnit(how)
				before, id := n.properties(), n.stored(n.container).id
				n.beginReload()
				m.systemctl("daemon-reexec")
				m.systemctl("daemon-reload")
				n.endSlow()
				n.awaitReloaded()
				n.assertMainPIDIsConmon()
				n.assertStayed(before)
				n.assertOneContainer()
				if n.stored(n.container).id == id {
					m.t.Error("the same container")
				}
				n.stop()
				n.assertGone()
			})
		}
	})
}

// TestReloadCutOff: whatever ends in the middle of a reload, afterwards the unit has one
// container or none, and its conmon is the main process.
func TestReloadCutOff(t *testing.T) {
	onOneStack(t, onLast, func(m machine) {
		n := m.slowUnit("beside")
		before, id := n.assertMainPIDIsConmon(), n.stored(n.container).id
		// unchanged checks that the old container goes on.
		unchanged := func(m machine) {
			m.t.Helper()
			n := n.in(m)
			n.awaitReloaded()
			if after := n.assertMainPIDIsConmon(); after != before || n.stored(n.container).id != id {
				m.t.Errorf("before %v, after %v", before, after)
			}
			n.assertOneContainer()
		}
		for _, c := range []struct{ name, victim string }{
			{"what waits for the new container is killed", `pgrep -u "$2" -f "[r]eplace start --unit=$1"`},
			{"the new container's conmon is killed", `echo "$3"`},
			{"the new container is killed", `pgrep -P "$3"`},
		} {
			m.subtest(c.name, func(m machine) {
				n := n.in(m)
				conmon := n.beginReload()
				m.shell(`kill -9 $(`+c.victim+`)`, n.name, n.uid, conmon)
				unchanged(m)
			})
		}
		replaced := n.reloadLines(5)
		m.subtest("notify-mainpid is killed", func(m machine) {
			n := n.in(m)
			replaced(map[int]string{3: killed})
			if r := m.try("systemctl", "reload", n.name); r.status == 0 {
				m.t.Errorf("reloaded: %v", r)
			}
			unchanged(m)
		})
		for name, pid := range map[string]string{
			"a process of root's in the file": "1", "a process of the user's": "$$$$", "no PID": "web", "the old conmon": before.conmon,
		} {
			m.rare(name, func(m machine) {
				n := n.in(m)
				replaced(map[int]string{2: n.claims(pid)})
				m.try("systemctl", "reload", n.name)
				unchanged(m)
			})
		}
		m.subtest("the first to remove the old container is killed", func(m machine) {
			n := n.in(m)
			replaced(map[int]string{4: killed})
			n.reload()
		})
		m.subtest("both who remove the old container are killed", func(m machine) {
			n := n.in(m)
			replaced(map[int]string{4: killed, 5: killed})
			m.try("systemctl", "reload", n.name)
			replaced(nil)
			n.reload()
		})
		n.atOnce(m, m.subtest)
		m.subtest("stopped meanwhile", func(m machine) {
			n := n.in(m)
			n.beginReload()
			n.stop()
			n.assertGone()
		})
		m.subtest("the old container ends meanwhile", func(m machine) {
			n := n.in(m)
			n.endSlow()
			n.start()
			p := n.assertMainPIDIsConmon()
			n.beginReload()
			m.run("kill", "-9", p.payload)
			n.awaitState("failed")
			n.assertGone()
		})
	})
}
