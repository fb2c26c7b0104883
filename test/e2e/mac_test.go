//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

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

// TestAppArmor: the profiles of Debian for what starts our programs confine
// nothing, and there is none for ours.
func TestAppArmor(t *testing.T) {
	t.Parallel()
	onFreshMachinesIn(t, onFirst, func(m machine) {
		if err := m.box.Install(interrupted, "apparmor"); err != nil {
			m.t.Fatal(err)
		}
		profiles := m.shell(`grep -hE '^(profile|/)' /etc/apparmor.d/* 2>/dev/null | grep -E 'podman|crun|runc|conmon|oci|libexec'`)
		m.t.Log(profiles)
		for _, program := range []string{"crun", "runc"} {
			if !strings.Contains(profiles, "profile "+program+" ") {
				m.t.Errorf("no profile of %s", program)
			}
		}
		for line := range strings.Lines(profiles) {
			if !strings.Contains(line, "flags=(unconfined)") {
				m.t.Errorf("confines: %s", line)
			}
		}
	})
}
