package conmonbridge

import (
	"strings"
	"testing"

	"oci-mainpid-hook/internal/conmontest"
)

func TestContainerOf(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct {
		name string
		args []string
		want Container
		text string
	}{
		{"as podman starts it", []string{"--api-version", "1", "-c", id, "-u", id, "-n", "web"}, Container{id, "web"}, "container 0123456789ab (web)"},
		{"no name", []string{"-c", id}, Container{ID: id}, "container 0123456789ab"},
		{"no ID", []string{"-n", "web_1.a-b"}, Container{Name: "web_1.a-b"}, "container web_1.a-b"},
		{"neither", nil, Container{}, "unknown container"},
		{"an ID that is short", []string{"-c", id[:12], "-n", "web"}, Container{Name: "web"}, "container web"},
		{"an ID that is none", []string{"-c", strings.Repeat("x", 64)}, Container{}, "unknown container"},
		{"a name with a newline", []string{"-c", id, "-n", "web\nMESSAGE=x"}, Container{ID: id}, "container 0123456789ab"},
		{"an empty name", []string{"-n", "", "-c", id}, Container{ID: id}, "container 0123456789ab"},
		{"a name that is long", []string{"-n", strings.Repeat("x", 300)}, Container{}, "unknown container"},
		{"options of podman's own, for its cleanup", []string{"-c", id, "-n", "web", "--exit-command", "podman", "--exit-command-arg", "-n", "--exit-command-arg", "-c"}, Container{id, "web"}, "container 0123456789ab (web)"},
		{"nothing behind the option", []string{"-c", id, "-n"}, Container{ID: id}, "container 0123456789ab"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conmon := conmontest.Start(t, conmontest.Options{Args: c.args})
			if got := ContainerOf(conmon.PID); got != c.want || got.String() != c.text {
				t.Errorf("got %+v, %q; want %+v, %q", got, got, c.want, c.text)
			}
		})
	}
	if got := ContainerOf(4194303); got != (Container{}) {
		t.Errorf("of nobody: %+v", got)
	}
}
