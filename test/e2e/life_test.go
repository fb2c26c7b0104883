//go:build e2e

package e2e

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUserCommands: what the user does to the container with podman works, and
// systemd hears of it.
func TestUserCommands(t *testing.T) {
	onStacks(t, func(m machine) {
		// In the mode service, crun may not move a process into the container's
		// control group: that is what the mode costs.
		for _, mode := range []string{"mixed", "user"} {
			m.share("podman exec with Cgroup "+mode, func(m machine) {
				n := m.user().unit(service{mode: mode})
				n.start()
				r := n.login("podman", "exec", n.container, "cat", "/proc/1/comm")
				if m.must(r) != "sh" {
					m.t.Error(r)
				}
				n.assertMainPIDIsConmon()
			})
		}
		for i, mode := range []string{"mixed", "service", "user"} {
			m.everyOther(i, "podman stop with Cgroup "+mode+" ends the unit with success", func(m machine) {
				n := m.user().unit(service{mode: mode})
				n.start()
				m.must(n.login("podman", "stop", n.container))
				n.awaitState("inactive")
				n.assertEnded("inactive", "success", "0")
				n.assertGone()
			})
		}
	})
}

func TestExitStatusOfTheContainerIsTheUnits(t *testing.T) {
	onStacks(t, func(m machine) {
		for i, mode := range []string{"mixed", "service", "user"} {
			m.everyOther(i, "Cgroup "+mode, func(m machine) {
				n := m.user().unit(service{mode: mode, command: exiting7})
				n.start()
				n.awaitHandler(n.container, unix.SIGUSR1)
				n.podman("kill", "--signal=USR1", n.container)
				n.awaitState("failed")
				n.assertEnded("failed", "exit-code", "7")
				n.assertGone()
			})
		}
	})
}

func TestConmonKilled(t *testing.T) {
	onStacks(t, func(m machine) {
		for i, mode := range []string{"mixed", "service", "user"} {
			m.everyOther(i, "Cgroup "+mode+" and Restart always: a new main PID that is right", func(m machine) {
				n := m.user().unit(service{mode: mode, more: "Restart=always"})
				n.start()
				before := n.assertMainPIDIsConmon()
				n.run("kill", "-9", before.conmon)
				n.await("restarted", soon, func() bool {
					p := n.properties()
					return p["NRestarts"] == "1" && p["ActiveState"] == "active"
				})
				if after := n.assertMainPIDIsConmon(); after.conmon == before.conmon || after.payload == before.payload {
					m.t.Errorf("before %v, after %v", before, after)
				}
				if m.try("test", "-e", "/proc/"+before.payload).status == 0 {
					m.t.Errorf("the first container still runs, process %s", before.payload)
				}
				n.stop()
				n.assertGone()
			})
		}
	})
}

// stopDelay is how much later logind stops the manager of a user without
// sessions, UserStopDelaySec= in logind.conf(5).
const stopDelay = 10 * time.Second

// TestLogout: a unit whose user comes and goes stays.
func TestLogout(t *testing.T) {
	onOneStack(t, onFirst, func(m machine) {
		mixed, user := m.user().unit(service{mode: "mixed"}), m.user().unit(service{mode: "user"})
		for _, n := range []unit{mixed, user} {
			n.start()
			m.must(n.login("true"))
		}
		time.Sleep(stopDelay + 2*time.Second)
		for _, n := range []unit{mixed, user} {
			n.assertState("active")
			m.must(n.login("podman", "exec", n.container, "true"))
		}
	})
}

