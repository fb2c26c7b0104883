//go:build e2e && machines

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/test/sandbox"
)

var permissive = flag.Bool("permissive", false, "TestWholeSELinux shows what would be denied")

// avc is a denial in the kernel's log. Its parts are the permissions, the source's domain,
// the target's type and the class.
var avc = regexp.MustCompile(`avc:  denied  \{ ([^}]*) \}.* scontext=\w+:\w+:(\w+)\S* tcontext=\w+:\w+:(\w+)\S* tclass=(\w+)`)

// denials returns what SELinux has denied since the boot to podman, conmon, what systemd
// starts, and anybody in our files.
func (m machine) denials() (all []string) {
	m.t.Helper()
	for line := range strings.Lines(m.shell("dmesg | grep 'avc:  denied' || :")) {
		parts := avc.FindStringSubmatch(line)
		if parts == nil {
			m.t.Errorf("not understood: %s", line)
			continue
		}
		if regexp.MustCompile(`^(podman|conmon|init|mount|container)`).MatchString(parts[2]) || strings.HasPrefix(parts[3], "oci_mainpid") {
			text := fmt.Sprintf("%s %s:%s { %s}", parts[2], parts[3], parts[4], parts[1]+" ")
			if !slices.Contains(all, text) {
				all = append(all, text)
				m.t.Log(strings.TrimSpace(line))
			}
		}
	}
	return all
}

// TestWholeSELinux: SELinux enforces Debian's policy with our module, and denies nothing
// that a unit needs.
func TestWholeSELinux(t *testing.T) {
	const afterInstall = "/usr/share/after-install.sh"
	files := t.TempDir()
	err := errors.Join(os.MkdirAll(filepath.Join(files, path.Dir(guestPath)), 0o755), runMake("install", files), installGuest(files),
		copyFile(filepath.Join(files, afterInstall), "../../packaging/after-install.sh"))
	if err != nil {
		t.Fatal(err)
	}
	enforcing := "1"
	if *permissive {
		enforcing = "0"
	}
	m := bootWhole(t, sandbox.Config{
		Files: files,
		Prepare: `semodule --noreload --store=default --install=/usr/share/selinux/packages/oci_mainpid.cil
			setfiles -F -q /etc/selinux/default/contexts/files/file_contexts /
			chcon system_u:object_r:bin_t:s0 /usr/bin/journalctl # so that this test may read the journal`,
		Kernel: "security=selinux selinux=1 enforcing=" + enforcing,
	})
	if got := m.run("cat", "/sys/fs/selinux/enforce"); got != enforcing {
		m.t.Fatalf("enforce is %s", got)
	}
	m.run("sysctl", "--write", "kernel.printk_ratelimit=0") // no denial is left out
	if got := m.run("stat", "--format=%C", "/run/oci-mainpid"); got != "system_u:object_r:oci_mainpid_runtime_t:s0" {
		m.t.Errorf("/run/oci-mainpid: %s", got)
	}
	u := m.user()
	u.quadlets(map[string]string{"NAME.container": sleeper + "Network=none\n" + owned + reloading("beside", "mixed")})
	n := u.quadletUnit("NAME.service", "NAME")
	m.subtest("container", func(m machine) {
		n := n
		n.machine = m
		n.start()
		p := n.assertMainPIDIsConmon()
		for pid, domain := range map[string]string{p.conmon: "podman_conmon_t", p.payload: "container_t"} {
			if got := m.run("ps", "--no-headers", "-o", "label", "-p", pid); !strings.HasPrefix(got, "system_u:system_r:"+domain+":s0") {
				m.t.Errorf("%s: %s, not %s", m.run("ps", "--no-headers", "-o", "args", "-p", pid), got, domain)
			}
		}
		if got := m.run("stat", "--format=%C", n.mainPIDFile()); got != "system_u:object_r:oci_mainpid_runtime_t:s0" {
			m.t.Errorf("the mainpid file: %s", got)
		}
		n.reload()
		n.stop()
		n.assertGone()
	})
	for _, mode := range []string{"service", "user"} {
		m.subtest(mode+", network, volume", func(m machine) {
			u := m.user()
			u.quadlets(map[string]string{"NAME.container": "[Container]\nImage=" + imageName + "\nContainerName=NAME\nVolume=NAME-data:/data:z\n" +
				"Exec=sh -c \"echo started >>/data/x; trap 'exit 0' TERM; sleep 1000 & wait\"\n" + owned + inMode(mode)})
			if mode == "user" {
				m.run("restorecon", "-R", u.home())
			}
			n := u.quadletUnit("NAME.service", "NAME")
			for starts := range 2 {
				n.start()
				n.assertMainPIDIsConmon()
				m.await("the container has written into its volume", soon, func() bool {
					written := m.try("cat", u.home()+"/.local/share/containers/storage/volumes/"+u.name+"-data/_data/x").stdout
					return strings.Count(written, "started") == starts+1
				})
				n.stop()
			}
			n.assertGone()
		})
	}
	m.subtest("pod", func(m machine) {
		u := m.user()
		u.quadlets(map[string]string{
			"NAME.pod":         "[Pod]\nPodName=NAME-p\nPodmanArgs=--network=none\n" + owned,
			"NAME-a.container": strings.Replace(sleeper, "ContainerName=NAME", "ContainerName=NAME-a", 1) + "Pod=NAME.pod\n" + owned,
		})
		n := u.quadletUnit("NAME-a.service", "NAME-a")
		n.start()
		n.assertMainPIDIsConmon()
		m.systemctl("stop", u.name+"-pod.service")
	})
	m.subtest("template", func(m machine) {
		u := m.user()
		u.quadlets(map[string]string{"NAME@.container": strings.Replace(sleeper, "ContainerName=NAME", "ContainerName=NAME-%i", 1) + "Network=none\n" + owned})
		n := u.quadletUnit("NAME@one.service", "NAME-one")
		n.start()
		n.assertMainPIDIsConmon()
		n.stop()
	})
	m.subtest("a stranger's PID", func(m machine) {
		n := m.user().unit(service{mode: "mixed", options: "--network=none"})
		n.dropin(60, fmt.Sprintf("[Service]\nExecStartPre=+/bin/sh -c 'echo 1 >%s'\n", n.mainPIDFile()))
		m.systemctl("daemon-reload")
		if r := m.try("systemctl", "start", n.name); r.status == 0 {
			m.t.Errorf("started, with main PID %s", n.property("MainPID"))
		}
		n.helperSaid("1", "refused: .*process 1: runs as UID 0")
	})
	if denied := m.denials(); len(denied) > 0 {
		m.t.Errorf("denied:\n%s", strings.Join(denied, "\n"))
	}
	m.subtest("without the module", func(m machine) {
		n := n
		n.machine = m
		check := func() string {
			return strings.Join(strings.Fields(m.try("oci-mainpid", "check", "--verbose").stdout), " ")
		}
		if got := check(); !strings.Contains(got, "SELinux "+map[string]string{"0": "permissive", "1": "enforcing"}[enforcing]) {
			m.t.Errorf("check: %s", got)
		}
		m.run("semodule", "--remove=oci_mainpid")
		if r := m.try("systemctl", "start", n.name); (r.status == 0) != *permissive {
			m.t.Errorf("without the module: %v", r)
		}
		if got := check(); !strings.Contains(got, "semodule --install=/usr/share/selinux/packages/oci_mainpid.cil") {
			m.t.Errorf("check: %s", got)
		}
		m.run("sh", afterInstall, "configure")
		n.start()
		n.assertMainPIDIsConmon()
		n.stop()
	})
}

