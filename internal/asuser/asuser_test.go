package asuser

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/internal/account"
)

// TestArguments: what systemd would replace in a command line is as it was given, and
// the environment is the user's.
func TestArguments(t *testing.T) {
	c := Command{
		Account: account.Account{Name: "web", UID: 1000, Home: "/srv/web"},
		Env:     []string{"CONTAINERS_CONF=/etc/web.conf"},
		Args:    []string{"podman", "exec", "--", "$HOME", "a$$b", ""},
	}
	got := c.arguments("x.service", false)
	end := slices.Index(got, "--")
	if want := []string{"--", "podman", "exec", "--", "$$HOME", "a$$$$b", ""}; !slices.Equal(got[end:], want) {
		t.Errorf("command %q, want %q", got[end:], want)
	}
	for _, want := range []string{"--property=User=web", "--property=Wants=user@1000.service", "--setenv=HOME=/srv/web", "--setenv=XDG_RUNTIME_DIR=/run/user/1000", "--setenv=CONTAINERS_CONF=/etc/web.conf", "--pipe"} {
		if !slices.Contains(got[:end], want) {
			t.Errorf("no %s in %q", want, got[:end])
		}
	}
	if got := c.arguments("x.service", true); !slices.Contains(got, "--pty") || slices.Contains(got, "--pipe") {
		t.Errorf("on a terminal: %q", got)
	}
}

// TestNoTerminal: a file that is no terminal is handed over as it is; what is not a
// file is read and written by this process.
func TestNoTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if input(null) != null || output(null) != null {
		t.Error("/dev/null is not handed over")
	}
	if isTerminal(strings.NewReader("")) || isTerminal(null) {
		t.Error("takes it for a terminal")
	}
}

// TestOutput: what a command prints is bounded, and the last line of a piece is told.
func TestOutput(t *testing.T) {
	var told []string
	o := Buffer{each: func(line string) { told = append(told, line) }}
	for _, text := range []string{"a\nb\nc", "d\n", "e", "", "f\n"} {
		if n, err := o.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("%d %v", n, err)
		}
	}
	if want := []string{"b", "cd", "ef"}; !slices.Equal(told, want) || string(o.text) != "a\nb\ncd\nef\n" {
		t.Errorf("%q %q", told, o.text)
	}
	for range 3 {
		o.Write(make([]byte, maxOutput/2))
	}
	if len(o.text) != maxOutput || len(o.line) > 1000 {
		t.Errorf("%d, %d", len(o.text), len(o.line))
	}
	c := Command{Timeout: time.Minute, Args: []string{"podman"}}
	if got := c.arguments("x.service", false); !slices.Contains(got, "--property=RuntimeMaxSec=1m0s") {
		t.Errorf("not bounded: %q", got)
	}
}
