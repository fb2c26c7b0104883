package quadlet

import (
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// converted stands for Quadlet: it makes a service of each file, which keeps the
// file's sections as Quadlet does.
func converted(t *testing.T, files map[string]string) []Converted {
	t.Helper()
	var services []Converted
	for _, name := range sortedKeys(files) {
		ext := filepath.Ext(name)
		group := strings.ToUpper(ext[1:2]) + ext[2:]
		text := files[name]
		if !strings.HasPrefix(text, "[") {
			text = "[" + group + "]\n" + text
		}
		text = strings.Replace(text, "["+group+"]", "[X-"+group+"]", 1)
		exec := "Type=oneshot\nExecStart=/usr/bin/podman " + group + " create x\n"
		switch ext {
		case ".container":
			exec = "Type=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman run --cgroups=split --sdnotify=conmon -d x\nExecStop=/usr/bin/podman rm -f x\n"
		case ".pod":
			exec = "Type=forking\nPIDFile=%t/%N.pid\nExecStartPre=/usr/bin/podman pod create --infra-conmon-pidfile=%t/%N.pid x\nExecStart=/usr/bin/podman pod start x\nExecStop=/usr/bin/podman pod stop x\n"
		}
		u, err := Parse([]byte(text + "\n[Service]\n" + exec + "[Unit]\nSourcePath=/etc/containers/systemd/" + name + "\n"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		services = append(services, Converted{Name: serviceName(name, &Unit{}), Source: "/etc/containers/systemd/" + name, Unit: u})
	}
	return services
}

// outcome says whom a member runs as: "web", "web mixed", "root", or "error: …".
func outcome(m *Member) string {
	switch {
	case m.Err != nil:
		return "error: " + m.Err.Error()
	case m.Owner == nil:
		return "root"
	case m.Cgroup != Mixed:
		return m.Owner.Name + " " + string(m.Cgroup)
	}
	return m.Owner.Name
}

func TestSettle(t *testing.T) {
	const asWeb, asDB = "[X-MainPID]\nUser=web\n", "[X-MainPID]\nUser=db\n"
	tests := []struct {
		name     string
		files    map[string]string
		want     map[string]string // a part of the outcome
		warnings []string
	}{
		{"nobody asks", map[string]string{"a.container": "Image=x\n"}, map[string]string{"a.container": "root"}, nil},
		{"a container asks", map[string]string{"a.container": "Image=x\n" + asWeb, "b.container": ""},
			map[string]string{"a.container": "web", "b.container": "root"}, nil},
		{"mode", map[string]string{"a.container": asWeb + "Cgroup=user\n"}, map[string]string{"a.container": "web user"}, nil},
		{"by UID and quoted", map[string]string{"a.container": "[X-MainPID]\nUser=\"1000\"\n"}, map[string]string{"a.container": "web"}, nil},
		{"the last key counts", map[string]string{"a.container": "[X-MainPID]\nUser=db\nUser=web\n"}, map[string]string{"a.container": "web"}, nil},

		{"what a container names", map[string]string{
			"a.container": "Image=b.build\nVolume=v.volume:/data:Z\nNetwork=n.network:ip=10.0.0.1\nMount=type=volume,source=m.volume,destination=/m type=image,src=i.image,dst=/i\n" + asWeb,
			"b.build":     "Volume=v2.volume:/x\nNetwork=n2.network\n", "v.volume": "Image=i2.image\n", "n.network": "", "m.volume": "", "i.image": "", "v2.volume": "", "n2.network": "", "i2.image": "", "other.volume": "",
		}, map[string]string{"a.container": "web", "b.build": "web", "v.volume": "web", "n.network": "web", "m.volume": "web", "i.image": "web", "v2.volume": "web", "n2.network": "web", "i2.image": "web", "other.volume": "root"}, nil},
		{"what a kube unit names", map[string]string{"k.kube": "Yaml=k.yaml\nNetwork=n.network\n" + asWeb, "n.network": ""},
			map[string]string{"k.kube": "web", "n.network": "web"}, nil},
		{"paths and names are no units", map[string]string{"a.container": "Volume=/srv/v.volume:/x\nNetwork=host\nVolume=named:/y\n" + asWeb, "v.volume": ""},
			map[string]string{"a.container": "web", "v.volume": "root"}, nil},

		{"a pod and its containers", map[string]string{"p.pod": "Volume=v.volume:/x\n" + asWeb + "Cgroup=user\n", "a.container": "Pod=p.pod\n", "b.container": "Pod=p.pod\nVolume=w.volume:/y\n[X-MainPID]\nCgroup=mixed\n", "v.volume": "", "w.volume": ""},
			map[string]string{"p.pod": "web user", "a.container": "web user", "b.container": "web", "v.volume": "web", "w.volume": "web"}, nil},
		{"a container asks for its pod", map[string]string{"p.pod": "", "a.container": "Pod=p.pod\n" + asWeb, "b.container": "Pod=p.pod\n"},
			map[string]string{"p.pod": "web", "a.container": "web", "b.container": "web"}, nil},
		{"a pod and a container of another user", map[string]string{"p.pod": asWeb, "a.container": "Pod=p.pod\n" + asDB, "b.container": "Pod=p.pod\n"},
			map[string]string{"p.pod": "web", "a.container": "error: runs as db, but its Pod=p.pod as web", "b.container": "web"}, nil},
		{"two containers want different users for their pod", map[string]string{"p.pod": "", "a.container": "Pod=p.pod\n" + asWeb, "b.container": "Pod=p.pod\n" + asDB, "c.container": "Pod=p.pod\n"},
			map[string]string{"p.pod": "error: a.container of web and b.container of db both name p.pod", "a.container": "error: a.container of web and b.container of db", "b.container": "error: a.container of web and b.container of db", "c.container": "error: its pod p.pod is not started"}, nil},

		{"two users name one volume", map[string]string{"a.container": "Volume=v.volume:/x\n" + asWeb, "b.container": "Volume=v.volume:/x\n" + asDB, "v.volume": ""},
			map[string]string{"a.container": "error: a.container of web and b.container of db both name v.volume", "b.container": "error: a.container of web", "v.volume": "error: a.container of web"}, nil},
		{"two spellings of one user", map[string]string{"a.container": "Volume=v.volume:/x\n" + asWeb, "b.container": "Volume=v.volume:/x\n[X-MainPID]\nUser=1000\n", "v.volume": ""},
			map[string]string{"a.container": "web", "b.container": "web", "v.volume": "web"}, nil},
		{"a volume says whose it is", map[string]string{"a.container": "Volume=v.volume:/x\n" + asWeb, "b.container": "Volume=v.volume:/x\n" + asDB, "v.volume": asDB},
			map[string]string{"a.container": "error: runs as web, but Volume=v.volume as db", "b.container": "db", "v.volume": "db"}, nil},
		{"root uses the volume, too", map[string]string{"a.container": "Volume=v.volume:/x\n" + asWeb, "b.container": "Volume=v.volume:/x\n", "v.volume": "Image=i.image\n", "i.image": ""},
			map[string]string{"a.container": "error: a.container of web and b.container of root both name v.volume", "b.container": "root", "v.volume": "root", "i.image": "root"}, nil},
		{"root uses a volume that says whose it is", map[string]string{"b.container": "Volume=v.volume:/x\n", "v.volume": asWeb},
			map[string]string{"b.container": "root", "v.volume": "web"}, []string{"b.service: runs as root, but Volume=v.volume as web"}},
		{"the network of a container of root", map[string]string{"a.container": "Network=b.container\n" + asWeb, "b.container": ""},
			map[string]string{"a.container": "error: runs as web, but Network=b.container as root; write User=web there, too", "b.container": "root"}, nil},
		{"the network of another user's container", map[string]string{"a.container": "Network=b.container\n" + asWeb, "b.container": asDB},
			map[string]string{"a.container": "error: runs as web, but Network=b.container as db", "b.container": "db"}, nil},

		{"unknown key", map[string]string{"a.container": "Volume=v.volume:/x\n[X-MainPID]\nUser=web\nUsr=web\n", "v.volume": ""},
			map[string]string{"a.container": "error: [X-MainPID] has no key Usr=", "v.volume": "web"}, nil},
		{"unknown mode", map[string]string{"a.container": asWeb + "Cgroup=split\n"}, map[string]string{"a.container": "error: Cgroup=split is none of"}, nil},
		{"no user", map[string]string{"a.container": "Volume=v.volume:/x\n[X-MainPID]\nCgroup=user\n", "v.volume": ""},
			map[string]string{"a.container": "error: [X-MainPID] has no User="}, nil},
		{"misspelt section", map[string]string{"a.container": "Volume=v.volume:/x\n[X-MainPid]\nUser=web\n", "v.volume": "Image=i.image\n", "i.image": ""},
			map[string]string{"a.container": "error: section [X-MainPid]: write [X-MainPID]", "v.volume": "error: a.container names it and is not started", "i.image": "error: v.volume names it and is not started"}, nil},
		{"misspelt, and root needs the volume", map[string]string{"a.container": "Volume=v.volume:/x\n[X-MainPid]\nUser=web\n", "b.container": "Volume=v.volume:/x\n", "v.volume": ""},
			map[string]string{"a.container": "error: section", "b.container": "root", "v.volume": "root"}, nil},
		{"the user does not exist", map[string]string{"a.container": "Volume=v.volume:/x\n[X-MainPID]\nUser=nobodyhere\n", "v.volume": ""},
			map[string]string{"a.container": `error: user "nobodyhere" does not exist`, "v.volume": "the user of a.container"}, nil},
		{"root is no user", map[string]string{"a.container": "[X-MainPID]\nUser=root\n"}, map[string]string{"a.container": "error: user \"root\" is root"}, nil},
		{"the pod's user does not exist", map[string]string{"p.pod": "[X-MainPID]\nUser=nobodyhere\n", "a.container": "Pod=p.pod\n"},
			map[string]string{"p.pod": "error: user", "a.container": "error: user"}, nil},

		{"user of the service", map[string]string{"a.container": "Volume=v.volume:/x\n[Service]\nUser=web\n", "v.volume": ""},
			map[string]string{"a.container": "web", "v.volume": "web"}, nil},
		{"user of the service is root", map[string]string{"a.container": "[Service]\nUser=root\n"}, map[string]string{"a.container": "root"}, nil},
		{"two users in one file", map[string]string{"a.container": asWeb + "[Service]\nUser=db\n"}, map[string]string{"a.container": "error: User=web in [X-MainPID] and User=db in [Service] differ"}, nil},
		{"user of the service by specifier", map[string]string{"a.container": "Volume=v.volume:/x\n[Service]\nUser=%i\n", "v.volume": ""},
			map[string]string{"a.container": "root", "v.volume": "root"}, []string{"a.service: User=%i in [Service] is left to systemd"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := NewFamily(converted(t, test.files), testAccounts())
			f.Settle()
			for file, want := range test.want {
				got := outcome(f.File(file))
				exact := !strings.HasPrefix(got, "error") || !strings.Contains(got, want)
				if got != want && exact {
					t.Errorf("%s: got %q, want %q", file, got, want)
				}
			}
			var warnings []string
			for i, w := range f.Warnings() {
				if i < len(test.warnings) && strings.HasPrefix(w, test.warnings[i]) {
					w = test.warnings[i]
				}
				warnings = append(warnings, w)
			}
			if !reflect.DeepEqual(warnings, test.warnings) {
				t.Errorf("warnings: %q", warnings)
			}
		})
	}
}

func TestAsk(t *testing.T) {
	files := map[string]string{"a.container": "Volume=v.volume:/x\n", "v.volume": "", "b.container": "[X-MainPID]\nUser=web\n", "bad.container": "[X-MainPID]\nUsr=web\n"}
	f := NewFamily(converted(t, files), testAccounts())
	if err := f.Ask(f.File("a.container"), "db", User); err != nil {
		t.Error(err)
	}
	if err := f.Ask(f.File("b.container"), "1000", ""); err != nil {
		t.Error(err)
	}
	if err := f.Ask(f.File("b.container"), "db", ""); err == nil || !strings.Contains(err.Error(), "already, --user=db differs") {
		t.Errorf("another user: %v", err)
	}
	if err := f.Ask(f.File("bad.container"), "web", ""); err == nil {
		t.Error("a section with an unknown key")
	}
	f.Settle()
	got := ""
	for _, m := range f.Related(f.File("a.container")) {
		got += fmt.Sprintf("%s %s; ", m.File(), outcome(m))
	}
	if got != "a.container db user; v.volume db; " {
		t.Errorf("Related: %s", got)
	}
}

func TestRelated(t *testing.T) {
	files := map[string]string{"p.pod": "[X-MainPID]\nUser=web\n", "a.container": "Pod=p.pod\nVolume=v.volume:/x\n", "v.volume": "", "other.container": "[X-MainPID]\nUser=web\n", "root.container": ""}
	f := NewFamily(converted(t, files), testAccounts())
	f.Settle()
	for _, file := range []string{"p.pod", "a.container"} {
		var got []string
		for _, m := range f.Related(f.File(file)) {
			got = append(got, m.File())
		}
		if !reflect.DeepEqual(got, []string{"a.container", "p.pod", "v.volume"}) {
			t.Errorf("%s: %q", file, got)
		}
	}
	if got := f.Related(f.File("root.container")); len(got) != 0 {
		t.Errorf("root's: %v", got)
	}
}
