package quadlet

import (
	"reflect"
	"testing"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

func TestParseSystemdVersion(t *testing.T) {
	for out, want := range map[string]int{
		"systemd 257 (257.13-1)\n+PAM +AUDIT":  257,
		"systemd 252 (252.39-1~deb12u2)\n":     252,
		"systemd 262~rc1 (262~rc1-1)\n":        262,
		"systemd v254.5 (v254.5-1.fc39)\n+PAM": 254,
	} {
		if got, err := parseSystemdVersion(out); err != nil || got != want {
			t.Errorf("%q: %d, %v", out, got, err)
		}
	}
	for _, out := range []string{"", "systemd", "systemd next\n", "busybox 1\n"} {
		if got, err := parseSystemdVersion(out); err == nil {
			t.Errorf("%q: %d", out, got)
		}
	}
}

func TestSockets(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/etc/web.socket", "[Socket]\nListenStream=80\n")
	write(t, dir+"/usr/web.socket", "[Socket]\nListenStream=80\nService=overridden.service\n")
	write(t, dir+"/usr/tls.socket", "[Socket]\nListenStream=443\n")
	write(t, dir+"/etc/tls.socket.d/10.conf", "[Socket]\nService=web.service\n")
	write(t, dir+"/usr/inst@.socket", "[Socket]\nListenStream=1\n")
	link(t, "/dev/null", dir+"/etc/masked.socket")
	write(t, dir+"/usr/masked.socket", "[Socket]\nListenStream=2\n")
	write(t, dir+"/usr/broken.socket", "\x00")
	sockets := ReadSockets([]string{dir + "/etc", dir + "/none", dir + "/usr"})
	u, err := unitfile.Parse([]byte("[Service]\nSockets=a.socket b.socket\nSockets=tls.socket\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		unit *unitfile.File
		want []string
	}{
		{"web.service", &unitfile.File{}, []string{"tls.socket", "web.socket"}},
		{"web.service", u, []string{"a.socket", "b.socket", "tls.socket", "web.socket"}},
		{"inst@a.service", &unitfile.File{}, []string{"inst@.socket"}},
		{"tls.service", &unitfile.File{}, nil},
		{"masked.service", &unitfile.File{}, nil},
		{"overridden.service", &unitfile.File{}, nil},
	} {
		if got := sockets.Of(test.name, test.unit); len(got)+len(test.want) > 0 && !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestLoadService(t *testing.T) {
	dir := t.TempDir()
	etc, usr := dir+"/etc", dir+"/usr"
	write(t, usr+"/web@a.service", "[Service]\nExecStart=/bin/a\n")
	write(t, etc+"/web@a.service.d/20.conf", "[Service]\nType=exec\n")
	write(t, etc+"/web@.service.d/10.conf", "[Service]\nUser=web\n")
	write(t, etc+"/web@a.service.d/"+dropin.Name, "[Service]\nUser=ours\n")
	u, err := LoadService(usr+"/web@a.service", []string{etc, usr})
	if err != nil || u.Get("Service", "User") != "web" || u.Get("Service", "Type") != "exec" {
		t.Errorf("in a directory of systemd's: %q, %v", u.Assignments, err)
	}
	u, err = LoadService(usr+"/web@a.service", nil)
	if err != nil || u.Get("Service", "User") != "" {
		t.Errorf("elsewhere: %q, %v", u.Assignments, err)
	}
}
