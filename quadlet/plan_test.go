package quadlet

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// testAccounts has the users web and db, and bare, who has no subordinate IDs.
func testAccounts(t *testing.T) *account.Accounts {
	t.Helper()
	etc := t.TempDir()
	write(t, etc+"/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\ndb:x:1001:1001::/home/db:/bin/sh\nbare:x:1002:1002::/:/bin/sh\n")
	for _, file := range []string{"/subuid", "/subgid"} {
		write(t, etc+file, "web:100000:65536\ndb:165536:65536\n")
	}
	return &account.Accounts{Etc: etc, Getent: "-"}
}

// converted stands for Quadlet: it makes a service of each file, which keeps the
// file's sections as Quadlet does.
func converted(t *testing.T, dir string, files map[string]string) []Converted {
	t.Helper()
	var services []Converted
	for _, name := range slices.Sorted(maps.Keys(files)) {
		ext := filepath.Ext(name)
		group := kinds[ext].section
		text := strings.Replace(files[name], "["+group+"]", "[X-"+group+"]", 1)
		exec := "Type=oneshot\nExecStart=/usr/bin/podman " + group + " create x\n"
		switch ext {
		case ".container":
			exec = "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman run --cgroups=split --sdnotify=conmon -d x\nExecStop=/usr/bin/podman rm -f x\n"
		case ".kube":
			exec = "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman kube play --service-container=true k.yaml\nExecStopPost=/usr/bin/podman kube down k.yaml\n"
		case ".pod":
			exec = "Type=forking\nPIDFile=%t/%N.pid\nExecStartPre=/usr/bin/podman pod create --infra-conmon-pidfile=%t/%N.pid x\nExecStart=/usr/bin/podman pod start x\nExecStop=/usr/bin/podman pod stop x\n"
		}
		path := filepath.Join(dir, name)
		c := Converted{Source: path}
		text += "\n[Service]\n" + exec + "[Unit]\nSourcePath=" + path + "\n"
		if c.Unit, c.Err = unitfile.Parse([]byte(text)); c.Err == nil && hasStrayReturn([]byte(text)) {
			c.Err = errStrayReturn
		}
		if c.Err != nil {
			c.Unit = &unitfile.File{}
		}
		source, err := unitfile.Parse([]byte(files[name]))
		if err != nil {
			source = &unitfile.File{}
		}
		c.Name = serviceName(name, source)
		services = append(services, c)
	}
	return services
}

// planner returns a planner of Quadlet files, with a Quadlet that converts those
// without Refused=, and the directory of the files.
func planner(t *testing.T, files map[string]string) (*Planner, string) {
	t.Helper()
	dir := t.TempDir()
	accepted := map[string]string{}
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
		if IsQuadlet(name) && !strings.Contains(text, "Refused=") {
			accepted[name] = text
		}
	}
	return &Planner{
		Maker:    dropin.Generator,
		Dirs:     []string{dir},
		Accounts: testAccounts(t),
		Programs: testPrograms,
		FindQuadlet: func() (string, bool, error) {
			return "/quadlet", false, nil
		},
		Convert: func(context.Context, string, []string) ([]Converted, []string, error) {
			return converted(t, dir, accepted), []string{`converting "bad.container": unsupported key 'Refused' in group 'Container'`}, nil
		},
		SystemdVersion: func(context.Context) (int, error) { return 257, nil },
	}, dir
}

// outcome says what a plan makes of a service: "web mixed", "web" for a service
// without a container, "error: …", or "root".
func outcome(p *Plan, service string) string {
	d := p.Of(service)
	switch {
	case d == nil:
		return "root"
	case d.Err != nil:
		return "error: " + d.Err.Error()
	}
	return strings.TrimSpace(d.Account.Name + " " + string(d.Options.Cgroup))
}

const (
	asWeb = "[Service]\nUser=web\n"
	asDB  = "[Service]\nUser=db\n"
)

