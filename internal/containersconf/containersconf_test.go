package containersconf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/internal/conmontest"
)

func TestMerge(t *testing.T) {
	for name, c := range map[string]struct {
		files []string
		hooks []string
		wrong string // part of the error
	}{
		"nothing":          {[]string{""}, []string{DefaultHooksDir}, ""},
		"comments":         {[]string{"[engine]\n#hooks_dir = [\"/x\"]\n"}, []string{DefaultHooksDir}, ""},
		"another table's":  {[]string{"[containers]\nhooks_dir = [\"/x\"]\n"}, []string{DefaultHooksDir}, ""},
		"one":              {[]string{"[engine]\nhooks_dir = [\"/x\"]\n"}, []string{"/x"}, ""},
		"dotted":           {[]string{"engine.hooks_dir = ['/x']"}, []string{"/x"}, ""},
		"quoted":           {[]string{"[ \"engine\" ]\n'hooks_dir'=[\"/\\u0078\", '''/y''',]"}, []string{"/x", "/y"}, ""},
		"several lines":    {[]string{"[engine] # e\nhooks_dir = [ # h\n  \"/x\", # ]\n\n  \"/y\"\n]\nruntime = \"crun\""}, []string{"/x", "/y"}, ""},
		"the later counts": {[]string{"[engine]\nhooks_dir = [\"/x\"]", "[engine]\nhooks_dir = [\"/y\"]"}, []string{"/y"}, ""},
		"appended":         {[]string{"[engine]\nhooks_dir = [\"/x\", {append=true}]"}, []string{DefaultHooksDir, "/x"}, ""},
		"appended before":  {[]string{"[engine]\nhooks_dir = [\"/x\", {append = true}]", "[engine]\nhooks_dir = [\"/y\"]"}, []string{DefaultHooksDir, "/x", "/y"}, ""},
		"not appended":     {[]string{"[engine]\nhooks_dir = [\"/x\", {append=false}]"}, []string{"/x"}, ""},
		"none":             {[]string{"[engine]\nhooks_dir = []"}, []string{}, ""},
		"what is around it": {[]string{`[containers]
default_ulimits = ["nofile=1:2"] # x
annotations = []
x = """
[engine]
hooks_dir = ["/no"]
""\" """
[engine.runtimes]
crun = [
  "/usr/bin/crun", # "
]
[[other]]
n = 1_000
d = 1979-05-27T07:32:00Z
[engine]
num_locks = 2048
t = { a.b = 1, c = [ "]" , 'it"s' ] }
hooks_dir = ["/x"]
`}, []string{"/x"}, ""},
		"a byte order mark":   {[]string{"\ufeff[engine]\nhooks_dir = [\"/x\"]\r\n"}, []string{"/x"}, ""},
		"unknown keys":        {[]string{"[engine]\nhooks_dirs = 1\nhooks_dir = [\"/x\"]\n[x.y]\nz = {}"}, []string{"/x"}, ""},
		"no list":             {[]string{"[engine]\n\nhooks_dir = \"/x\""}, nil, "engine.hooks_dir is not an array"},
		"a number in it":      {[]string{"[engine]\nhooks_dir = [1]"}, nil, "engine.hooks_dir has an element that is not a string"},
		"another attribute":   {[]string{"[engine]\nhooks_dir = [{prepend=true}]"}, nil, "not {append=true}"},
		"a runtime in a list": {[]string{"[engine]\nruntime = [\"crun\"]"}, nil, "runtime"},
		"no end":              {[]string{"[engine]\nhooks_dir = [\"/x\""}, nil, "line 2: "},
		"no end of a text":    {[]string{"[engine]\nx = \"a\nb\""}, nil, "line 2: "},
		"no value":            {[]string{"[engine]\nx\n"}, nil, "line 2: "},
		"twice":               {[]string{"[engine]\nhooks_dir = []\nhooks_dir = []"}, nil, "line 3: "},
		"two on a line":       {[]string{"a = 1 = 2\nb = \"c\" d\n"}, nil, "line 1: "},
		"deep":                {[]string{"x = " + strings.Repeat("[", 1001)}, nil, "has 1001 brackets, more than 1000"},
		"many":                {[]string{"[engine]\nhooks_dir = [" + strings.Repeat("'/x',", 33) + "]"}, nil, "engine.hooks_dir has 33 strings, more than 32"},
		"many in two files":   {[]string{"[engine]\nhooks_dir = [{append=true}," + strings.Repeat("'/x',", 16) + "]", "[engine]\nhooks_dir = [" + strings.Repeat("'/x',", 16) + "]"}, nil, "has 33 strings"},
		"a long string":       {[]string{"[engine]\nhooks_dir = ['" + strings.Repeat("x", 4097) + "']"}, nil, "engine.hooks_dir has a string of 4097 bytes, more than 4096"},
		"a long runtime":      {[]string{"[engine]\nruntime = '" + strings.Repeat("x", 4097) + "'"}, nil, "engine.runtime has 4097 bytes"},
	} {
		s := Settings{HooksDir: []string{DefaultHooksDir}}
		var err error
		for _, text := range c.files {
			if err = s.Merge("x", text); err != nil {
				break
			}
		}
		switch {
		case c.wrong == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
			t.Errorf("%s: %v", name, err)
		case c.wrong != "" && strings.Contains(err.Error(), "\n"):
			t.Errorf("%s: not one line: %v", name, err)
		case c.wrong == "" && !slices.Equal(s.HooksDir, c.hooks):
			t.Errorf("%s: %q", name, s.HooksDir)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for path, text := range map[string]string{
		"usr/c.conf":                                       "[engine]\nhooks_dir = [\"/usr\"]\nruntime = \"crun\"\n",
		"etc/c.conf.d/b.conf":                              "[engine]\nhooks_dir = [\"/b\", {append=true}]\n",
		"etc/c.conf.d/a.conf":                              "[engine]\nhooks_dir = [\"/a\"]\nconmon_path = [\"/c\"]\n",
		"etc/c.conf.d/not":                                 "]",
		"home/.config/containers/containers.conf":          "[engine]\nruntime = \"runc\"\n",
		"home/.config/containers/containers.conf.d/z.conf": "[engine]\nhooks_dir = [\"/z\"]\n",
		"secret": "[engine]\nhooks_dir = [\"/secret\"]\n",
	} {
		write(t, filepath.Join(dir, path), text)
	}
	home := filepath.Join(dir, "home")
	link := filepath.Join(home, ".config/containers/containers.conf.d/zz.conf")
	if err := os.Symlink(filepath.Join(dir, "secret"), link); err != nil {
		t.Fatal(err)
	}
	r := Reader{System: []string{dir + "/usr/c.conf", dir + "/etc/c.conf"}, Home: home, Config: home + "/.config"}
	s, problems := r.Read(t.Context())
	if want := []string{"/a", "/b", "/z"}; !slices.Equal(s.HooksDir, want) || s.HooksDirFrom != home+"/.config/containers/containers.conf.d/z.conf" {
		t.Errorf("%+v", s)
	}
	if s.Runtime != "runc" || !slices.Equal(s.ConmonPath, []string{"/c"}) {
		t.Errorf("%+v", s)
	}
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "zz.conf") {
		t.Errorf("%v", problems)
	}
	r.Home = ""
	if s, problems = r.Read(t.Context()); s.Runtime != "crun" || len(problems) != 0 {
		t.Errorf("%+v %v", s, problems)
	}
}

// TestReadAsPodman6: one file, and then the drop-ins of all, by their names.
func TestReadAsPodman6(t *testing.T) {
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	own := home + "/.config/containers/containers.conf"
	r := Reader{System: []string{dir + "/usr/containers.conf", dir + "/etc/containers.conf"}, Home: home, Config: home + "/.config", UID: 1000, Podman6: true}
	expect := func(what string, want ...string) {
		t.Helper()
		if s, problems := r.Read(t.Context()); !slices.Equal(s.HooksDir, want) || len(problems) != 0 {
			t.Errorf("%s: %q, not %q; %v", what, s.HooksDir, want, problems)
		}
	}
	set := func(path string, words ...string) {
		t.Helper()
		write(t, path, fmt.Sprintf("[engine]\nhooks_dir = [%q, {append=true}]\n", strings.Join(words, "")))
	}
	expect("nothing", DefaultHooksDir)
	set(r.System[0], "/usr")
	expect("the distribution's", DefaultHooksDir, "/usr")
	set(r.System[1], "/etc")
	expect("the administrator's takes its place", DefaultHooksDir, "/etc")
	set(own, "/own")
	expect("the user's takes the place of both", DefaultHooksDir, "/own")
	set(dir+"/usr/containers.conf.d/50.conf", "/usr50")
	set(dir+"/etc/containers.conf.d/40.conf", "/etc40")
	set(own+".d/45.conf", "/own45")
	expect("drop-ins by their names", DefaultHooksDir, "/own", "/etc40", "/own45", "/usr50")
	set(dir+"/etc/containers.conf.d/50.conf", "/etc50")
	set(dir+"/etc/containers.rootless.conf.d/45.conf", "/no")
	expect("of one name the last counts", DefaultHooksDir, "/own", "/etc40", "/own45", "/etc50")
	set(dir+"/etc/containers.rootless.conf.d/46.conf", "/rootless46")
	set(dir+"/etc/containers.rootless.conf.d/1000/47.conf", "/mine47")
	set(dir+"/etc/containers.rootless.conf.d/1001/48.conf", "/no")
	set(dir+"/etc/containers.rootful.conf.d/48.conf", "/no")
	expect("drop-ins for users, and for this one", DefaultHooksDir, "/own", "/etc40", "/own45", "/rootless46", "/mine47", "/etc50")
	link := dir + "/etc/containers.rootless.conf.d/46.conf"
	os.Remove(link)
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	expect("a link is a drop-in, too", DefaultHooksDir, "/own", "/etc40", "/own45", "/mine47", "/etc50")
}

func FuzzMerge(f *testing.F) {
	f.Add("[engine]\nhooks_dir = [\"/x\", {append=true}] # x\n[[a.'b']]\nc = \"\"\"d\\\n e\"\"\"\n")
	f.Add("a = {b = [1, 'x', \"\\u00e9\\e\"], c.d = 1979-05-27}\n")
	f.Fuzz(func(t *testing.T, text string) {
		var s Settings
		before := s
		err := s.Merge("x", text)
		switch {
		case err == nil && (len(s.HooksDir) > maxList || len(s.ConmonPath) > maxList || len(s.Runtime) > maxString):
			t.Errorf("%d directories, %d paths, a runtime of %d bytes", len(s.HooksDir), len(s.ConmonPath), len(s.Runtime))
		case err != nil && (len(err.Error()) > 400 || !reflect.DeepEqual(s, before)):
			t.Errorf("%v: %+v", err, s)
		}
	})
}

// fill repeats pieces up to size bytes.
func fill(size int, start, piece, end string) string {
	return start + strings.Repeat(piece, (size-len(start)-len(end))/len(piece)) + end
}

// TestCost: no text of the largest size makes Merge need much time or memory.
func TestCost(t *testing.T) {
	number := 0
	keys := func(start, format string) string {
		var b strings.Builder
		b.WriteString(start)
		for b.Len() < maxFile-len(format)-8 {
			number++
			fmt.Fprintf(&b, format, number)
		}
		return b.String()
	}
	for name, text := range map[string]string{
		"one dotted key":                fill(maxFile, "", "a.", "a = 1"),
		"the name of a table":           fill(maxFile, "[", "a.", "a]"),
		"a quoted key of many parts":    fill(maxFile, "", `"".`, "a = 1"),
		"a key as long as is allowed":   fill(4000, "", "a.", "a = 1"),
		"several of them":               keys("", fill(250, "", "a.", "b%d = 1\n")),
		"arrays in arrays":              fill(maxFile, "x = ", "[", ""),
		"arrays in arrays, in lines":    fill(maxFile, "x = ", "[\n", ""),
		"just as many as are allowed":   fill(maxNested+4, "x = ", "[", ""),
		"tables in tables":              fill(maxFile, "", "a={", ""),
		"a list of tables":              fill(maxFile, "", "[[a]]\n", ""),
		"strings":                       fill(maxFile, "[engine]\nhooks_dir = [", "'',", "]"),
		"many short keys":               keys("", "a%d=1\n"),
		"many dotted keys":              keys("", "a.b.c.d%d=1\n"),
		"many keys in a long table":     keys("["+strings.Repeat("a", maxFile/2)+"]\n", "a%d=1\n"),
		"many keys in a table":          keys("["+strings.Repeat("a", 200)+"]\n", "a%d=1\n"),
		"many keys in nested tables":    keys(strings.Repeat(strings.Repeat("a", 60)+"={\n", 60), "a%d=1,\n"),
		"one long string":               fill(maxFile, `x = "`, "x", `"`),
		"escapes":                       fill(maxFile, `x = "`, `\t`, `"`),
		"a string of continued lines":   fill(maxFile, `x = """`, "\\\n", `"""`),
		"a long line that is a comment": fill(maxFile, "#", "a.b=c[", ""),
		"no newline":                    fill(maxFile, "", "a", ""),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		var s Settings
		err := s.Merge("x", text)
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		allocated := (after.TotalAlloc - before.TotalAlloc) >> 10
		t.Logf("%-30s %7d bytes %5d ms %7d KiB allocated: %.90v", name, len(text), took.Milliseconds(), allocated, err)
		if took > conmontest.AtMost(10*time.Second) || allocated > 256<<10 {
			t.Errorf("%s: %v, %d KiB allocated", name, took, allocated)
		}
	}
}

// TestBounds: how large and how many the files are does not matter.
func TestBounds(t *testing.T) {
	const conf = "[engine]\nhooks_dir = ['/x']\n"
	for name, c := range map[string]struct {
		make  func(t *testing.T, file, dropins string)
		hooks string
		wrong string
	}{
		"980 KiB": {func(t *testing.T, file, _ string) {
			write(t, file, fill(980<<10, conf, "# x\n", ""))
		}, DefaultHooksDir, "containers.conf: larger than 256 KiB"},
		"256 KiB": {func(t *testing.T, file, _ string) {
			write(t, file, fill(256<<10, conf, "# x\n", ""))
		}, "/x", ""},
		"100 links to one file": {func(t *testing.T, file, dropins string) {
			write(t, dropins+"/0.conf", fill(256<<10, conf, "# x\n", ""))
			for i := range 99 {
				if err := os.Link(dropins+"/0.conf", fmt.Sprintf("%s/%d.conf", dropins, i+1)); err != nil {
					t.Fatal(err)
				}
			}
		}, "/x", "and later files were not read: together they are larger than 1024 KiB"},
		"100 files that are expensive each": {func(t *testing.T, file, dropins string) {
			for i := range 100 {
				write(t, fmt.Sprintf("%s/%02d.conf", dropins, i), conf+fill(3000, "", "a.", "a = 1\n"))
			}
		}, "/x", "01.conf and later files were not read: together they have too many keys"},
		"101 files": {func(t *testing.T, file, dropins string) {
			for i := range 101 {
				write(t, fmt.Sprintf("%s/%d.conf", dropins, i), conf)
			}
		}, DefaultHooksDir, "containers.conf.d: none of its files was read: there are more than 100"},
		"a directory of that name": {func(t *testing.T, file, _ string) {
			write(t, file+"/x", "")
		}, DefaultHooksDir, "is a directory"},
	} {
		for _, whose := range []string{"user's", "system's"} {
			t.Run(name+", the "+whose, func(t *testing.T) {
				home := t.TempDir()
				file := filepath.Join(home, "containers/containers.conf")
				c.make(t, file, file+".d")
				r := Reader{Home: home, Config: home}
				if whose == "system's" {
					r = Reader{System: []string{file}}
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				began := time.Now()
				s, problems := r.Read(t.Context())
				took := time.Since(began)
				runtime.ReadMemStats(&after)
				t.Logf("%d ms, %d KiB allocated: %v", took.Milliseconds(), (after.TotalAlloc-before.TotalAlloc)>>10, problems)
				if !slices.Equal(s.HooksDir, []string{c.hooks}) || took > conmontest.AtMost(5*time.Second) {
					t.Errorf("%q after %v", s.HooksDir, took)
				}
				if c.wrong == "" && len(problems) > 0 || c.wrong != "" && (len(problems) != 1 || !strings.Contains(problems[0].Error(), c.wrong)) {
					t.Errorf("%v", problems)
				}
			})
		}
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	home := t.TempDir()
	write(t, home+"/containers/containers.conf", "[engine]\nhooks_dir = ['/x']\n")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, problems := Reader{Home: home, Config: home}.Read(ctx)
	if len(problems) != 1 || !errors.Is(problems[0], context.Canceled) || !slices.Equal(s.HooksDir, []string{DefaultHooksDir}) {
		t.Errorf("%v %v", s, problems)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
