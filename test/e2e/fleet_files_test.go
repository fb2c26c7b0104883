//go:build e2e

package e2e

import (
	"os"
	"testing"
)

// TestFleetFiles: what needs no running Prometheus and no second machine: promtool
// accepts the alerts and the metrics, and each alert fires when it should.
func TestFleetFiles(t *testing.T) {
	onOneStack(t, onLast, func(m machine) {
		m.debian("promtool")
		m.run("promtool", "check", "rules", "/usr/share/oci-mainpid/oci-mainpid.rules.yml")
		rules, err := os.ReadFile("testdata/oci-mainpid.rules_test.yml")
		if err != nil {
			m.t.Fatal(err)
		}
		m.write("/srv/rules_test.yml", string(rules))
		m.run("promtool", "test", "rules", "/srv/rules_test.yml")
		m.user().unit(service{mode: "mixed"}).start()
		if r := m.feed(m.run("oci-mainpid", "status", "--format=prometheus")+"\n", "promtool", "check", "metrics"); r.status != 0 || r.stderr != "" {
			m.t.Error(r)
		}
	})
}