func TestPlan(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  map[string]string // a part of the outcome of each service
		notes []string          // a part of each warning and error
	}{
		{"nobody asks", map[string]string{"a.container": "[Container]\nImage=x\nUser=1000\n"}, map[string]string{"a.service": "root"}, nil},
		{"a container", map[string]string{"a.container": "[Container]\n" + asWeb, "b.container": "[Container]\n"}, map[string]string{"a.service": "web mixed", "b.service": "root"}, nil},
		{"by UID", map[string]string{"a.container": "[Container]\n[Service]\nUser=1000\n"}, map[string]string{"a.service": "web mixed"}, nil},
		{"the last key counts", map[string]string{"a.container": "[Container]\n[Service]\nUser=db\nUser=web\n"}, map[string]string{"a.service": "web mixed"}, nil},
		{"root by name", map[string]string{"a.container": "[Container]\n[Service]\nUser=root\n", "b.container": "[Container]\n" + asWeb}, map[string]string{"a.service": "root"}, nil},
		{"a mode", map[string]string{"a.container": "[Container]\n" + asWeb + "[X-MainPID]\nCgroup=user\n"}, map[string]string{"a.service": "web user"}, nil},
		{"a mode in quotes", map[string]string{"a.container": "[Container]\n" + asWeb + "[X-MainPID]\nCgroup=\"service\"\n"}, map[string]string{"a.service": "web service"}, nil},
		{"an empty mode", map[string]string{"a.container": "[Container]\n" + asWeb + "[X-MainPID]\nCgroup=user\nCgroup=\n"}, map[string]string{"a.service": "web mixed"}, nil},

		{"files of one user", map[string]string{
			"a.container": "[Container]\nImage=b.build\nVolume=v.volume:/data:Z\nNetwork=n.network:ip=10.0.0.1\nMount=type=volume,source=m.volume,destination=/m type=image,src=i.image,dst=/i\n" + asWeb,
			"b.build":     "[Build]\n" + asWeb, "v.volume": "[Volume]\nImage=i.image\n" + asWeb, "n.network": "[Network]\n[Service]\nUser=1000\n", "m.volume": "[Volume]\n" + asWeb, "i.image": "[Image]\n" + asWeb, "other.volume": "[Volume]\n",
		}, map[string]string{"a.service": "web mixed", "b-build.service": "web", "v-volume.service": "web", "n-network.service": "web", "m-volume.service": "web", "i-image.service": "web", "other-volume.service": "root"}, nil},
		{"a volume of root's", map[string]string{"a.container": "[Container]\nVolume=v.volume:/x\n" + asWeb, "v.volume": "[Volume]\n"},
			map[string]string{"a.service": "error: runs as web, but Volume=v.volume runs as root; write User=web in [Service] of v.volume, too", "v-volume.service": "root"}, nil},
		{"a volume of another user's", map[string]string{"a.container": "[Container]\nVolume=v.volume:/x\n" + asWeb, "v.volume": "[Volume]\n" + asDB},
			map[string]string{"a.service": "error: runs as web, but Volume=v.volume runs as db", "v-volume.service": "db"}, nil},
		{"a volume of a volume", map[string]string{"v.volume": "[Volume]\nImage=i.image\n" + asWeb, "i.image": "[Image]\n"},
			map[string]string{"v-volume.service": "error: runs as web, but Image=i.image runs as root", "i-image.service": "root"}, nil},
		{"root uses a user's volume", map[string]string{"a.container": "[Container]\nVolume=v.volume:/x\n", "v.volume": "[Volume]\n" + asWeb},
			map[string]string{"a.service": "root", "v-volume.service": "web"}, []string{"a.service: runs as root, but Volume=v.volume runs as web"}},
		{"paths and names are no files", map[string]string{"a.container": "[Container]\nVolume=/srv/v.volume:/x\nNetwork=host\nVolume=named:/y\n" + asWeb, "v.volume": "[Volume]\n"},
			map[string]string{"a.service": "web mixed", "v-volume.service": "root"}, nil},
		{"the network of a container of root", map[string]string{"a.container": "[Container]\nNetwork=b.container\n" + asWeb, "b.container": "[Container]\n"},
			map[string]string{"a.service": "error: runs as web, but Network=b.container runs as root"}, nil},
		{"a kube file", map[string]string{"k.kube": "[Kube]\nNetwork=n.network\n" + asWeb, "n.network": "[Network]\n" + asWeb},
			map[string]string{"k.service": "web mixed", "n-network.service": "web"}, nil},

		{"a pod and its containers", map[string]string{"p.pod": "[Pod]\n" + asWeb + "[X-MainPID]\nCgroup=user\n", "a.container": "[Container]\nPod=p.pod\n" + asWeb, "b.container": "[Container]\nPod=p.pod\n" + asWeb + "[X-MainPID]\nCgroup=mixed\n"},
			map[string]string{"p-pod.service": "web user", "a.service": "web user", "b.service": "web mixed"}, nil},
		{"a pod of root's", map[string]string{"p.pod": "[Pod]\n", "a.container": "[Container]\nPod=p.pod\n" + asWeb},
			map[string]string{"p-pod.service": "root", "a.service": "error: runs as web, but Pod=p.pod runs as root"}, nil},
		{"a container without a user in a user's pod", map[string]string{"p.pod": "[Pod]\n" + asWeb, "a.container": "[Container]\nPod=p.pod\n"},
			map[string]string{"p-pod.service": "web mixed", "a.service": "error: its Pod=p.pod runs as web; write User=web in [Service] of a.container, too"}, nil},
		{"a pod cannot be in the unit's control group", map[string]string{"p.pod": "[Pod]\n" + asWeb + "[X-MainPID]\nCgroup=service\n"},
			map[string]string{"p-pod.service": "error: Cgroup=service: podman pod start"}, nil},

		{"the user in our section", map[string]string{"a.container": "[Container]\n[X-MainPID]\nUser=web\n"}, map[string]string{"a.service": "error: [X-MainPID] has no key User=; write User=web in [Service]"}, nil},
		{"the user in both", map[string]string{"a.container": "[Container]\n" + asWeb + "[X-MainPID]\nUser=web\n"}, map[string]string{"a.service": "error: [X-MainPID] has no key User="}, nil},
		{"options without a user", map[string]string{"a.container": "[Container]\n[X-MainPID]\nCgroup=user\n"}, map[string]string{"a.service": "error: [X-MainPID] counts only with a user; write User=NAME in [Service]"}, nil},
		{"options for root", map[string]string{"a.container": "[Container]\n[Service]\nUser=root\n[X-MainPID]\n"}, map[string]string{"a.service": "error: [X-MainPID] counts only with a user"}, nil},
		{"an option for what has none", map[string]string{"v.volume": "[Volume]\n" + asWeb + "[X-MainPID]\nCgroup=user\n"}, map[string]string{"v-volume.service": "error: [X-MainPID] Cgroup= is for files that run containers"}, nil},
		{"unknown key", map[string]string{"a.container": "[Container]\n" + asWeb + "[X-MainPID]\nCgruop=user\n"}, map[string]string{"a.service": "error: [X-MainPID] Cgruop=: no such option, only Cgroup="}, nil},
		{"unknown mode", map[string]string{"a.container": "[Container]\n" + asWeb + "[X-MainPID]\nCgroup=split\n"}, map[string]string{"a.service": "error: [X-MainPID] Cgroup=split is none of"}, nil},
		{"misspelt section", map[string]string{"a.container": "[Container]\n" + asWeb + "[X-MianPID]\nCgroup=user\n"}, map[string]string{"a.service": "error: section [X-MianPID]: write [X-MainPID]"}, nil},
		{"misspelt section without a user", map[string]string{"a.container": "[Container]\n[X-MainPid]\n"}, map[string]string{"a.service": "error: section [X-MainPid]: write [X-MainPID]"}, nil},
		{"an unknown section with a user", map[string]string{"a.container": "[Container]\n[Servce]\nUser=web\n"}, map[string]string{"a.service": "error: neither systemd nor Quadlet reads User= in [Servce]; write User=web in [Service]"}, nil},
		{"misspelt key", map[string]string{"a.container": "[Container]\n[Service]\nuser=web\n"}, map[string]string{"a.service": "error: user= in [Service] is no key of systemd's; write User=web"}, nil},
		{"text behind a section", map[string]string{"a.container": "[Container]\n[X-MainPID] # User=alice\n", "b.container": "[Container]\n" + asWeb},
			map[string]string{"a.service": "error: not a unit file", "b.service": "web mixed"}, nil},
		{"a carriage return", map[string]string{"a.container": "[Container]\n[Service]\nRestart=no\rUser=web\n"}, map[string]string{"a.service": "error: a carriage return inside of a line"}, nil},
		{"a carriage return behind the user", map[string]string{"a.container": "[Container]\n" + asWeb + "# x\rUser=root\n"}, map[string]string{"a.service": "error: a carriage return inside of a line"}, nil},
		{"lines that end with both", map[string]string{"a.container": "[Container]\r\n[Service]\r\nUser=web\r\n"}, map[string]string{"a.service": "web mixed"}, nil},

		{"unknown user", map[string]string{"a.container": "[Container]\n[Service]\nUser=nobodyhere\n"}, map[string]string{"a.service": `error: user "nobodyhere" does not exist`}, nil},
		{"a user without subordinate IDs", map[string]string{"a.container": "[Container]\n[Service]\nUser=bare\n"}, map[string]string{"a.service": "usermod --add-subuids 66191360-66256895 --add-subgids 66191360-66256895 bare"}, nil},
		{"a user that only systemd knows", map[string]string{"a@.container": "[Container]\n[Service]\nUser=%i\n"}, map[string]string{"a@.service": "root"}, []string{"a@.service: User=%i in [Service] is left to systemd"}},
		{"options for a user that only systemd knows", map[string]string{"a@.container": "[Container]\n[Service]\nUser=%i\n[X-MainPID]\nCgroup=user\n"}, map[string]string{"a@.service": "error: User=%i in [Service]: only systemd knows which user this is"}, nil},
		{"a dynamic user", map[string]string{"a.container": "[Container]\n[Service]\nUser=web\nDynamicUser=yes\n"}, map[string]string{"a.service": "root"}, []string{"is left to systemd"}},
		{"the user inside", map[string]string{"a.container": "[Container]\nUser=web\n", "b.container": "[Container]\nUser=postgres\n", "c.container": "[Container]\nUser=db\n" + asWeb},
			map[string]string{"a.service": "root"}, []string{"a.service: User=web in [Container] is the user inside"}},

		{"limits that do not bind", map[string]string{"a.container": "[Container]\n" + asWeb + "MemoryMax=1G\n"}, map[string]string{"a.service": "web mixed"}, nil},
		{"a prefix of other names", map[string]string{"db-.container": "[Container]\n" + asWeb}, map[string]string{"db-.service": "root"}, []string{`the drop-ins of db-.service would change every unit whose name begins with "db-"`}},
		{"a name that systemd does not know", map[string]string{"a b.container": "[Container]\n" + asWeb}, map[string]string{"a b.service": "root"}, []string{"is not a valid unit name, so systemd ignores it"}},
		{"two files of one service", map[string]string{"a.container": "[Container]\nServiceName=x\n" + asWeb, "b.container": "[Container]\nServiceName=x\n"},
			map[string]string{"x.service": "error: a.container and b.container both make x.service"}, nil},
		{"a file that Quadlet refuses", map[string]string{"bad.container": "[Container]\nRefused=1\n" + asWeb, "other.container": "[Container]\nRefused=1\n"},
			map[string]string{"bad.service": "error: Quadlet makes no service of bad.container: unsupported key 'Refused'", "other.service": "root"}, nil},
		{"a drop-in of a file that Quadlet refuses", map[string]string{"bad.container": "[Container]\nRefused=1\n", "bad.container.d/10.conf": asWeb},
			map[string]string{"bad.service": "error: Quadlet makes no service"}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, _ := planner(t, test.files)
			plan := p.Quadlet(context.Background())
			for service, want := range test.want {
				if got := outcome(plan, service); !strings.Contains(got, want) {
					t.Errorf("%s: %s, want %s", service, got, want)
				}
			}
			notes := slices.Concat(plan.Warnings, plan.Errors)
			if len(notes) != len(test.notes) {
				t.Errorf("notes: %q", notes)
			}
			for i, n := range notes {
				if i < len(test.notes) && !strings.Contains(n, test.notes[i]) {
					t.Errorf("note %q does not say %q", n, test.notes[i])
				}
			}
			if prefix := strings.Contains(test.name, "a prefix of"); prefix != (len(plan.Masked) == 1 && plan.Masked[0] == "db-.service") {
				t.Errorf("masked: %q", plan.Masked)
			}
			refusing, serving := plan.Dropins()
			users := map[string]bool{}
			for _, d := range plan.Decisions {
				if text := string(d.Dropin.Text()); (d.Err != nil) != strings.Contains(text, "ExecStart=/usr/bin/oci-mainpid refuse") || d.Err == nil && !strings.Contains(text, "\nUser="+d.Account.Name+"\n") {
					t.Errorf("%s, %v:\n%s", d.Service, d.Err, text)
				}
				if d.Err == nil {
					users[d.Account.Name] = true
				}
			}
			if len(refusing)+len(serving) != len(plan.Decisions)+2*len(users) {
				t.Errorf("%d and %d drop-ins for %d services", len(refusing), len(serving), len(plan.Decisions))
			}
		})
	}
}

