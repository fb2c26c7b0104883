package podmancmd

import (
	"strings"
	"testing"

	"oci-mainpid-hook/internal/unitfile"
)

func TestParse(t *testing.T) {
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
		{"through env", "/usr/bin/env -u X A=B podman run --cgroups=split x", "run", "split"},
		{"env with another program", "/usr/bin/env A=B docker run x", "", ""},
		{"env without a program", "/usr/bin/env A=B", "", ""},
		{"quoted", `podman run "--cgroups=split" x`, "run", "split"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			commands, err := unitfile.ParseCommands(test.line)
			if err != nil {
				t.Fatal(err)
			}
			p, ok := Parse(commands[0].Path.Text, commands[0].Arguments())
			cgroups, _ := p.Last("cgroups")
			if ok != (test.verb != "") || p.Verb != test.verb || cgroups != test.cgroups {
				t.Errorf("got %t, %q, %q", ok, p.Verb, cgroups)
			}
		})
	}
}

// TestContainersArguments: what comes behind the image is the container's own.
func TestContainersArguments(t *testing.T) {
	p, ok := ParseArguments("/usr/bin/podman", []string{"--hooks-dir=/h", "run", "img", "app", "--module", "x", "--hooks-dir", "/y"})
	if !ok {
		t.Fatal("not podman")
	}
	if got := strings.Join(p.Arguments(), " "); got != "img app --module x --hooks-dir /y" {
		t.Errorf("arguments: %q", got)
	}
	if dir, ok := p.Global("hooks-dir"); !ok || dir != "/h" {
		t.Errorf("--hooks-dir: %q, %t", dir, ok)
	}
	if value, ok := p.Global("module"); ok {
		t.Errorf("--module is the container's: %q", value)
	}
}

func TestWhatItDoes(t *testing.T) {
	for line, want := range map[string]string{
		"run x": "creates starts", "create x": "creates", "start x": "starts", "pod start x": "starts pod",
		"kube play k": "starts kube", "play kube --down k": "removes", "kube play --down k": "removes", "play kube k": "starts kube",
		"exec x y": "enters", "rm -f x": "removes", "stop x": "removes", "ps": "",
	} {
		p, _ := ParseArguments("podman", strings.Fields(line))
		var got []string
		for _, does := range []struct {
			word string
			is   bool
		}{
			{"creates", p.CreatesContainer()}, {"starts", p.StartsContainer()}, {"pod", p.StartsPod()},
			{"kube", p.PlaysKube()}, {"enters", p.EntersContainer()}, {"removes", p.RemovesContainer()},
		} {
			if does.is {
				got = append(got, does.word)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("podman %s: %q, want %q", line, got, want)
		}
	}
}
