package unitfile

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, text string
		want       []Assignment
	}{
		{"nothing", "", nil},
		{"only comments", "# a\n; b\n\n", nil},
		{"assignments", "[Service]\nType=exec\nUser = web \n",
			[]Assignment{{"Service", "Type", "exec"}, {"Service", "User", "web"}}},
		{"value with an equals sign", "[Service]\nEnvironment=A=B\n", []Assignment{{"Service", "Environment", "A=B"}}},
		{"carriage returns", "[Service]\r\nType=exec\r\n", []Assignment{{"Service", "Type", "exec"}}},
		{"a carriage return ends a line", "[Service]\rType=exec\r# User=web\rUser=db\r", []Assignment{{"Service", "Type", "exec"}, {"Service", "User", "db"}}},
		{"a newline and a carriage return are one line's end", "[Service]\n\rExecStart=a\\\n\rb\r\rType=exec", []Assignment{{"Service", "ExecStart", "a b"}, {"Service", "Type", "exec"}}},
		{"byte order mark", "\ufeff[Service]\nType=exec", []Assignment{{"Service", "Type", "exec"}}},
		{"indented lines", "  [Service]\n\tType=exec\n", []Assignment{{"Service", "Type", "exec"}}},
		{"continuation", "[Service]\nExecStart=/bin/a \\\n   b\\\n   c\nType=exec\n",
			[]Assignment{{"Service", "ExecStart", "/bin/a  b c"}, {"Service", "Type", "exec"}}},
		{"comment between continuation lines", "[Service]\nExecStart=/bin/a \\\n# not this\n; nor this\n b\n",
			[]Assignment{{"Service", "ExecStart", "/bin/a  b"}}},
		{"comment that ends with a backslash", "[Service]\n# a \\\nType=exec\n", []Assignment{{"Service", "Type", "exec"}}},
		{"escaped backslash at the end", "[Service]\nExecStart=/bin/a \\\\\nType=exec\n",
			[]Assignment{{"Service", "ExecStart", `/bin/a \\`}, {"Service", "Type", "exec"}}},
		{"continuation at the end of the file", "[Service]\nExecStart=/bin/a \\", []Assignment{{"Service", "ExecStart", "/bin/a"}}},
		{"continuation that only a comment follows", "[Service]\nExecStart=/bin/a \\\n# not this", []Assignment{{"Service", "ExecStart", "/bin/a"}}},
		{"empty line ends a continuation", "[Service]\nExecStart=/bin/a \\\n\nType=exec\n",
			[]Assignment{{"Service", "ExecStart", "/bin/a"}, {"Service", "Type", "exec"}}},
		{"lines that are nothing are ignored", "stray\n[Service]\nnonsense\nType=exec\n", []Assignment{{"Service", "Type", "exec"}}},
		{"assignment before any section", "Type=exec\n[Service]\nUser=web\n", []Assignment{{"Service", "User", "web"}}},
		{"line that is no UTF-8", "[Service]\nUser=\xff\nType=exec\n", []Assignment{{"Service", "Type", "exec"}}},
		{"empty value", "[Service]\nExecStart=\n", []Assignment{{"Service", "ExecStart", ""}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			u, err := Parse([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if len(u.Assignments)+len(test.want) > 0 && !reflect.DeepEqual(u.Assignments, test.want) {
				t.Errorf("got %q, want %q", u.Assignments, test.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"text":               "hello\nworld\n",
		"a program":          "\x7fELF\x00\x01",
		"an open section":    "[Service\nType=exec\n",
		"an assignment only": "A=B\n",
	} {
		t.Run(name, func(t *testing.T) {
			if u, err := Parse([]byte(text)); !errors.Is(err, ErrNotUnit) {
				t.Errorf("got %v, %v", u, err)
			}
		})
	}
}

func TestParseLongLine(t *testing.T) {
	arg := strings.Repeat("x", 100<<10)
	u, err := Parse([]byte("[Service]\nExecStart=/bin/a " + arg + "\n"))
	if err != nil || u.Get("Service", "ExecStart") != "/bin/a "+arg {
		t.Errorf("a line of 100 KiB: %v", err)
	}
	// Many lines in one take seconds if each copies those before.
	u, err = Parse([]byte("[Service]\nExecStart=" + strings.Repeat("a\\\n", 100_000)))
	if want := strings.TrimSpace(strings.Repeat("a ", 100_000)); err != nil || u.Get("Service", "ExecStart") != want {
		t.Errorf("100,000 lines in one: %v", err)
	}
}

func TestGetAndList(t *testing.T) {
	u, err := Parse([]byte("[A]\nX=1\nX=2\nX=\nX=3\nY=1\nY=\n[B]\nX=9\n[A]\nX=4\n[Empty]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := u.List("A", "X"); !reflect.DeepEqual(got, []string{"3", "4"}) {
		t.Errorf("List after a reset: %q", got)
	}
	if got := u.Get("A", "X"); got != "4" {
		t.Errorf("Get: %q", got)
	}
	if got := u.Get("A", "Y"); got != "" {
		t.Errorf("Get of what was reset: %q", got)
	}
	if got := u.List("A", "Z"); got != nil {
		t.Errorf("List of what is not there: %q", got)
	}
	if !u.Has("Empty") || u.Has("C") {
		t.Error("Has is wrong")
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, path("huge"), "[A]\n"+strings.Repeat("#", MaxSize))
	write(t, path("fits"), "[A]\n"+strings.Repeat("#", MaxSize-4))
	link(t, "/dev/null", path("masked"))
	link(t, "/dev/zero", path("zero"))
	for _, name := range []string{"huge", "fifo", "zero", "missing", "."} {
		if _, err := Load(path(name)); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v, want an error that names the file", name, err)
		}
	}
	if _, err := Load(path("huge")); !errors.Is(err, ErrTooLarge) {
		t.Errorf("huge: %v", err)
	}
	if _, err := Load(path("fits")); err != nil {
		t.Errorf("1 MiB: %v", err)
	}
	if u, err := Load(path("masked")); err != nil || len(u.Assignments) != 0 {
		t.Errorf("masked: %v, %v", u, err)
	}
}

func TestLoadWithDropins(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/web.service", "[Service]\nUser=a\nExecStart=/bin/a\n")
	write(t, dir+"/etc/20-b.conf", "[Service]\nUser=c\n")
	write(t, dir+"/etc/10-a.conf", "[Service]\nUser=b\n")
	write(t, dir+"/usr/20-b.conf", "[Service]\nUser=never\n")
	write(t, dir+"/usr/30-c.conf", "[Service]\nType=exec\n[Extra]\n")
	write(t, dir+"/etc/50-oci-mainpid.conf", "[Service]\nUser=ours\n")
	write(t, dir+"/etc/README", "[Service]\nUser=readme\n")
	u, err := LoadWithDropins(dir+"/web.service", []string{dir + "/etc", dir + "/usr", dir + "/none"}, "50-oci-mainpid.conf")
	if err != nil {
		t.Fatal(err)
	}
	if u.Get("Service", "User") != "c" || u.Get("Service", "Type") != "exec" || !u.Has("Extra") {
		t.Errorf("got %q", u.Assignments)
	}
}

// write makes a file with the directories above it.
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

func FuzzParse(f *testing.F) {
	f.Add([]byte("[Service]\nExecStart=/bin/a \\\n# c\n b\n"))
	f.Add([]byte("[A]\nB=\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := Parse(data)
		if err != nil {
			return
		}
		for _, a := range u.Assignments {
			if strings.ContainsAny(a.Section+a.Key+a.Value, "\n") || strings.Trim(a.Value, whitespace) != a.Value {
				t.Errorf("%q", a)
			}
		}
	})
}