func TestPlanWithoutQuadlet(t *testing.T) {
	files := map[string]string{"a.container": "[Container]\n" + asWeb, "v.volume": "[Volume]\n"}
	for _, test := range []struct {
		name   string
		change func(*Planner)
		want   string
	}{
		{"not installed", func(p *Planner) { p.FindQuadlet = func() (string, bool, error) { return "", false, ErrNoQuadlet } }, "error: " + ErrNoQuadlet.Error()},
		{"masked", func(p *Planner) { p.FindQuadlet = func() (string, bool, error) { return "", true, nil } }, "root"},
		{"fails", func(p *Planner) {
			p.Convert = func(context.Context, string, []string) ([]Converted, []string, error) {
				return nil, nil, errors.New("out of memory")
			}
		}, "error: out of memory"},
		{"a file that it cannot read takes the others with it", func(p *Planner) {
			p.Convert = func(context.Context, string, []string) ([]Converted, []string, error) {
				return nil, []string{`error loading "/etc/containers/systemd/x.container", file contains line 1: “x” which is not a key-value pair`}, nil
			}
		}, "error: Quadlet makes no service of a.container: it cannot read /etc/containers/systemd/x.container (file contains line 1: “x” which"},
		{"systemd's version is not known", func(p *Planner) {
			p.SystemdVersion = func(context.Context) (int, error) { return 0, errors.New("no systemctl") }
		}, "web mixed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := planner(t, files)
			test.change(p)
			plan := p.Quadlet(context.Background())
			if got := outcome(plan, "a.service"); !strings.Contains(got, test.want) {
				t.Errorf("%s, want %s", got, test.want)
			}
			if got := outcome(plan, "v-volume.service"); got != "root" {
				t.Errorf("the volume: %s", got)
			}
			if warning := p.VersionWarning(context.Background()); (warning != "") != strings.Contains(test.name, "version") {
				t.Errorf("warning %q", warning)
			}
		})
	}
}

