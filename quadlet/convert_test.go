package quadlet

import (
	"context"
	"os"
	"reflect"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

const dryRun = `---data-volume.service---
[X-Volume]

[Unit]
SourcePath=/q/data.volume

[Service]
ExecStart=/usr/bin/podman volume create --ignore systemd-data
Type=oneshot

---web.service---
# a comment
[Unit]
SourcePath=/q/web.container

[Service]
ExecStart=/usr/bin/podman run x ---

`

func TestParseDryRun(t *testing.T) {
	services, err := parseDryRun([]byte(dryRun))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range services {
		got = append(got, s.Name, s.Source, s.File(), s.Unit.Get("Service", "ExecStart"))
	}
	want := []string{
		"data-volume.service", "/q/data.volume", "data.volume", "/usr/bin/podman volume create --ignore systemd-data",
		"web.service", "/q/web.container", "web.container", "/usr/bin/podman run x ---",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
	for name, out := range map[string]string{
		"text before the first service": "hello\n---a.service---\n[Unit]\n",
	} {
		if services, err := parseDryRun([]byte(out)); err == nil {
			t.Errorf("%s: %v", name, services)
		}
	}
	services, err = parseDryRun([]byte("---a.service---\nhello\n---b.service---\n[Unit]\n"))
	if err != nil || len(services) != 2 || services[0].Err == nil || services[1].Err != nil {
		t.Errorf("a service that is no unit: %v, %v", services, err)
	}
	if services, err := parseDryRun(nil); err != nil || services != nil {
		t.Errorf("nothing: %v, %v", services, err)
	}
}

// fakeQuadlet writes a program that stands for Quadlet's generator.
func fakeQuadlet(t *testing.T, script string) string {
	t.Helper()
	path := t.TempDir() + "/podman-system-generator"
	write(t, path, "#!/bin/sh\n"+script)
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConvert(t *testing.T) {
	script := "[ \"$*\" = --dryrun ] || exit 3\necho 'quadlet-generator[12]: converting \"bad.container\": no Image' >&2\necho \"$QUADLET_UNIT_DIRS\" >&2\ncat <<'E'\n" + dryRun + "E\n"
	for _, exit := range []string{"exit 0", "exit 1"} {
		services, messages, err := Convert(context.Background(), fakeQuadlet(t, script+exit), []string{"/a", "/b"})
		if err != nil || len(services) != 2 || !reflect.DeepEqual(messages, []string{`converting "bad.container": no Image`, "/a:/b"}) {
			t.Errorf("%s: %v, %q, %v", exit, services, messages, err)
		}
	}
	for name, script := range map[string]string{
		"fails":            script + "exit 2",
		"is killed":        "kill -9 $$",
		"prints something": "echo hello",
	} {
		if services, _, err := Convert(context.Background(), fakeQuadlet(t, script), nil); err == nil || services != nil {
			t.Errorf("%s: %v", name, services)
		}
	}
	if _, _, err := Convert(context.Background(), "/nowhere", nil); err == nil {
		t.Error("does not exist")
	}
}

func TestServiceName(t *testing.T) {
	for _, test := range []struct{ file, text, want string }{
		{"web.container", "", "web.service"},
		{"data.volume", "", "data-volume.service"},
		{"net.network", "", "net-network.service"},
		{"p.pod", "", "p-pod.service"},
		{"i.image", "", "i-image.service"},
		{"b.build", "", "b-build.service"},
		{"k.kube", "", "k.service"},
		{"web@.container", "", "web@.service"},
		{"web@a.container", "", "web@a.service"},
		{"data@.volume", "", "data-volume@.service"},
		{"web.container", "[Container]\nServiceName=other\n", "other.service"},
		{"p.pod", "[Pod]\nServiceName=\"other\"\n", "other.service"},
	} {
		u, err := unitfile.Parse([]byte(test.text))
		if err != nil {
			t.Fatal(err)
		}
		if got := serviceName(test.file, u); got != test.want {
			t.Errorf("%s: %s, want %s", test.file, got, test.want)
		}
	}
}

func TestSupplement(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/data.volume", "[Volume]\n")
	write(t, dir+"/named.network", "[Network]\nServiceName=other\n")
	write(t, dir+"/web.container", "[Container]\nImage=x\n")
	write(t, dir+"/container.d/10.conf", "[Container]\nImage=never\n[X-MainPID]\nCgroup=user\n[Service]\nRestart=always\nUser=web\n")
	write(t, dir+"/slip.pod", "[Pod]\n")
	write(t, dir+"/slip.pod.d/10.conf", "[x-mainpid]\n")
	unit := func(text string) *unitfile.File {
		u, err := unitfile.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	services := []Converted{
		{Name: "data-volume.service", Unit: unit("[X-Volume]\n")},
		{Name: "other.service", Unit: unit("[X-Network]\n")},
		{Name: "unknown.service", Unit: unit("[Service]\n")},
		{Name: "web.service", Source: dir + "/web.container", Unit: unit("[X-Container]\nImage=x\n")},
		{Name: "slip-pod.service", Source: dir + "/slip.pod", Unit: unit("[X-Pod]\n")},
		{Name: "asks.service", Source: dir + "/asks.container", Unit: unit("[Service]\nUser=db\n")},
	}
	supplement(services, []string{dir}, []string{"container.d", "slip.pod.d"})
	for i, want := range []string{dir + "/data.volume", dir + "/named.network", ""} {
		if services[i].Source != want {
			t.Errorf("%s: source %q", services[i].Name, services[i].Source)
		}
	}
	web := services[3].Unit
	if r := readRequest("web.container", web); r.user != "web" || r.options.Cgroup != dropin.User || web.Get("Service", "Restart") != "" || web.Has("Container") {
		t.Errorf("drop-in: %+v, %q", r, web.Assignments)
	}
	if r := readRequest("slip.pod", services[4].Unit); r.err == nil {
		t.Errorf("misspelt in a drop-in: %+v", r)
	}
	if r := readRequest("asks.container", services[5].Unit); r.user != "db" {
		t.Errorf("what Quadlet passed on: %+v", r)
	}
}

func TestReferences(t *testing.T) {
	for text, want := range map[string]string{
		"Volume=data.volume:/d\nVolume=/srv:/s\nVolume=other:/o":          "Volume data.volume",
		"Volume=model.artifact:/m":                                        "Volume model.artifact",
		"Mount=type=artifact,source=model.artifact,destination=/m":        "Mount model.artifact",
		"Mount=type=image,src=i.image,destination=/m":                     "Mount i.image",
		"Volume=i.image:/m":                                               "",
		"Image=b.build\nNetwork=front.network:ip=10.0.0.2\nPod=\"p.pod\"": "Network front.network, Image b.build, Pod p.pod",
	} {
		u, err := unitfile.Parse([]byte("[X-Container]\n" + text + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range references(u) {
			got = append(got, r.key+" "+r.file)
		}
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}
