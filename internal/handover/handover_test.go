package handover

import "testing"

func TestFiles(t *testing.T) {
	mainPID, result := Files("web@1.service", 1000)
	if mainPID != "/run/oci-mainpid/users/1000/web@1.service/mainpid" || result != "/run/oci-mainpid/web@1.service/result" {
		t.Errorf("%s, %s", mainPID, result)
	}
	for path, want := range map[string]string{mainPID: "web@1.service", result: "web@1.service", "": "", "/mainpid": "/"} {
		if got := UnitOf(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}