// TestPlanLeavesOthersUnits: a unit of the administrator's takes the place of
// Quadlet's.
func TestPlanLeavesOthersUnits(t *testing.T) {
	p, _ := planner(t, map[string]string{"a.container": "[Container]\n" + asWeb, "gone.container": "[Container]\nRefused=1\n" + asWeb})
	dir := t.TempDir()
	write(t, dir+"/a.service", "[Service]\nExecStart=/bin/true\n")
	write(t, dir+"/gone.service", "[Service]\nExecStart=/bin/true\n")
	saved := preferred
	preferred = []string{dir}
	defer func() { preferred = saved }()
	p.UnitDirs = []string{dir}
	plan := p.Quadlet(context.Background())
	if len(plan.Decisions) != 0 || len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0], dir+"/a.service has precedence") {
		t.Errorf("%v, %q", plan.Decisions, plan.Warnings)
	}
}

func TestPlanOfFiles(t *testing.T) {
	p, dir := planner(t, map[string]string{
		"a.container": "[Container]\nVolume=v.volume:/x\n" + asWeb + "[X-MainPID]\nCgroup=user\n",
		"b.container": "[Container]\n" + asWeb, "v.volume": "[Volume]\n" + asWeb, "root.container": "[Container]\n",
		"bad.container": "[Container]\nRefused=1\n",
	})
	file := func(name string) []string { return []string{filepath.Join(dir, name)} }
	for _, test := range []struct {
		name    string
		paths   []string
		options dropin.Options
		want    []string // each service with its outcome
	}{
		{"a file and what it names", file("a.container"), dropin.Options{}, []string{"a.service web user", "v-volume.service web"}},
		{"an option that is chosen", file("a.container"), dropin.Options{Cgroup: dropin.Service}, []string{"a.service web service", "v-volume.service web"}},
		{"a file without a user", file("root.container"), dropin.Options{}, []string{"root.service error: has no user; write User=NAME in [Service] of " + dir + "/root.container"}},
		{"a file that Quadlet refuses", file("bad.container"), dropin.Options{}, []string{"bad.service error: Quadlet makes no service of bad.container: unsupported key"}},
		{"a file that does not exist", file("missing.container"), dropin.Options{}, []string{"missing.service error: open "}},
	} {
		plan, err := p.QuadletFiles(context.Background(), test.paths, test.options)
		if err != nil {
			t.Fatal(err)
		}
		if len(plan.Decisions) != len(test.want) {
			t.Errorf("%s: %d decisions", test.name, len(plan.Decisions))
		}
		for i, d := range plan.Decisions {
			if got := d.Service + " " + outcome(plan, d.Service); i < len(test.want) && !strings.HasPrefix(got, test.want[i]) {
				t.Errorf("%s: %s, want %s", test.name, got, test.want[i])
			}
		}
	}
	write(t, dir+"/other/a.container", "[Container]\n")
	if plan, err := p.QuadletFiles(context.Background(), file("other/a.container"), dropin.Options{}); err != nil || len(plan.Decisions) != 1 || !strings.Contains(plan.Decisions[0].Err.Error(), "rather than") {
		t.Errorf("another file of that name: %v", err)
	}
	p.FindQuadlet = func() (string, bool, error) { return "", true, nil }
	if _, err := p.QuadletFiles(context.Background(), file("a.container"), dropin.Options{}); err == nil {
		t.Error("masked")
	}
}

