package quadlet

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseExec(t *testing.T) {
	tests := []struct{ name, line, want string }{
		{"plain", "/bin/a b c", "[] /bin/a [b c]"},
		{"prefixes", "-@+/bin/a b c", "[-@+] /bin/a [b c]"},
		{"quoted prefix", `"-/bin/a" b`, "[-] /bin/a [b]"},
		{"two commands", "/bin/a b ; -/bin/c", "[] /bin/a [b] [-] /bin/c []"},
		{"escaped semicolon", `/bin/a \; b`, "[] /bin/a [; b]"},
		{"semicolon in quotes", `/bin/a ";" b`, "[] /bin/a [; b]"},
		{"relative path", "podman run", "[] podman [run]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			commands, err := parseExec(test.line)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range commands {
				var args []string
				for _, a := range c.args {
					args = append(args, a.text)
				}
				got = append(got, fmt.Sprintf("[%s] %s %v", c.prefix, c.path.text, args))
			}
			if s := strings.Join(got, " "); s != test.want {
				t.Errorf("got %s, want %s", s, test.want)
			}
		})
	}
}

func TestPodman(t *testing.T) {
	tests := []struct{ name, line, verb, cgroups string }{
		{"not podman", "/usr/bin/docker run x", "", ""},
		{"no subcommand", "/usr/bin/podman --version", "", ""},
		{"run", "/usr/bin/podman run --cgroups=split x", "run", "split"},
		{"value as a word of its own", "podman run --cgroups no-conmon x", "run", "no-conmon"},
		{"the last one counts", "podman run --cgroups=split --cgroups=enabled x", "run", "enabled"},
		{"global options", "podman --log-level debug --syslog --root=/r --module m run --cgroups=split x", "run", "split"},
		{"container run", "podman container run --cgroups=split x", "container run", "split"},
		{"the container's own arguments", "podman run --rm x --cgroups=split", "run", ""},
		{"value of another option", "podman run --name --cgroups=split x", "run", ""},
		{"after switches", "podman run -dit --rm --replace -e A=B -eC=D --cgroups=split x", "run", "split"},
		{"hostname and publish", "podman run -h host -p 80:80 -P --cgroups=split x", "run", "split"},
		{"end of options", "podman run -- --cgroups=split", "run", ""},
		{"argv[0] given", "@/usr/bin/podman web run --cgroups=split x", "run", "split"},
		{"kube play", "podman kube play --replace k.yaml", "kube play", ""},
		{"pod start", "podman pod start web", "pod start", ""},
		{"old order", "podman play kube k.yaml", "play kube", ""},
		{"quoted", `podman run "--cgroups=split" x`, "run", "split"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			commands, err := parseExec(test.line)
			if err != nil {
				t.Fatal(err)
			}
			p, ok := commands[0].podman()
			cgroups, _ := p.last("cgroups")
			if ok != (test.verb != "") || p.verb != test.verb || cgroups != test.cgroups {
				t.Errorf("got %t, %q, %q", ok, p.verb, cgroups)
			}
		})
	}
}

func TestMoveRuntimeDir(t *testing.T) {
	for _, test := range []struct{ line, want string }{
		{"podman run --cidfile=%t/%N.cid", "podman run --cidfile=/run/user/7/%N.cid"},
		{"podman %%t %%%t %t%t %", "podman %%t %%/run/user/7 /run/user/7/run/user/7 %"},
		{`podman "%t/a b" '%t'`, `podman "/run/user/7/a b" '/run/user/7'`},
		{"podman 100%", "podman 100%"},
	} {
		var e edits
		e.moveRuntimeDir(test.line, 0, len(test.line), "/run/user/7")
		if got := e.apply(test.line); got != test.want {
			t.Errorf("%s: got %s, want %s", test.line, got, test.want)
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
		d := deriver{Request: Request{Unit: &Unit{}, Account: Account{"web", 7}, Cgroup: Mixed}}
		got, err := d.rewrite("ExecStart", line)
		if err != nil {
			return // systemd refuses it, too
		}
		was, is := flatten(t, line), flatten(t, got)
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
	commands, err := parseExec(line)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	var words []string
	for _, c := range commands {
		words = append(words, c.prefix+c.path.text)
		for _, a := range c.args {
			words = append(words, a.text)
		}
	}
	return words
}
