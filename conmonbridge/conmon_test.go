package conmonbridge

import (
	"errors"
	"os"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/proc"
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
		if got, err := FindConmon(proc.MaxPID + 1); !errors.Is(err, proc.ErrNoProcess) {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

func FuzzCommandLine(f *testing.F) {
	f.Add([]byte("/usr/bin/conmon\x00--api-version\x001\x00-n\x00web\x00--exit-command\x00podman\x00-n\x00no\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := parseCommandLine(b)
		for option, value := range map[string]string{"-n": c.Container.Name, "-c": c.Container.ID, "-u": c.Session, "--conmon-pidfile": c.PIDFile} {
			if value != "" && !strings.Contains("\x00"+string(b)+"\x00", "\x00"+option+"\x00"+value+"\x00") {
				t.Errorf("%q: %s is %q", b, option, value)
			}
		}
	})
}