func TestPlanOfService(t *testing.T) {
	p, dir := planner(t, nil)
	write(t, dir+"/web.service", "[Service]\n"+detached)
	write(t, dir+"/db.service", "[Service]\nUser=db\n"+detached)
	write(t, dir+"/root.service", "[Service]\nUser=root\n"+detached)
	write(t, dir+"/uid.service", "[Service]\nUser=1000\n"+detached)
	for _, test := range []struct{ file, user, want string }{
		{"web.service", "web", "web mixed"},
		{"web.service", "1000", "web mixed"},
		{"uid.service", "web", "web mixed"},
		{"root.service", "web", "web mixed"},
		{"db.service", "web", "error: has User=db already, and --user=web is another user"},
		{"web.service", "nobodyhere", `error: user "nobodyhere" does not exist`},
		{"missing.service", "web", "error: open "},
	} {
		d := p.Service(context.Background(), filepath.Join(dir, test.file), test.user, dropin.Options{})
		if got := outcome(&Plan{Decisions: []*Decision{d}}, test.file); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s as %s: %s, want %s", test.file, test.user, got, test.want)
		}
	}
}

// TestPlanInTime: what does not answer keeps nothing waiting.
func TestPlanInTime(t *testing.T) {
	p, _ := planner(t, map[string]string{"a.container": "[Container]\n" + asWeb})
	p.Convert = func(ctx context.Context, _ string, _ []string) ([]Converted, []string, error) {
		<-ctx.Done()
		return nil, nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 1)
	defer cancel()
	if got := outcome(p.Quadlet(ctx), "a.service"); got != "error: context deadline exceeded" {
		t.Error(got)
	}
}

