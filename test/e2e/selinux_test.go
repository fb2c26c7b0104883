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
