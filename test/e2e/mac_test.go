//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

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