func TestIsSlip(t *testing.T) {
	for _, word := range []string{"user", "use", "ser", "usr", "users", "uuser", "suer", "usre", "usar", "xuser"} {
		if !isSlip(word, "user") {
			t.Errorf("%s is a slip", word)
		}
	}
	for _, word := range []string{"", "umask", "us", "group", "resu", "usual", "userns"} {
		if isSlip(word, "user") {
			t.Errorf("%s is no slip", word)
		}
	}
	for _, name := range []string{"X-MainPid", "x-mainpid", "XMainPID", "X-MianPID", "X-MainPIDs", "X-MainPD", "MainPID", "X–MainPID", "X_MAIN_PID", "Y-MainPID", "X-Main-PID", "XX-MainPID"} {
		if !meansSection(name) {
			t.Errorf("[%s] is a slip", name)
		}
	}
	for _, name := range []string{"X-MainPID", "Service", "X-Container", "Unit", "", "X-Main", "X-Pod", strings.Repeat("X-MainPID", 3)} {
		if meansSection(name) {
			t.Errorf("[%s] is no slip", name)
		}
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
		{`error loading "/etc/a.container", line 1: no`, "/etc/a.container", "line 1: no", true},
		{"converting ", "", "", false},
		{`converting "a.container`, "", "", false},
		{"Loading source unit file /etc/a.container", "", "", false},
	} {
		if file, text, ok := complaint(test.message); ok != test.ok || file != test.file || text != test.text {
			t.Errorf("%s: %q, %q, %t", test.message, file, text, ok)
		}
	}
}

