//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// TestUninstall: make uninstall leaves a machine as it was before make install.
func TestUninstall(t *testing.T) {
	t.Parallel()
	const list = `find / -xdev \( -path /tmp -o -path /var/log -o -path /var/lib/systemd -o -path /var/cache \) -prune -o -printf '%y %p\n' | sort`
	onFreshMachinesIn(t, onFirst, func(m machine) {
		// Every system has these, but for machines that are built without pages.
		m.run("mkdir", "-p", "/usr/share/man/man1", "/usr/share/man/man5", "/usr/share/man/man7", "/usr/share/man/man8")
		before := m.shell(list)
		if err := runMake("install", m.box.Root()); err != nil {
			m.t.Fatal(err)
		}
		installed := difference(m.shell(list), before)
		m.t.Logf("installed:\n%s", installed)
		for _, path := range []string{hookProgram, hookFile, helperProgram, "/usr/bin/oci-mainpid", "/usr/lib/systemd/system-generators/oci-mainpid-generator"} {
			if !strings.Contains(installed, " "+path+"\n") {
				m.t.Errorf("not installed: %s", path)
			}
		}
		if err := runMake("uninstall", m.box.Root()); err != nil {
			m.t.Fatal(err)
		}
		if left := difference(m.shell(list), before); left != "" {
			m.t.Errorf("left:\n%s", left)
		}
	})
}

// difference returns the lines of a that are not in b.
func difference(a, b string) string {
	had := map[string]bool{}
	for line := range strings.Lines(b + "\n") {
		had[line] = true
	}
	var d strings.Builder
	for line := range strings.Lines(a + "\n") {
		if !had[line] {
			d.WriteString(line)
		}
	}
	return d.String()
}
