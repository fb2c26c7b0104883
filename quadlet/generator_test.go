package quadlet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run runs a generator over Quadlet files, with a Quadlet that converts the
// accepted ones, and returns the drop-ins' texts by unit, and the log.
func run(t *testing.T, files map[string]string, change func(*Generator)) (dropins map[string]string, log string) {
	t.Helper()
	dir := t.TempDir()
	accepted := map[string]string{}
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
		if IsQuadlet(name) && !strings.Contains(text, "Refused=") {
			accepted[name] = text
		}
	}
	g := &Generator{
		Dirs:     []string{dir},
		Accounts: testAccounts(),
		Programs: testPrograms,
		Log: func(level Level, service, text string) {
			if service != "" {
				text = service + ": " + text
			}
			log += fmt.Sprintf("<%d>%s\n", level, text)
		},
		FindQuadlet: func() (string, bool, error) { return "/quadlet", false, nil },
		Convert: func(string, []string) ([]Converted, []string, error) {
			return converted(t, accepted), []string{`converting "bad.container": unsupported key 'User' in group 'Service'`}, nil
		},
		SystemdVersion: func() (int, error) { return 257, nil },
	}
	if change != nil {
		change(g)
	}
	dropins = map[string]string{}
	owned := false
	for _, d := range g.Dropins() {
		dropins[d.Unit] = string(d.Text())
		owned = owned || strings.Contains(dropins[d.Unit], "User=web\n")
	}
	// The manager of an owner stays, whatever else the case is about.
	for _, manager := range []string{"user@1000.service", "user-runtime-dir@1000.service"} {
		if kept := strings.Contains(dropins[manager], "[Unit]\nRefuseManualStop=yes\n"); kept != owned {
			t.Errorf("%s: %q", manager, dropins[manager])
		}
		delete(dropins, manager)
	}
	return dropins, log
}

const asking = "[Container]\nImage=x\nVolume=v.volume:/x\n[X-MainPID]\nUser=web\n"

func TestGenerator(t *testing.T) {
	refused := "ExecStart=/usr/bin/oci-mainpid refuse"
	tests := []struct {
		name   string
		files  map[string]string
		change func(*Generator)
		want   map[string]string // a part of each drop-in
		log    string            // a part of it
	}{
		{name: "nobody asks", files: map[string]string{"a.container": "[Container]\nImage=x\n"}, change: func(g *Generator) {
			g.FindQuadlet = func() (string, bool, error) { panic("looked for Quadlet") }
		}},
		{name: "a container with its volume", files: map[string]string{"a.container": asking, "v.volume": "[Volume]\n", "root.container": "[Container]\nImage=x\n"},
			want: map[string]string{"a.service": "OpenFile=", "v-volume.service": "User=web"}},
		{name: "unknown user", files: map[string]string{"a.container": strings.Replace(asking, "web", "nobodyhere", 1), "v.volume": "[Volume]\n"},
			want: map[string]string{"a.service": refused, "v-volume.service": "ExecStart=-/usr/bin/oci-mainpid refuse"},
			log:  "<0>a.service: will not start: user \"nobodyhere\" does not exist\n"},
		{name: "what cannot be served", files: map[string]string{"p.pod": "[Pod]\n[X-MainPID]\nUser=web\nCgroup=service\n"},
			want: map[string]string{"p-pod.service": refused}, log: "<0>p-pod.service: will not start: Cgroup=service: podman pod start"},
		{name: "warnings", files: map[string]string{"a.container": asking + "[Service]\nMemoryMax=1G\n"},
			want: map[string]string{"a.service": "User=web"}, log: "<2>a.service: Cgroup=mixed: MemoryMax="},
		{name: "Quadlet refuses the file", files: map[string]string{"bad.container": "[Container]\nRefused=1\n[Service]\nUser=web\n", "other.container": "[Container]\nRefused=1\n"},
			want: map[string]string{"bad.service": refused}, log: "unsupported key 'User' in group 'Service'; instead of User= in [Service] write [X-MainPID] with User=web"},
		{name: "Quadlet is not installed", files: map[string]string{"a.container": asking, "v.volume": "[Volume]\n"}, change: func(g *Generator) {
			g.FindQuadlet = func() (string, bool, error) { return "", false, ErrNoQuadlet }
		}, want: map[string]string{"a.service": refused}, log: "not installed"},
		{name: "Quadlet is masked", files: map[string]string{"a.container": asking}, change: func(g *Generator) {
			g.FindQuadlet = func() (string, bool, error) { return "", true, nil }
		}},
		{name: "Quadlet fails", files: map[string]string{"a.container": asking}, change: func(g *Generator) {
			g.Convert = func(string, []string) ([]Converted, []string, error) { return nil, nil, errors.New("out of memory") }
		}, want: map[string]string{"a.service": refused}, log: "<1>out of memory\n"},
		{name: "systemd does not tell its version", files: map[string]string{"a.container": asking}, change: func(g *Generator) {
			g.SystemdVersion = func() (int, error) { return 0, errors.New("no systemctl") }
		}, want: map[string]string{"a.service": "--prepare --user=1000"}, log: "<2>no systemctl; doing without OpenFile="},
		{name: "asked for in a drop-in of a file that Quadlet refuses", files: map[string]string{"bad.container": "[Container]\nRefused=1\n", "bad.container.d/10.conf": "[X-MainPID]\nUser=web\n"},
			want: map[string]string{"bad.service": refused}, log: "<0>bad.service: will not start"},
		{name: "a name that systemd does not know", files: map[string]string{"a b.container": asking}, log: "a b.container: \"a b.service\" is not a valid unit name"},
		{name: "a link to nothing", files: map[string]string{"a.container": asking}, change: func(g *Generator) {
			if err := os.Symlink("/nowhere", g.Dirs[0]+"/gone.container"); err != nil {
				panic(err)
			}
		}, want: map[string]string{"a.service": "User=web"}, log: "<1>gone.container: open"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dropins, log := run(t, test.files, test.change)
			if len(dropins) != len(test.want) {
				t.Errorf("drop-ins: %q", dropins)
			}
			for unit, want := range test.want {
				if !strings.Contains(dropins[unit], want) {
					t.Errorf("%s: no %q in\n%s", unit, want, dropins[unit])
				}
			}
			if !strings.Contains(log, test.log) || test.log == "" && log != "" {
				t.Errorf("log: %s", log)
			}
		})
	}
}

