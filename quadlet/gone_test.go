package quadlet

import (
	"context"
	"io/fs"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/handover"
)

// TestGone: a unit that runs by a record has its container ended when it stops, though
// none of its files has a user any more.
func TestGone(t *testing.T) {
	p, _ := planner(t, map[string]string{
		"served.container":  "[Container]\n" + asWeb,
		"refused.container": "[Container]\n[X-MainPID]\nCgroup=none\n" + asWeb,
		"root.container":    "[Container]\n",
		"i@.container":      "[Container]\n" + asWeb,
		"r@.container":      "[Container]\n[X-MainPID]\nCgroup=none\n" + asWeb,
	})
	units := t.TempDir()
	p.UnitDirs = []string{units}
	write(t, units+"/hand.service", "[Service]\nExecStart=/bin/true\n")
	write(t, units+"/hand.service.d/50-oci-mainpid.conf", "")
	write(t, units+"/bare.service", "[Service]\nExecStart=/bin/true\nExecStopPost=/bin/false\n")
	write(t, units+"/itself.service", "[Service]\nExecStart=/bin/true\nExecStopPost=+/x/notify-mainpid --forget a b\n")
	write(t, units+"/hand@.service", "[Service]\nExecStart=/bin/true\n")
	write(t, units+"/hand@.service.d/50-oci-mainpid.conf", "")
	p.Recorded = func() []string {
		return []string{"served.service", "refused.service", "root.service", "removed.service", "i@a.service", "r@a.service", "r@b.service",
			"hand.service", "bare.service", "itself.service", "hand@a.service", "starting.service", "ends-.service"}
	}
	read := map[string]bool{}
	p.ReadRecord = func(unit string) (handover.Record, error) {
		read[unit] = true
		if unit == "starting.service" {
			return handover.Record{}, fs.ErrNotExist
		}
		return handover.Record{UID: 1000, Conmon: 7}, nil
	}
	plan := p.Quadlet(context.Background())
	var gone []string
	for _, g := range plan.Gone {
		gone = append(gone, g.Unit)
	}
	if got := strings.Join(gone, " "); got != "root.service removed.service bare.service" {
		t.Errorf("gone: %s", got)
	}
	// A line that fails keeps those after it from being run.
	if text := string(plan.Gone[2].Text()); !strings.Contains(text, "[Service]\nExecStopPost=\nExecStopPost=-+/usr/libexec/oci-mainpid/notify-mainpid --forget ") || !strings.HasSuffix(text, "\nExecStopPost=/bin/false\n") {
		t.Errorf("%s", text)
	}
	const forget = "ExecStopPost=-+/usr/libexec/oci-mainpid/notify-mainpid --forget --unit="
	for service, want := range map[string]string{
		"refused.service": forget + "refused.service /run/oci-mainpid/users/1000/refused.service/mainpid /run/oci-mainpid/refused.service/result\n",
		"r@.service":      forget + "%n /run/oci-mainpid/users/1000/%n/mainpid /run/oci-mainpid/%n/result\n",
	} {
		if text := string(plan.Of(service).Dropin.Text()); strings.Count(text, forget) != 1 || !strings.HasSuffix(text, want) {
			t.Errorf("%s:\n%s", service, text)
		}
	}
	if read["served.service"] || read["hand.service"] {
		t.Errorf("the records of served units were read: %v", read)
	}
}