// right is what one domain may do to a type of Debian's SELinux policy.
type right struct{ domain, object, class, permission string }

// has asks the policy of the machine, see sesearch(1), for what no boolean can switch off.
func (r right) has(m machine) bool {
	m.t.Helper()
	return m.shell(`sesearch --allow --source="$1" --target="$2" --class="$3" --perm="$4" /etc/selinux/default/policy/policy.* | grep -v '\]:' || :`,
		r.domain, r.object, r.class, r.permission) != ""
}

// TestSELinux: the module gives the runtime's domain what the hook needs, which
// Debian's policy does not, and containers nothing. No kernel enforces it here, but in
// TestWholeSELinux.
func TestSELinux(t *testing.T) {
	t.Parallel()
	onFreshMachinesIn(t, onLast, func(m machine) {
		const module = "/srv/oci_mainpid.cil"
		if err := copyFile(filepath.Join(m.box.Root(), module), "../../dist/selinux/oci_mainpid.cil"); err != nil {
			m.t.Fatal(err)
		}
		if err := m.box.Install(interrupted, "selinux-policy-default", "policycoreutils", "selinux-utils", "setools"); err != nil {
			m.t.Fatal(err)
		}

		var needed []right
		for domain, conmon := range map[string]string{"podman_t": "podman_conmon_t", "podman_user_t": "podman_user_conmon_t"} {
			needed = append(needed,
				right{domain, conmon, "file", "read"},      // its environment
				right{domain, domain, "process", "ptrace"}, // pidfd_getfd
			)
		}
		for _, r := range needed {
			if r.has(m) {
				m.t.Errorf("without the module, too: %v", r)
			}
		}
		// There is no kernel to reload the policy of.
		m.run("semodule", "--noreload", "--store=default", "--install="+module)
		for _, domain := range []string{"init_t", "podman_t", "podman_user_t"} {
			needed = append(needed,
				right{domain, "oci_mainpid_runtime_t", "dir", "search"},
				right{domain, "oci_mainpid_runtime_t", "file", "read"},
				right{domain, "oci_mainpid_runtime_t", "file", "write"},
			)
		}
		needed = append(needed,
			right{"podman_t", "init_t", "fd", "use"},
			right{"podman_user_t", "init_t", "fd", "use"},
			right{"podman_user_t", "oci_mainpid_runtime_t", "file", "watch"}, // the result file
			right{"systemd_tmpfiles_t", "oci_mainpid_runtime_t", "dir", "relabelto"},
			// run-oci\x2dmainpid.mount, and rootcontext= in it
			right{"mount_t", "oci_mainpid_runtime_t", "dir", "mounton"},
			right{"mount_t", "tmpfs_t", "filesystem", "relabelfrom"},
			right{"oci_mainpid_runtime_t", "tmpfs_t", "filesystem", "associate"},
		)
		for _, r := range needed {
			if !r.has(m) {
				m.t.Errorf("missing: %v", r)
			}
		}
		for _, permission := range []string{"read", "write"} {
			if r := (right{"container_t", "oci_mainpid_runtime_t", "file", permission}); r.has(m) {
				m.t.Errorf("a container has %v", r)
			}
		}
		for path, want := range map[string]string{
			"/run/oci-mainpid": "oci_mainpid_runtime_t",
			"/run/oci-mainpid/users/1000/web.service/mainpid": "oci_mainpid_runtime_t",
			helperProgram:          "bin_t",
			hookProgram:            "bin_t",
			"/usr/bin/oci-mainpid": "bin_t",
		} {
			if got := m.run("matchpathcon", "-n", "-f", "/etc/selinux/default/contexts/files/file_contexts", path); got != "system_u:object_r:"+want+":s0" {
				m.t.Errorf("%s: %s", path, got)
			}
		}
	})
}