func TestGeneratorLeavesOthersUnits(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.service", "[Service]\nExecStart=/bin/true\n")
	saved := preferred
	preferred = []string{dir}
	defer func() { preferred = saved }()
	dropins, log := run(t, map[string]string{"a.container": asking, "v.volume": "[Volume]\n"}, func(g *Generator) { g.UnitDirs = []string{dir} })
	if len(dropins) != 1 || dropins["v-volume.service"] == "" || !strings.Contains(log, dir+"/a.service has precedence") {
		t.Errorf("%q, %s", dropins, log)
	}
	dropins, _ = run(t, map[string]string{"a.container": asking + "Refused=1\n"}, func(g *Generator) { g.UnitDirs = []string{dir} })
	if len(dropins) != 0 {
		t.Errorf("of a file that Quadlet refuses: %q", dropins)
	}
}

func TestFindQuadlet(t *testing.T) {
	saved := quadletPaths
	defer func() { quadletPaths = saved }()
	dir := t.TempDir()
	program := fakeQuadlet(t, "exit 0")
	write(t, dir+"/not-executable", "x")
	link(t, "/dev/null", dir+"/masked")
	for _, test := range []struct {
		name   string
		paths  []string
		path   string
		masked bool
		err    error
	}{
		{"none", []string{dir + "/missing", dir + "/not-executable", dir}, "", false, ErrNoQuadlet},
		{"one", []string{dir + "/missing", program}, program, false, nil},
		{"masked", []string{dir + "/masked", program}, "", true, nil},
	} {
		quadletPaths = test.paths
		path, masked, err := FindQuadlet()
		if path != test.path || masked != test.masked || !errors.Is(err, test.err) {
			t.Errorf("%s: %q, %t, %v", test.name, path, masked, err)
		}
	}
}

func TestParallel(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 17, 1000} {
		counts := make([]int, n)
		Parallel(n, func(i int) { counts[i]++ })
		for i, c := range counts {
			if c != 1 {
				t.Errorf("%d of %d: called %d times", i, n, c)
			}
		}
	}
}

func TestComplaint(t *testing.T) {
	for _, test := range []struct {
		message, file, text string
		ok                  bool
	}{
		{`converting "a.container": no Image: none`, "a.container", "no Image: none", true},
		{"Error converting 'a.container', ignoring: no Image", "a.container", "no Image", true},
		{"converting ", "", "", false},
		{`converting "a.container`, "a.container", "", false},
		{"Loading source unit file /etc/a.container", "", "", false},
	} {
		if file, text, ok := complaint(test.message); ok != test.ok || file != test.file || text != test.text {
			t.Errorf("%s: %q, %q, %t", test.message, file, text, ok)
		}
	}
}
