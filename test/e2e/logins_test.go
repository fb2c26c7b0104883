//go:build e2e

package e2e

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// typedLogins are the commands of the table of logins in Troubleshooting, by its
// first column. An empty list says that the row was measured by hand.
var typedLogins = map[string][][]string{
	"`ssh web@host`": nil, // needs a package
	"`su - web`, `su web`, `runuser -l web`": {
		{"su", "-", "web", "-c", "true"}, {"su", "web", "-c", "true"}, {"runuser", "-l", "web", "-c", "true"},
	},
	"`su - web` in a session of root's, such as after `ssh root@host`": {
		{"systemd-run", "--quiet", "--collect", "--wait", "--property=PAMName=login", "--property=User=root", "su", "-", "web", "-c", "true"},
	},
	"`machinectl shell web@`, `run0 -u web`, `systemctl --user -M web@`": {
		{"systemctl", "--user", "-M", "web@.host", "is-active", "default.target"},
	},
	"a job of cron's": nil, // needs a package
	"`runuser -u web -- …`, `setpriv`, `systemd-run --uid=web`": {
		{"runuser", "-u", "web", "--", "true"}, {"setpriv", "--reuid=web", "--init-groups", "true"},
		{"systemd-run", "--quiet", "--collect", "--wait", "--uid=web", "true"},
	},
}

// TestLogins: Troubleshooting says truly which ways of becoming a unit's user
// cost podman's locks, and what keeps them. No shell does.
func TestLogins(t *testing.T) {
	const troubleshooting page = "docs/troubleshooting.md"
	text, err := troubleshooting.text()
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(text, "\n## Logins\n")
	section, _, _ = strings.Cut(section, "\n## ")
	deleted := map[string]bool{} // by the first column
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			continue
		}
		switch what := strings.TrimSpace(cells[3]); what {
		case "deleted", "stay":
			deleted[strings.TrimSpace(cells[1])] = what == "deleted"
		}
	}
	if has, want := slices.Sorted(maps.Keys(deleted)), slices.Sorted(maps.Keys(typedLogins)); !slices.Equal(has, want) {
		t.Fatalf("the page has %q, the test %q", has, want)
	}

	onOneStack(t, onLast, func(m machine) {
		type login struct {
			user
			typed   []string
			deleted bool
		}
		var all []login
		var units []unit
		ordinary := func(typed []string, deleted bool) user {
			n := m.user().unit(service{mode: "mixed"})
			n.start()
			units = append(units, n)
			all = append(all, login{n.user, typed, deleted})
			return n.user
		}
		for row, commands := range typedLogins {
			for _, typed := range commands {
				ordinary(typed, deleted[row])
			}
		}
		su := []string{"su", "-", "web", "-c", "true"}
		m.run("usermod", "--shell", "/bin/false", ordinary(su, true).name)
		lingering := ordinary(su, false).name
		m.run("loginctl", "enable-linger", lingering)
		m.t.Cleanup(func() { m.run("loginctl", "disable-linger", lingering) })
		system := user{machine: m, name: "logins"}
		m.run("useradd", "--system", "--create-home", system.name)
		system.uid = m.run("id", "--user", system.name)
		m.systemctl("start", "user@"+system.uid)
		all = append(all, login{system, su, false})

		for _, l := range all {
			l.run(l.as("touch", l.locks())...)
			args := slices.Clone(l.typed)
			for i, arg := range args {
				args[i] = strings.ReplaceAll(arg, "web", l.name)
			}
			l.try(args...) // a shell may refuse
		}
		time.Sleep(stopDelay + 2*time.Second)
		for _, l := range all {
			there := func() bool { return l.try("test", "-e", l.locks()).status == 0 }
			if l.deleted {
				m.await(strings.Join(l.typed, " ")+" has podman's locks deleted", soon, func() bool { return !there() })
			} else if !there() {
				m.t.Errorf("%q: podman's locks are deleted", l.typed)
			}
		}
		for _, n := range units {
			n.assertState("active")
			n.run("test", "-d", n.runtimeDir())
		}
	})
}

// locks is the file of podman's locks.
func (u user) locks() string { return "/dev/shm/libpod_rootless_lock_" + u.uid }
