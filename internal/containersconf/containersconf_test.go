package containersconf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
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
		"a byte order mark": {[]string{"\ufeff[engine]\nhooks_dir = [\"/x\"]\r\n"}, []string{"/x"}, ""},
		"no list":           {[]string{"[engine]\n\nhooks_dir = \"/x\""}, nil, "line 3: engine.hooks_dir is not an array"},
		"a number in it":    {[]string{"[engine]\nhooks_dir = [1]"}, nil, "not a string"},
		"no end":            {[]string{"[engine]\nhooks_dir = [\"/x\""}, nil, "does not end"},
		"no end of a text":  {[]string{"[engine]\nx = \"a\nb\""}, nil, "line 2: a string does not end"},
		"no value":          {[]string{"[engine]\nx\n"}, nil, "no value"},
		"deep":              {[]string{"x = " + strings.Repeat("[", 1000)}, nil, "too deep"},
		"two on a line":     {[]string{"a = 1 = 2\nb = \"c\" d\n"}, nil, "unexpected"},
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
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	home := filepath.Join(dir, "home")
	link := filepath.Join(home, ".config/containers/containers.conf.d/zz.conf")
	if err := os.Symlink(filepath.Join(dir, "secret"), link); err != nil {
		t.Fatal(err)
	}
	r := Reader{System: []string{dir + "/usr/c.conf", dir + "/etc/c.conf"}, Home: home, Config: home + "/.config"}
	s, problems := r.Read()
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
	if s, problems = r.Read(); s.Runtime != "crun" || len(problems) != 0 {
		t.Errorf("%+v %v", s, problems)
	}
}

func FuzzMerge(f *testing.F) {
	f.Add("[engine]\nhooks_dir = [\"/x\", {append=true}] # x\n[[a.'b']]\nc = \"\"\"d\\\n e\"\"\"\n")
	f.Add("a = {b = [1, 'x', \"\\u00e9\\e\"], c.d = 1979-05-27}\n")
	f.Fuzz(func(t *testing.T, text string) {
		var s Settings
		if err := s.Merge("x", text); err != nil && !strings.HasPrefix(err.Error(), "line ") {
			t.Error(err)
		}
	})
}
