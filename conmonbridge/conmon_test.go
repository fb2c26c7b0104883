package conmonbridge

import (
	"errors"
	"os"
	"testing"

	"oci-mainpid-hook/internal/conmontest"
)

func TestMain(m *testing.M) {
	conmontest.Main()
	os.Exit(m.Run())
}

func startConmon(t *testing.T, env ...string) conmontest.Conmon {
	t.Helper()
	return conmontest.Start(t, conmontest.Options{Env: env})
}

func TestFindConmon(t *testing.T) {
	t.Run("parent", func(t *testing.T) {
		c := startConmon(t)
		if got, err := FindConmon(c.Container); err != nil || got.PID != c.PID {
			t.Errorf("got %+v, %v; want %d", got, err, c.PID)
		}
	})
	t.Run("above runc", func(t *testing.T) {
		c := conmontest.Start(t, conmontest.Options{Below: []string{"runtime", "container"}})
		if got, err := FindConmon(c.Container); err != nil || got.PID != c.PID {
			t.Errorf("got %+v, %v; want %d", got, err, c.PID)
		}
	})
	t.Run("none above", func(t *testing.T) {
		if got, err := FindConmon(os.Getpid()); !errors.Is(err, ErrNoConmon) {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("no process", func(t *testing.T) {
		if got, err := FindConmon(maxPID + 1); !errors.Is(err, ErrNoProcess) {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

func TestUnitOf(t *testing.T) {
	for _, c := range []struct {
		name string
		env  []string
		ours bool
		unit string
	}{
		{"ours by name", []string{"OCI_MAINPID_FILE=/run/x", "PODMAN_SYSTEMD_UNIT=web.service"}, true, "web.service"},
		{"ours by descriptor", []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=mainpidfile", "PODMAN_SYSTEMD_UNIT=web.service"}, true, "web.service"},
		{"ours, hand-written", []string{"OCI_MAINPID_FILE=/run/oci-mainpid/web.service/mainpid"}, true, "web.service"},
		{"not ours", []string{"PODMAN_SYSTEMD_UNIT=web.service", "LISTEN_FDS=1", "LISTEN_FDNAMES=web"}, false, "web.service"},
		{"result file alone", []string{"OCI_MAINPID_RESULT=/run/x", "PODMAN_SYSTEMD_UNIT=web.service"}, false, "web.service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conmon := startConmon(t, c.env...)
			u, ours, err := UnitOf(conmon.PID)
			if err != nil || ours != c.ours || u.String() != c.unit {
				t.Errorf("got %v, %v, %v", u, ours, err)
			}
		})
	}
	if _, _, err := UnitOf(maxPID + 1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
}

func TestUnitAbove(t *testing.T) {
	if u, ours := UnitAbove(); ours {
		t.Errorf("this test is in unit %v", u)
	}
}
