package quadlet

import (
	"strings"
	"testing"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

func TestMoveRuntimeDir(t *testing.T) {
	for _, test := range []struct{ line, want string }{
		{"podman run --cidfile=%t/%N.cid", "podman run --cidfile=/run/user/7/%N.cid"},
		{"podman %%t %%%t %t%t %", "podman %%t %%/run/user/7 /run/user/7/run/user/7 %"},
		{`podman "%t/a b" '%t'`, `podman "/run/user/7/a b" '/run/user/7'`},
		{"podman 100%", "podman 100%"},
	} {
		var e unitfile.Edits
		moveRuntimeDir(&e, test.line, 0, len(test.line), "/run/user/7")
		if got := e.Apply(test.line); got != test.want {
			t.Errorf("%s: got %s, want %s", test.line, got, test.want)
		}
	}
}

// TestLogDriver: what a container writes goes to the journal, once, unless the author
// of the unit chose another place.
func TestLogDriver(t *testing.T) {
	for line, journald := range map[string]bool{
		"podman run -d x":                          true,
		"podman run -itd --rm x":                   true,
		"podman container run --detach x":          true,
		"podman create x":                          true,
		"podman kube play --replace k.yaml":        true,
		"podman run x":                             false, // podman writes it itself
		"podman run --detach=false x":              false,
		"podman run -d --log-driver=passthrough x": false,
		"podman run -d --log-driver k8s-file x":    false,
		"podman run -d --log-opt=max-size=1m x":    false, // of a file
		"podman kube play --log-driver=none k":     false,
		"podman start x":                           false,
		"podman run x app -d":                      false, // the container's own -d
	} {
		d := deriver{unit: &unitfile.File{}, Decision: &Decision{Account: account.Account{Name: "web", UID: 7}, Options: dropin.Options{Cgroup: dropin.Mixed}}}
		got, err := d.rewrite("ExecStart", line)
		if err != nil || strings.Contains(got, " --log-driver=journald ") != journald {
			t.Errorf("%s became %s, %v", line, got, err)
		}
	}
}

// FuzzRewrite checks that a line that is rewritten differs only where it must.
func FuzzRewrite(f *testing.F) {
	f.Add("/usr/bin/podman run --cgroups=split --cidfile=%t/x -d img sh -c 'a; b'")
	f.Add(`-@podman x run "--cgroups" split \; %%t ; /bin/true`)
	f.Fuzz(func(t *testing.T, line string) {
		if strings.ContainsAny(line, "\n\x00") {
			return // not one line
		}
		d := deriver{unit: &unitfile.File{}, Decision: &Decision{Account: account.Account{Name: "web", UID: 7}, Options: dropin.Options{Cgroup: dropin.Mixed}}}
		got, err := d.rewrite("ExecStart", line)
		if err != nil {
			return // systemd refuses it, too
		}
		was, is := flatten(t, line), flatten(t, strings.Replace(got, " --log-driver=journald", "", 1))
		if len(is) != len(was) {
			t.Fatalf("%q became %q", line, got)
		}
		for i := range was {
			a, b := was[i], is[i]
			if a != b && !strings.Contains(a, "%t") && !strings.Contains(a, "split") {
				t.Errorf("%q became %q", a, b)
			}
		}
	})
}

// flatten returns all words of a line's commands.
func flatten(t *testing.T, line string) []string {
	t.Helper()
	commands, err := unitfile.ParseCommands(line)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	var words []string
	for _, c := range commands {
		words = append(words, c.Prefix+c.Path.Text)
		for _, a := range c.Args {
			words = append(words, a.Text)
		}
	}
	return words
}
