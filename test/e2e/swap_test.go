//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// TestSwap: systemctl reload puts another container in the place of one that cannot exist
// twice, and the unit stays active.
func TestSwap(t *testing.T) {
	onStacks(t, func(m machine) {
		m.reloads("swap")
		m.share("a file that is removed", func(m machine) {
			u := m.user()
			u.quadlets(map[string]string{"NAME.container": sleeper + owned + reloading("swap", "mixed")})
			n := u.quadletUnit("NAME.service", "NAME")
			n.start()
			before, id := n.assertMainPIDIsConmon(), n.stored(n.container).id
			m.run("mv", quadletDir+"/"+u.name, "/run/"+u.name)
			m.systemctl("daemon-reload")
			r := m.try("systemctl", "reload", n.name)
			if after := n.assertMainPIDIsConmon(); r.status == 0 || after != before || n.stored(n.container).id != id {
				m.t.Errorf("before %v, after %v: %v", before, after, r)
			}
			m.run("mv", "/run/"+u.name, quadletDir+"/"+u.name)
			m.systemctl("daemon-reload")
			n.reload()
			n.stop()
			n.assertGone()
		})
	})
}

// TestSwapSockets: a client that connects without a pause waits while the container of a
// socket-activated unit is swapped, and loses no connection.
func TestSwapSockets(t *testing.T) {
	onOneStack(t, onLast, func(m machine) {
		u := m.user()
		name, path := u.name+".socket", "/run/"+u.name+".sock"
		m.write(unitDir+"/"+name, "[Socket]\nListenStream="+path+"\nFileDescriptorName=web\n")
		u.t.Cleanup(func() { m.try("systemctl", "stop", name); m.run("rm", unitDir+"/"+name) })
		text := listener + "Notify=yes\n" + owned + "TimeoutStartSec=45\n" + reloading("swap", "mixed")
		u.quadlets(map[string]string{"NAME.container": strings.Replace(text, "[Service]", "Exec="+guestPath+"\n[Service]", 1)})
		n := u.quadletUnit("NAME.service", "NAME")
		m.systemctl("start", name, n.name)
		client := u.name + "-client.service"
		m.run("systemd-run", "--quiet", "--unit="+client, guestPath, "ask", path)
		n.reload()
		n.reload()
		// The old one comes back with them, too.
		before := n.properties()
		file := quadletDir + "/" + u.name + "/" + u.name + ".container"
		m.run("sed", "-i", "s,^Exec=.*,Exec=false,", file)
		m.systemctl("daemon-reload")
		if r := m.try("systemctl", "reload", n.name); r.status == 0 {
			m.t.Errorf("reloaded: %v", r)
		}
		n.assertMainPIDIsConmon()
		n.assertStayed(before)
		n.assertOneContainer()
		m.assertAnswers("http://localhost/", "web", "--unix-socket", path)
		m.assertNoneLost(client, 1)
		m.systemctl("stop", name, n.name)
		n.assertGone()
	})
}

// TestSwapCutOff: whatever ends in the middle of a swap, afterwards the unit has one
// container, and its conmon is the main process, or the unit has ended and has none.
func TestSwapCutOff(t *testing.T) {
	onOneStack(t, onFirst, func(m machine) {
		n := m.slowUnit("swap")
		replaced := n.reloadLines(7)
		// back checks that the reload fails, and a container like the old one runs.
		back := func(m machine, before map[string]string, id string) {
			m.t.Helper()
			n := n.in(m)
			n.awaitReloaded()
			n.assertMainPIDIsConmon()
			n.assertStayed(before)
			n.assertOneContainer()
			if n.stored(n.container).id == id {
				m.t.Error("the old container runs: nothing was swapped")
			}
			if result := n.property("ReloadResult"); result == "success" {
				m.t.Error("the reload has succeeded")
			}
		}
		for _, c := range []struct{ name, victim string }{
			{"what waits for the new container is killed", `pgrep -u "$2" -f "[r]eplace start --unit=$1"`},
			{"the new container's conmon is killed", `echo "$3"`},
			{"the new container is killed", `pgrep -P "$3"`},
		} {
			m.subtest(c.name, func(m machine) {
				n := n.in(m)
				before, id := n.properties(), n.stored(n.container).id
				conmon := n.beginReload()
				m.shell(`kill -9 $(`+c.victim+`)`, n.name, n.uid, conmon)
				back(m, before, id)
				n.endSlow()
			})
		}
		n.atOnce(m, m.rare)
		// ends checks that the unit fails and leaves nothing, and starts it.
		ends := func(m machine) {
			m.t.Helper()
			n := n.in(m)
			n.awaitState("failed")
			n.assertGone()
			replaced(nil)
			n.start()
		}
		m.subtest("the process that stands in is killed", func(m machine) {
			n := n.in(m)
			n.beginReload()
			m.run("kill", "-9", n.property("MainPID"))
			ends(m)
		})
		m.rare("notify-mainpid is killed once", func(m machine) {
			n := n.in(m)
			replaced(map[int]string{4: killed})
			n.reload()
		})
		m.rare("notify-mainpid is killed at its start", func(m machine) {
			n := n.in(m)
			before := n.assertMainPIDIsConmon()
			replaced(map[int]string{1: killed})
			m.try("systemctl", "reload", n.name)
			if after := n.assertMainPIDIsConmon(); after != before {
				m.t.Errorf("before %v, after %v", before, after)
			}
			n.assertOneContainer()
		})
		m.subtest("notify-mainpid is killed each time", func(m machine) {
			n := n.in(m)
			replaced(map[int]string{4: killed, 5: killed})
			m.try("systemctl", "reload", n.name)
			ends(m)
		})
		for name, pid := range map[string]string{"a process of root's in the file": "1", "a process of the user's": "$$$$", "the process that stands in": "$$MAINPID"} {
			m.rare(name, func(m machine) {
				n := n.in(m)
				replaced(map[int]string{3: n.claims(pid)})
				m.try("systemctl", "reload", n.name)
				ends(m)
			})
		}
		m.rare("the first to finish is killed", func(m machine) {
			n := n.in(m)
			replaced(map[int]string{6: killed})
			n.reload()
		})
		m.subtest("both who finish are killed", func(m machine) {
			n := n.in(m)
			replaced(map[int]string{6: killed, 7: killed})
			m.try("systemctl", "reload", n.name)
			replaced(nil)
			n.reload()
		})
		m.subtest("stopped meanwhile", func(m machine) {
			n := n.in(m)
			n.beginReload()
			n.stop()
			n.assertGone()
		})
	})
}