// TestOneContainerName: two units of one user whose containers have one name are told
// of each other; those of two users, and a name for each instance, are well.
func TestOneContainerName(t *testing.T) {
	name := func(service, user, container string) *member {
		return &member{decision: &Decision{Service: service, Account: account.Account{Name: user, UID: len(user)}, containerName: container}}
	}
	web, api, db, bare := name("web.service", "web", "x"), name("api.service", "web", "x"), name("db.service", "db", "x"), name("bare.service", "web", "")
	compareContainers([]*member{web, api, db, bare})
	if web.decision.SameContainer != "api.service" || api.decision.SameContainer != "web.service" || len(web.decision.Warnings) != 1 ||
		!strings.Contains(web.decision.Warnings[0], "the name x, as that of api.service has") {
		t.Errorf("%+v, %+v", web.decision, api.decision)
	}
	if db.decision.Warnings != nil || bare.decision.Warnings != nil {
		t.Errorf("%+v, %+v", db.decision, bare.decision)
	}
	for text, want := range map[string]string{"--name web ": "web", "--name=web-%i ": "", "": ""} {
		d, err := deriveText(t, "web.service", "Type=notify\nExecStart=podman run -d --sdnotify=conmon "+text+"x\nExecStop=podman rm -f x\n", true, "", 257)
		if err != nil || d.containerName != want {
			t.Errorf("%s: %q, %v", text, d.containerName, err)
		}
	}
}
