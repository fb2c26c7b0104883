package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWriteFile needs root, whose directories are written in.
func TestWriteFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root, whose directories are written in")
	}
	const user = 12345
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		prepare func(dir string) (path string)
		want    string // of the error, "" for none
	}{
		"a new file":              {func(dir string) string { return dir + "/x.svg" }, ""},
		"a file of root's":        {func(dir string) string { must(os.WriteFile(dir+"/x.svg", []byte("old"), 0o600)); return dir + "/x.svg" }, ""},
		"in a sticky directory":   {func(dir string) string { must(os.Chmod(dir, 0o777|os.ModeSticky)); return dir + "/x.svg" }, ""},
		"no such directory":       {func(dir string) string { return dir + "/none/x.svg" }, "/none: no such file or directory"},
		"a file as a directory":   {func(dir string) string { must(os.WriteFile(dir+"/f", nil, 0o600)); return dir + "/f/x.svg" }, "/f: not a directory"},
		"a directory of a user's": {func(dir string) string { must(os.Chown(dir, user, 0)); return dir + "/x.svg" }, "belongs to UID 12345, who could change where the file goes: name a file in a directory of root's"},
		"below one of a user's": {func(dir string) string {
			must(os.Mkdir(dir+"/d", 0o755))
			must(os.Chown(dir, user, 0))
			return dir + "/d/x.svg"
		}, "belongs to UID 12345"},
		"a directory for all":   {func(dir string) string { must(os.Chmod(dir, 0o777)); return dir + "/x.svg" }, "others may write in it (mode 0777): name a file"},
		"a link to a directory": {func(dir string) string { must(os.Symlink("/etc", dir+"/link")); return dir + "/link/x.svg" }, "/link: is a symbolic link: name the directory"},
		"a link in place of it": {func(dir string) string { must(os.Symlink(dir+"/y", dir+"/x.svg")); return dir + "/x.svg" }, "is a symbolic link: remove it"},
		"a FIFO in place of it": {func(dir string) string { must(unix.Mkfifo(dir+"/x.svg", 0o600)); return dir + "/x.svg" }, "is not a regular file"},
		"a file of a user's": {func(dir string) string {
			must(os.WriteFile(dir+"/x.svg", nil, 0o600))
			must(os.Chown(dir+"/x.svg", user, 0))
			return dir + "/x.svg"
		}, "belongs to UID 12345: remove it"},
		"a path of the working one": {func(dir string) string { t.Chdir(dir); return "x.svg" }, ""},
	} {
		dir := filepath.Join(t.TempDir(), "dir")
		must(os.Mkdir(dir, 0o755))
		must(os.Chmod(filepath.Dir(dir), 0o755)) // whatever the umask is
		path := c.prepare(dir)
		err := writeFile(path, []byte("new"))
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		var got []byte
		if info, err := os.Lstat(filepath.Join(dir, "x.svg")); err == nil && info.Mode().IsRegular() {
			got, _ = os.ReadFile(filepath.Join(dir, "x.svg"))
			if want := map[bool]os.FileMode{true: 0o600, false: 0o644}[name == "a file of root's"]; c.want == "" && info.Mode() != want {
				t.Errorf("%s: the mode is %v, want %v", name, info.Mode(), want)
			}
		}
		if (string(got) == "new") != (c.want == "") {
			t.Errorf("%s: the file has %q", name, got)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".*svg*")); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

func TestWriteFileLeavesTheOldOne(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root, whose directories are written in")
	}
	// What has a name of 255 bytes has no room for that of a temporary file.
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("x", 255))
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := writeFile(path, []byte("new"))
	if got, _ := os.ReadFile(path); err == nil || string(got) != "old" {
		t.Errorf("%v, %q", err, got)
	}
}
