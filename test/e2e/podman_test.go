//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestPodman: oci-mainpid podman is podman as the unit's user.
func TestPodman(t *testing.T) {
	onStacks(t, func(m machine) {
		u := m.user()
		u.quadlets(map[string]string{"NAME.container": "[Container]\nImage=" + imageName + "\nExec=" + sleeping + "\n" + owned})
		n := u.quadletUnit("NAME.service", "systemd-NAME")
		podman := func(args ...string) []string { return append([]string{"oci-mainpid", "podman"}, args...) }

		m.share("before the user's manager runs", func(m machine) {
			if got := m.run(podman("--user="+u.name, "images", "--format={{.Repository}}")...); got != imageName {
				m.t.Errorf("images: %q", got)
			}
		})
		n.start()
		m.share("arguments", func(m machine) {
			args := []string{"a b", "$HOME", "${USER}", "$$", "%n", `"`, `'`, `\`, "", "é"}
			got := m.run(podman(append([]string{n.name, "exec", n.container, "printf", "<%s>"}, args...)...)...)
			if want := "<" + strings.Join(args, "><") + ">"; got != want {
				m.t.Errorf("got  %s\nwant %s", got, want)
			}
			if got := m.run(podman(n.name, "--", "ps", "--format={{.Names}}")...); got != n.container {
				m.t.Errorf("behind --: %q", got)
			}
		})
		m.share("exit status", func(m machine) {
			if r := m.try(podman(n.name, "exec", n.container, "sh", "-c", "echo out; echo err >&2; exit 7")...); r.status != 7 || r.stdout != "out" || r.stderr != "err" {
				m.t.Error(r)
			}
			if r := m.try(podman(n.name, "exec", "nosuch", "true")...); r.status != 125 || !strings.Contains(r.stderr, "nosuch") {
				m.t.Error(r)
			}
		})
		m.share("pipes", func(m machine) {
			m.shell(`
				head -c 3000000 /dev/urandom >/var/tmp/in
				oci-mainpid podman "$1" exec -i "$2" cat </var/tmp/in | cat >/var/tmp/out
				cmp /var/tmp/in /var/tmp/out`, n.name, n.container)
		})
		m.share("a directory that the user may not enter", func(m machine) {
			m.shell(`mkdir -p -m 700 /root/closed; cd /root/closed; oci-mainpid podman "$1" ps`, n.name)
		})
		m.share("a signal", func(m machine) {
			// podman wait does not end by itself.
			m.shell(`
				oci-mainpid podman "$1" wait "$2" & p=$!
				until pgrep -U "$3" -f 'podman wait ' >/dev/null; do sleep 0.1; done
				kill -TERM $p
				status=0; wait $p || status=$?
				[ $status != 0 ] || exit 1
				! pgrep -U "$3" -f 'podman wait '`, n.name, n.container, u.uid)
		})
		m.share("a terminal", func(m machine) {
			typed := fmt.Sprintf(`stty rows 33 cols 77; oci-mainpid podman %s exec -it %s sh -c 'test -t 0 && test -t 1 && for i in 1 2 3 4 5; do stty size >/tmp/size && break; sleep 0.2; done; exit 5'`, n.name, n.container)
			if r := m.try("systemd-run", "--pty", "--quiet", "--wait", "--collect", "sh", "-c", typed); r.status != 5 {
				m.t.Error(r)
			}
			if got := n.podman("exec", n.container, "cat", "/tmp/size"); got != "33 77" {
				m.t.Errorf("the terminal has %q rows and columns", got)
			}
		})
		m.share("never root's terminal", func(m machine) {
			for _, redirect := range []string{"</dev/null", ">/var/tmp/out", "2>/var/tmp/err", "| cat", "2>&1 >/var/tmp/out", ""} {
				typed := fmt.Sprintf(`tty >/var/tmp/tty; oci-mainpid podman %s unshare sh -c 'for i in 0 1 2; do readlink /proc/self/fd/$i; done >%s/seen' %s`, n.name, u.home(), redirect)
				r := m.try("systemd-run", "--pty", "--quiet", "--wait", "--collect", "sh", "-c", typed)
				seen, tty := m.run("cat", u.home()+"/seen"), m.run("cat", "/var/tmp/tty")
				if r.status != 0 || len(strings.Fields(seen)) < 3 || strings.Contains(seen, tty) {
					m.t.Errorf("%s, on %s: the user's process has %q\n%v", redirect, tty, seen, r)
				}
			}
		})
		m.share("what it starts goes on", func(m machine) {
			m.run(podman(n.name, "run", "--detach", "--name=extra", imageName, "sleep", "1000")...)
			if got := m.run(podman(n.name, "ps", "--filter=name=extra", "--format={{.State}}")...); got != "running" {
				m.t.Errorf("the container is %q", got)
			}
			m.run(podman(n.name, "rm", "--force", "--time=0", "extra")...)
		})
		m.share("completion", func(m machine) {
			if got := m.run("oci-mainpid", "__complete", "podman", n.name, "stop", ""); !strings.Contains(got, n.container) {
				m.t.Errorf("completes %q", got)
			}
			if got := m.run("oci-mainpid", "__complete", "podman", ""); !strings.Contains(got, n.name) {
				m.t.Errorf("completes %q", got)
			}
		})
		m.share("errors", func(m machine) {
			m.write("/etc/systemd/system/"+u.name+"-root.service", "[Service]\nExecStart=true\n")
			m.systemctl("daemon-reload")
			for _, c := range []struct {
				args   []string
				status int
				want   string
			}{
				{podman(), 2, "neither UNIT nor --user=NAME given"},
				{podman(n.name), 2, "no ARGUMENT for podman given"},
				{podman("nosuch", "ps"), 1, "nosuch.service"},
				{podman(u.name+"-root", "ps"), 1, "has no User="},
				{podman("--user=nosuch", "ps"), 1, `user "nosuch" does not exist`},
				{podman("--user=root", "ps"), 1, "is root"},
				{append([]string{"setpriv", "--reuid=" + u.uid, "--clear-groups"}, podman("--user="+u.name, "ps")...), 1, "must be run as root"},
			} {
				r := m.try(c.args...)
				if r.status != c.status || !strings.Contains(r.stderr, c.want) || strings.Count(r.stderr, "\n") > 0 {
					m.t.Errorf("want %d, %q: %v", c.status, c.want, r)
				}
			}
			m.run("rm", "/etc/systemd/system/"+u.name+"-root.service")
		})
		// No session has come or gone, and podman's locks are there.
		n.assertMainPIDIsConmon()
		if left := m.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "oci-mainpid-podman-*"); left != "" {
			m.t.Errorf("units are left: %s", left)
		}
		n.stop()
		n.assertGone()
	})
}
