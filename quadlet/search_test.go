package quadlet

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSearchDirs(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/sub/deep", "a/web.container.d", "b", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir+"/a/web.container", "")
	link(t, dir+"/c", dir+"/a/linked")
	link(t, dir+"/a", dir+"/a/sub/loop")
	link(t, dir+"/nowhere", dir+"/a/dangling")
	t.Setenv("QUADLET_UNIT_DIRS", strings.Join([]string{dir + "/a", "relative", dir + "/b", dir + "/missing", dir + "/c"}, ":"))
	want := []string{dir + "/a", dir + "/c", dir + "/a/sub", dir + "/a/sub/deep", dir + "/b"}
	if got := SearchDirs(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAsks(t *testing.T) {
	tests := []struct {
		name, file, text string
		want             bool
	}{
		{"no section", "web.container", "[Container]\nUser=1000\n[Service]\nRestart=always\n", false},
		{"user in an unknown section", "web.container", "[Container]\nImage=x\n[Servce]\nUser=web\n", true},
		{"a slip of the user's key", "web.container", "[Service]\nuesr=web\n", true},
		{"a key that only begins like it", "web.container", "[Service]\nUserXY=web\nUMask=7\n", false},
		{"an en dash", "web.container", "[X\u2013MainPID]\nCgroup=user\n", true},
		{"text behind the section", "web.container", "[X-MainPID] # x\n", true},
		{"behind a carriage return", "web.container", "[Service]\nRestart=no\rUser=web\n", true},
		{"our section", "web.container", "[Container]\nImage=x\n[X-MainPID]\nUser=web\n", true},
		{"misspelt", "web.container", "[Container]\nImage=x\n[x-mainpid]\nUser=web\n", true},
		{"user of the service", "web.kube", "[Kube]\n[Service]\nRestart=no\nUser = web\n", true},
		{"another key of that start", "web.kube", "[Service]\nUserXY=web\nUser\n", false},
		{"in a comment", "web.container", "# [X-MainPID]\n[Service]\n#User=web\n", false},
		{"in a value", "web.container", "[Container]\nExec=[X-MainPID]\n", false},
		{"in another section after it", "web.container", "[Service]\n[Container]\nUser=web\n", false},
		{"indented, without a newline at the end", "web.pod", "[Pod]\n  [X-MainPID] ", true},
		{"in a drop-in", "web.container.d/10-user.conf", "[X-MainPID]\nUser=web\n", true},
		{"in a drop-in for all", "container.d/10-user.conf", "[X-MainPID]\nUser=web\n", true},
		{"in a file that is none", "web.container.d/README", "[X-MainPID]\nUser=web\n", false},
		{"in another kind of file", "web.service", "[X-MainPID]\nUser=web\n", false},
		{"far into a large file", "web.container", strings.Repeat("#\n", 200<<10) + "[X-MainPID]\n", true},
		{"at the end of the first block", "web.container", strings.Repeat("#\n", 8<<10) + "[X-MainPID]\n", true},
		{"too large to look at", "web.container", strings.Repeat("#\n", 2<<20), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "other.container"), "[Container]\nImage=x\n")
			if err := unix.Mkfifo(filepath.Join(dir, "fifo.container"), 0o600); err != nil {
				t.Fatal(err)
			}
			link(t, "/nowhere", filepath.Join(dir, "dangling.container"))
			write(t, filepath.Join(dir, test.file), test.text)
			if got := Asks([]string{"/nowhere", dir}); got != test.want {
				t.Errorf("got %t", got)
			}
		})
	}
}

// BenchmarkAsks is what a boot costs without a file that asks.
func BenchmarkAsks(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		text := fmt.Sprintf("[Unit]\nDescription=%d\n[Container]\nImage=localhost/x\nUser=1000\nPublishPort=%d:80\n[Service]\nRestart=always\n[Install]\nWantedBy=multi-user.target\n", i, i)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("u%d.container", i)), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if Asks([]string{dir}) {
			b.Fatal("nobody asked")
		}
	}
}

func TestLoadQuadlet(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/my-web@x.container", "[Container]\nImage=x\n")
	for i, d := range []string{"container.d", "my-.container.d", "my-@.container.d", "my-web@.container.d", "my-web@x.container.d"} {
		name := fmt.Sprintf("%d.conf", 9-i)
		write(t, filepath.Join(dir, "b", d, name), fmt.Sprintf("[X-MainPID]\nSeen=%s\n", d))
		write(t, filepath.Join(dir, "b", d, "same.conf"), fmt.Sprintf("[X-MainPID]\nSame=%s\n", d))
	}
	write(t, dir+"/b/my-web.container.d/1.conf", "[X-MainPID]\nSeen=wrong\n")
	u, err := loadQuadlet(dir+"/a/my-web@x.container", []string{dir + "/a", dir + "/b"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"my-web@x.container.d", "my-web@.container.d", "my-@.container.d", "my-.container.d", "container.d"}
	if got := u.List("X-MainPID", "Seen"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := u.List("X-MainPID", "Same"); !reflect.DeepEqual(got, want[:1]) {
		t.Errorf("of one name: %q", got)
	}
}

func TestQuadletFiles(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"a/web.container", "b/web.container", "b/data.volume", "b/web.service", "b/x.container.d/y.conf"} {
		write(t, filepath.Join(dir, f), "")
	}
	want := map[string]string{"web.container": dir + "/a/web.container", "data.volume": dir + "/b/data.volume"}
	if got := quadletFiles([]string{dir + "/none", dir + "/a", dir + "/b"}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestAskingFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/web.container", "[Container]\n[Service]\nUser=web\n")
	write(t, dir+"/root.container", "[Container]\n")
	write(t, dir+"/slip.volume", "[Volume]\n[X-MianPID]\n")
	write(t, dir+"/broken.kube", "[X-MainPID] # x\n")
	write(t, dir+"/dropin.pod", "[Pod]\n")
	write(t, dir+"/dropin.pod.d/10.conf", "[Service]\nUser=web\n")
	want := []string{dir + "/broken.kube", dir + "/dropin.pod", dir + "/slip.volume", dir + "/web.container"}
	if got := AskingFiles([]string{dir}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
}
