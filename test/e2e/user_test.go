//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"oci-mainpid-hook/test/sandbox"
)

// TestUserAdd: oci-mainpid user add makes a user who can run containers, and whom no
// logout takes podman's locks from.
func TestUserAdd(t *testing.T) {
	onStacks(t, func(m machine) {
		m.t.Cleanup(func() {
			if !*keep {
				m.shell(`for u in $(awk -F: '/^added/ { print $1 }' /etc/passwd); do
					systemctl kill --kill-whom=main user@$(id -u $u) 2>/dev/null || :
					userdel --force $u
				done
				rm -rf /etc/sysusers.d/oci-mainpid-added* /etc/tmpfiles.d/oci-mainpid-added* /var/lib/added*`)
			}
		})
		add := func(args ...string) []string { return append([]string{"oci-mainpid", "user", "add"}, args...) }
		// added calls the command, and checks that the user has what a user needs.
		added := func(m machine, name, want string, args ...string) (ranges string) {
			m.t.Helper()
			var got struct {
				User, Home              string
				UID                     int
				SubUIDs, SubGIDs, Added []string
			}
			out := m.run(add(append(args, "--format=json", name)...)...)
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				m.t.Fatalf("%v\n%s", err, out)
			}
			u := m.existingUser(name)
			if got.User != name || fmt.Sprint(got.UID) != u.uid || got.UID > 999 || got.Home != u.home() || strings.Join(got.Added, ", ") != want {
				m.t.Errorf("want %q: %s", want, out)
			}
			if has := m.run("stat", "-c", "%U %a", u.home()); has != name+" 700" {
				m.t.Errorf("home of %s: %s", name, has)
			}
			for file, ranges := range map[string][]string{"/etc/subuid": got.SubUIDs, "/etc/subgid": got.SubGIDs} {
				var first, last int
				if len(ranges) != 1 {
					m.t.Fatalf("%s: %q", file, ranges)
				}
				fmt.Sscanf(ranges[0], "%d-%d", &first, &last)
				if line := m.run("grep", "^"+name+":", file); line != fmt.Sprintf("%s:%d:65536", name, first) || last != first+65535 {
					m.t.Errorf("%s: %q, %q", file, line, ranges)
				}
			}
			return got.SubUIDs[0]
		}
		const all = "user, home, subordinate IDs"

		m.subtestIn(onLast, "a unit survives a logout", func(m machine) {
			added(m, "added1", all)
			before := m.run("sh", "-c", "cat /etc/passwd /etc/subuid /etc/subgid")
			added(m, "added1", "")
			if after := m.run("sh", "-c", "cat /etc/passwd /etc/subuid /etc/subgid"); after != before {
				m.t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if got := m.run(add("added1")...); !regexp.MustCompile(`(?m)^added1 +\d+ /var/lib/added1 \d+-\d+ +nothing$`).MatchString(got) {
				m.t.Error(got)
			}
			u := m.existingUser("added1")
			if !strings.HasSuffix(m.run("getent", "passwd", u.name), "/nologin") {
				m.t.Error("has a login shell")
			}
			m.run("oci-mainpid", "podman", "--user="+u.name, "import", "--quiet", sandbox.BusyboxTar, imageName)
			u.quadlets(map[string]string{"NAME.container": sleeper + owned})
			n := u.quadletUnit("NAME.service", "NAME")
			n.start()
			before = m.run("stat", "-c", "%i", u.locks())
			m.run("su", "-s", "/bin/sh", "-", u.name, "-c", "loginctl show-user --value -p State "+u.name)
			m.await("logind has forgotten the user", 2*soon, func() bool { return m.try("loginctl", "show-user", u.name).status != 0 })
			if after := m.run("stat", "-c", "%i", u.locks()); after != before {
				m.t.Error("podman's locks are another file")
			}
			n.assertMainPIDIsConmon()
			n.podman("exec", n.container, "true")
			n.stop()
			n.assertGone()
		})
		m.subtestIn(onFirst, "declared", func(m machine) {
			added(m, "added2", all, "--home=/var/lib/added2-home")
			if r := m.try("userdel", "added2"); r.status != 0 {
				// Seen once, nobody knows why: a process has the UID, or an ID of the range.
				m.t.Logf("%v\n%s", r, m.run("ps", "-eo", "pid,uid,lstart,cgroup,args"))
				m.run("userdel", "--force", "added2")
			}
			m.run("rm", "-r", "/var/lib/added2-home")
			m.run("systemd-sysusers")
			m.run("systemd-tmpfiles", "--create", "--prefix=/var/lib/added2-home")
			// userdel has taken the ranges; only these are no declaration's.
			added(m, "added2", "subordinate IDs")
		})
		m.subtestIn(onFirst, "a user who lacks something", func(m machine) {
			m.run("useradd", "--system", "--create-home", "--home-dir=/var/lib/added3", "added3")
			m.run("chmod", "700", "/var/lib/added3")
			added(m, "added3", "subordinate IDs")
			m.shell(`sed -i '/^added3:/d' /etc/subgid`)
			added(m, "added3", "subordinate IDs")
			added(m, "added3", "")
		})
		m.subtestIn(onFirst, "many at once", func(m machine) {
			var wait sync.WaitGroup
			for i := range 6 {
				wait.Add(1)
				go func() {
					defer wait.Done()
					// Each name twice.
					if r := m.try(add(fmt.Sprintf("added4%d", i/2))...); r.status != 0 {
						m.t.Error(r)
					}
				}()
			}
			wait.Wait()
			had := map[string]bool{}
			for i := range 3 {
				ranges := added(m, fmt.Sprintf("added4%d", i), "")
				if had[ranges] {
					m.t.Errorf("%s twice", ranges)
				}
				had[ranges] = true
			}
		})
		m.subtestIn(onLast, "killed", func(m machine) {
			// Each program kills its caller, before it does its work and instead of it.
			for i, tool := range []string{"systemd-sysusers", "systemd-tmpfiles", "usermod"} {
				for j, then := range []string{`exec "$(PATH=/usr/sbin:/usr/bin command -v ${0##*/})" "$@"`, "exit 1"} {
					dir, name := fmt.Sprintf("/run/killer%d%d", i, j), fmt.Sprintf("added5%d%d", i, j)
					m.write(dir+"/"+tool, "#!/bin/sh\nkill -KILL $PPID\n"+then+"\n")
					m.run("chmod", "755", dir+"/"+tool)
					if r := m.try(append([]string{"env", "PATH=" + dir + ":/usr/sbin:/usr/bin"}, add(name)...)...); r.status != 137 {
						m.t.Errorf("%s: not killed: %v", tool, r)
					}
					m.run(add(name)...)
					added(m, name, "")
				}
			}
		})
		m.subtestIn(onLast, "no free range", func(m machine) {
			m.run("cp", "/etc/subuid", "/etc/subuid.before")
			defer m.run("mv", "/etc/subuid.before", "/etc/subuid")
			m.shell(`echo nosuch:0:4294967295 >>/etc/subuid`)
			r := m.try(add("added6")...)
			if r.status != 1 || !strings.Contains(r.stderr, "no range of that size is free: remove one that nobody needs") || strings.Contains(r.stderr, "\n") {
				m.t.Error(r)
			}
			m.run("sed", "-i", "/^nosuch:/d", "/etc/subuid")
			added(m, "added6", "subordinate IDs")
		})
		m.subtestIn(onFirst, "errors", func(m machine) {
			ordinary := m.userWithoutImage()
			m.run("groupadd", "--system", "addedgroup")
			defer m.run("groupdel", "addedgroup")
			m.run("mkdir", "-p", "/var/tmp/theirs")
			m.run("chown", ordinary.name, "/var/tmp/theirs")
			before := m.run("sh", "-c", "cat /etc/passwd /etc/group /etc/subuid; ls /etc/sysusers.d /etc/tmpfiles.d")
			for _, c := range []struct {
				args   []string
				status int
				want   string
			}{
				{add(), 2, "0 arguments, not one NAME"},
				{[]string{"oci-mainpid", "user"}, 2, "add NAME"},
				{add(""), 2, "is no name for a user"},
				{add("Web"), 2, "take small letters"},
				{add("1web"), 2, "take small letters"},
				{add("web.site"), 2, "take small letters"},
				{add("../web"), 2, "take small letters"},
				{add(strings.Repeat("a", 32)), 2, "at most 31"},
				{add("root"), 1, "is root"},
				{add("added7", "--home=var/lib"), 2, "--home=var/lib: must be an absolute path"},
				{add("added7", "--home=/var/lib/../x"), 2, "must be an absolute path"},
				{add("added7", "--home=/var/lib/a b"), 2, "must be an absolute path"},
				{add("added7", "--home=/var/lib/%n"), 2, "must be an absolute path"},
				{add("added7", "--home=/nosuch/home"), 1, "/nosuch: no such file or directory"},
				{add("added7", "--home=/var/lib/dpkg"), 1, "exists and would become the user's"},
				{add("added7", "--home=/var/tmp/theirs/home"), 1, "/var/tmp/theirs: belongs to UID " + ordinary.uid},
				{add("added7", "--format=xml"), 2, "neither table nor json"},
				{add("addedgroup"), 1, "whose rights the user would have"},
				{add(ordinary.name), 1, "is no system user"},
				{add("daemon"), 1, "usermod --home /var/lib/daemon daemon"},
				{append([]string{"setpriv", "--reuid=" + ordinary.uid, "--clear-groups"}, add("added7")...), 1, "must be run as root"},
			} {
				r := m.try(c.args...)
				if r.status != c.status || !strings.Contains(r.stderr, c.want) || strings.Contains(r.stderr, "\n") {
					m.t.Errorf("want %d, %q: %v", c.status, c.want, r)
				}
			}
			if after := m.run("sh", "-c", "cat /etc/passwd /etc/group /etc/subuid; ls /etc/sysusers.d /etc/tmpfiles.d"); after != before {
				m.t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	})
}
