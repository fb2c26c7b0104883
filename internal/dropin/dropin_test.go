package dropin

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/unitfile"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var testPrograms = Programs{"/usr/bin/oci-mainpid", "/usr/libexec/oci-mainpid/notify-mainpid"}

func TestOrigin(t *testing.T) {
	for name, o := range map[string]Origin{
		"of the generator":  {Maker: Generator, Format: format, Source: "/etc/containers/systemd/web.container", User: "web", UID: 1000, Options: Options{Cgroup: Service}},
		"of generate":       {Maker: Generate, Format: format, Source: "web.service", User: "web", UID: 1000, Options: Options{Cgroup: Mixed}},
		"of a refusal":      {Maker: Generator, Format: format, Source: "/etc/a"},
		"of no file":        {Maker: Generate, Format: format, User: "web", UID: 1000},
		"with odd names":    {Maker: Generator, Format: format, Source: "/etc/a b\n[Service]\nUser=root\r", User: `DOM\web "x"`, UID: 7},
		"with no options":   {Maker: Generator, Format: format, Source: "/etc/data.volume", User: "web", UID: 1000},
		"with a percent":    {Maker: Generator, Format: format, Source: "/etc/100%.container", User: "web", UID: 1000},
		"with an empty end": {Maker: Generator, Format: format, Source: "/etc/a ", User: "web", UID: 1000},
	} {
		line := o.String()
		if strings.ContainsAny(line, "\n\r") || !strings.HasPrefix(line, "# ") {
			t.Errorf("%s: %q is not one line", name, line)
		}
		if got, err := ParseOrigin([]byte(line + "\n[Service]\n")); err != nil || got != o {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestParseOrigin(t *testing.T) {
	for name, c := range map[string]struct {
		line string
		want Origin
		err  string
	}{
		"before there were records":             {"# Made by oci-mainpid generate from /x y", Origin{Maker: Generate, Source: "/x y"}, ""},
		"the generator's, before there were":    {"# Made by oci-mainpid-generator from /x", Origin{Maker: Generator, Source: "/x"}, ""},
		"of a newer version":                    {"# Made by oci-mainpid-generator: format=99 user=web uid=1 Future=x source=/x", Origin{Maker: Generator, Format: 99, User: "web", UID: 1, Source: "/x"}, ""},
		"another maker":                         {"[Service]", Origin{}, ErrForeign.Error()},
		"nothing":                               {"", Origin{}, ErrForeign.Error()},
		"a maker that only begins like one":     {"# Made by hand", Origin{}, ErrForeign.Error()},
		"a number that is none":                 {"# Made by oci-mainpid generate: format=x", Origin{Maker: Generate}, `record "format=x"`},
		"an option's value that does not exist": {"# Made by oci-mainpid generate: format=3 Cgroup=x", Origin{Maker: Generate, Format: 3}, "Cgroup=x is none of"},
		"quotes that do not end":                {"# Made by oci-mainpid generate: format=\"2", Origin{Maker: Generate}, "unbalanced quotes"},
	} {
		got, err := ParseOrigin([]byte(c.line + "\nmore"))
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestOptions(t *testing.T) {
	var o Options
	if err := o.Set("Cgroup", "service"); err != nil || o.Cgroup != Service {
		t.Errorf("%v, %v", o, err)
	}
	if err := o.Set("Cgroup", "split"); err == nil || o.Cgroup != Service {
		t.Errorf("a value that does not exist: %v, %v", o, err)
	}
	if err := o.Set("User", "web"); !errors.Is(err, ErrNoOption) {
		t.Errorf("no option: %v", err)
	}
	if got := (Options{}).Or(o); got != o {
		t.Errorf("not chosen: %v", got)
	}
	if got := (Options{Cgroup: User}).Or(o); got.Cgroup != User {
		t.Errorf("chosen: %v", got)
	}
	if got := (Options{}).WithDefaults(); got.Cgroup != Mixed {
		t.Errorf("default: %v", got)
	}
}

func TestRefusal(t *testing.T) {
	reason := &os.PathError{Op: "read", Path: `/etc/100%/"$x"`, Err: os.ErrNotExist}
	origin := Origin{Maker: Generator, Source: "/etc/a\nb"}
	got := Refusal(`a\x2db.service`, origin, testPrograms, reason).Text()
	if *update {
		if err := os.WriteFile("testdata/refusal.conf", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile("testdata/refusal.conf"); err != nil || string(got) != string(want) {
		t.Errorf("%v:\n%s", err, got)
	}
	if text := string(Refusal("a@.service", origin, testPrograms, reason).Text()); !strings.Contains(text, " refuse --unit=%n ") {
		t.Errorf("of a template:\n%s", text)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	d := Refusal("web.service", Origin{Maker: Generate}, testPrograms, os.ErrNotExist)
	path := filepath.Join(dir, "new/web.service.d/50-oci-mainpid.conf")
	if d.Path(dir+"/new") != path {
		t.Fatal(d.Path(dir + "/new"))
	}
	for range 2 {
		if err := d.Write(dir + "/new"); err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(path)
		if err != nil || string(have) != string(d.Text()) {
			t.Errorf("%v: %s", err, have)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("%d files are left", len(entries))
	}
	if err := Check(path); err != nil {
		t.Errorf("our own: %v", err)
	}
	if err := os.WriteFile(path, []byte("[Service]\nUser=a\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Check(path); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), path) {
		t.Errorf("a stranger's: %v", err)
	}
	if err := Check(dir + "/none"); err != nil {
		t.Errorf("none: %v", err)
	}
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(dir + "/file"); err == nil {
		t.Error("a file as the directory")
	}
	// What stands there stays whole where the new text cannot be written.
	if err := os.Mkdir(path+".new", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(dir + "/new"); err == nil {
		t.Error("written all the same")
	}
	if have, err := os.ReadFile(path); err != nil || string(have) != "[Service]\nUser=a\n" {
		t.Errorf("%v: %s", err, have)
	}
}

// FuzzDropin checks that the settings of a unit, written into a drop-in, read
// back the same.
func FuzzDropin(f *testing.F) {
	f.Add([]byte("[Unit]\nAfter=a \\\n# c\n b\n[Service]\nExecStart=\nExecStart=-/bin/a 'b c' \\x20\nEnvironment=\"A=\\\\\"\n"))
	f.Add([]byte("[Service]\nA=b\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := unitfile.Parse(data)
		if err != nil {
			return
		}
		d := &Dropin{Unit: "web.service"}
		var want []unitfile.Assignment
		for _, section := range []string{"Unit", "Service"} {
			for _, a := range u.Assignments {
				switch {
				case a.Section != section:
					continue
				case section == "Unit":
					d.SetUnit(a.Key, a.Value)
				default:
					d.Set(a.Key, a.Value)
				}
				want = append(want, a)
			}
		}
		got, err := unitfile.Parse(d.Text())
		if err != nil {
			t.Fatalf("%s\n%v", d.Text(), err)
		}
		if !slices.Equal(got.Assignments, want) {
			t.Errorf("%q became %q", want, got.Assignments)
		}
	})
}

// FuzzParseOrigin checks that a record that can be read is written the same.
func FuzzParseOrigin(f *testing.F) {
	f.Add("# Made by oci-mainpid generate: format=3 user=web uid=1000 Cgroup=mixed source=/x")
	f.Add("# Made by oci-mainpid-generator from /x\n")
	f.Add("# Made by oci-mainpid generate: format=3 user=w\x00")
	f.Fuzz(func(t *testing.T, line string) {
		o, err := ParseOrigin([]byte(line))
		if err != nil || !o.Current() || o.User == "" {
			return
		}
		if again, err := ParseOrigin([]byte(o.String())); err != nil || again != o {
			t.Errorf("%q: %+v became %+v, %v", line, o, again, err)
		}
	})
}

func TestReadyOption(t *testing.T) {
	var o Options
	for _, value := range []string{"multi-user.target", "a.target,b@1.target", " c.target\ta.target "} {
		if err := o.Set("Ready", value); err != nil {
			t.Fatal(err)
		}
	}
	if o.Ready != "a.target,b@1.target,c.target,multi-user.target" {
		t.Errorf("got %q", o.Ready)
	}
	origin := Origin{Maker: Generator, Format: format, User: "web", UID: 1000, Options: o}
	if got, err := ParseOrigin([]byte(origin.String() + "\n")); err != nil || got != origin {
		t.Errorf("%q reads back as %+v, %v", origin, got, err)
	}
	for _, bad := range []string{"multi-user", "multi-user.service", "a b.target", ".target", "a@.target", "../a.target", strings.Repeat("a.target ", maxTargets)} {
		if err := o.Set("Ready", bad); err == nil {
			t.Errorf("%q is taken: %q", bad, o.Ready)
		}
	}
	if err := o.Set("Ready", ""); err != nil || o.Ready != "" {
		t.Errorf("an empty value leaves %q, %v", o.Ready, err)
	}
}