// TestFiles: no file of a dead unit stays, and those of units that live cannot
// fill /run.
func TestFiles(t *testing.T) {
	onStacks(t, func(m machine) {
		m.share("a unit whose own ExecStopPost= fails", func(m machine) {
			n := m.user().unit(service{mode: "mixed", more: "ExecStopPost=/bin/false"})
			n.start()
			n.assertMainPIDIsConmon()
			n.stop()
			n.assertEnded("failed", "exit-code", "0")
			n.assertGone()
		})
		m.share("on a file system of their own", func(m machine) {
			n := m.user().unit(service{mode: "mixed"})
			n.start()
			if got, want := m.run("findmnt", "--noheadings", "--output=FSTYPE,OPTIONS", "/run/oci-mainpid"), "tmpfs rw,nosuid,nodev,noexec,relatime,size=32768k,nr_inodes=16384,mode=711"; got != want {
				m.t.Errorf("/run/oci-mainpid is %q, want %q", got, want)
			}
			users := "/run/oci-mainpid/users/" + n.uid
			if got, want := m.run("findmnt", "--noheadings", "--output=FSTYPE,OPTIONS", users), "tmpfs rw,nosuid,nodev,noexec,relatime,size=4096k,nr_inodes=4096,mode=711"; got != want {
				m.t.Errorf("%s is %q, want %q", users, got, want)
			}
		})
		m.share("in /run where that is masked", func(m machine) {
			const mount = `run-oci\x2dmainpid.mount`
			m.systemctl("mask", "--runtime", mount)
			m.t.Cleanup(func() { m.systemctl("unmask", "--runtime", mount) })
			m.run("umount", "--lazy", "/run/oci-mainpid")
			n := m.user().unit(service{mode: "mixed"})
			n.start()
			n.assertMainPIDIsConmon()
			if r := m.try("mountpoint", "-q", "/run/oci-mainpid"); r.status == 0 {
				m.t.Error("/run/oci-mainpid is mounted")
			}
			n.stop()
			n.assertGone()
		})
	})
}

// TestAllKilled: podman 5.4 takes containers whose conmons were killed for
// running, and does nothing at all where there is no other process left whose
// namespaces it could use. podman-pause finds a way.
func TestAllKilled(t *testing.T) {
	onStacks(t, func(m machine) {
		for i, mode := range []string{"mixed", "service", "user"} {
			m.everyOther(i, "Cgroup "+mode+" starts again", func(m machine) {
				n := m.user().unit(service{mode: mode})
				n.start()
				before := n.assertMainPIDIsConmon()
				pause := func() string { return n.try("cat", n.runtimeDir()+"/libpod/tmp/pause.pid").stdout }
				killed := pause()
				n.run("kill", "-9", killed, before.conmon)
				n.awaitState("failed")
				n.await("there is another pause process", soon, func() bool { return pause() != "" && pause() != killed })
				n.start()
				if after := n.assertMainPIDIsConmon(); after.conmon == before.conmon {
					m.t.Errorf("before %v, after %v", before, after)
				}
				n.stop()
				n.assertGone()
			})
		}
	})
}

// TestSystemctlKill: after systemctl kill --signal=KILL, with which the kernel
// may kill the unit's clean-up, too (docs/facts.md), the unit starts anew, with
// podman 5.4 the second time. When only the main process is killed, its container
// and its files go at once.
func TestSystemctlKill(t *testing.T) {
	onStacks(t, func(m machine) {
		for i, mode := range []string{"mixed", "service", "user"} {
			m.everyOther(i, "Cgroup "+mode, func(m machine) {
				n := m.user().unit(service{mode: mode})
				n.start()
				before := n.assertMainPIDIsConmon()
				n.systemctl("kill", "--signal=KILL", n.name)
				n.awaitFailed(soon)
				if n.try("systemctl", "restart", n.name).status != 0 {
					n.systemctl("restart", n.name)
				}
				after := n.assertMainPIDIsConmon()
				if after.conmon == before.conmon {
					m.t.Errorf("before %v, after %v", before, after)
				}
				if m.try("test", "-e", "/proc/"+before.payload).status == 0 {
					m.t.Errorf("the first container still runs, process %s", before.payload)
				}
				n.systemctl("kill", "--kill-whom=main", "--signal=KILL", n.name)
				n.awaitFailed(soon)
				m.await("the container has ended, and its files are gone", soon, func() bool {
					return m.try("test", "-e", "/proc/"+after.payload).status != 0 && m.try("test", "-e", n.dir()).status != 0
				})
				n.start()
				n.assertMainPIDIsConmon()
				n.stop()
				n.assertGone()
			})
		}
	})
}
