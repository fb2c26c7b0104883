//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// TestCredentials: the credentials of a unit, systemd.exec(5), are in its container, also
// after a restart, and nobody else can read them.
func TestCredentials(t *testing.T) {
	onStacks(t, func(m machine) {
		m.run("mkdir", "-p", "/etc/credstore.encrypted")
		m.shell(`umask 077; printf %s loaded >/etc/e2e.credential; printf %s encrypted | systemd-creds encrypt --with-key=host --name=encrypted - /etc/credstore.encrypted/encrypted`)
		for i, c := range []struct{ mode, runtime string }{{"mixed", "crun"}, {"user", "crun"}, {"service", "runc"}} {
			m.everyOther(i, c.mode+" with "+c.runtime, func(m machine) {
				u := m.user()
				u.useRuntime(c.runtime)
				u.quadlets(map[string]string{"NAME.container": "[Container]\nImage=" + imageName + "\nNetwork=none\nPodmanArgs=--stop-timeout=1\nVolume=%d:/credentials:ro\nExec=sh -c \"cat /credentials/loaded /credentials/encrypted /credentials/set; echo .; sleep 1000\"\n" +
					"[Service]\nUser=USER\nLoadCredential=loaded:/etc/e2e.credential\nLoadCredentialEncrypted=encrypted\nSetCredential=set:set\n" + inMode(c.mode)})
				n := u.quadletUnit("NAME.service", "systemd-NAME")
				for starts, verb := range []string{"start", "restart"} {
					m.systemctl(verb, n.name)
					n.assertMainPIDIsConmon()
					n.await("the container has the credentials", soon, func() bool {
						return strings.Count(n.try("journalctl", "CONTAINER_NAME="+n.container, "--output=cat").stdout, "loadedencryptedset.\n") == starts+1
					})
				}
				if out := u.try(m.user().as("cat", "/run/credentials/"+n.name+"/loaded")...); out.status == 0 {
					m.t.Errorf("another user reads it: %s", out)
				}
				n.stop()
				if out := m.try("ls", "/run/credentials/"+n.name); out.status == 0 {
					m.t.Errorf("left after the stop: %s", strings.TrimSpace(out.stdout))
				}
			})
		}
	})
}
