//go:build e2e

package quadlet

// These tests need Quadlet and systemd-analyze: test/e2e runs them on its
// machines.

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// copyCorpus copies the corpus to a new directory and adds the files whose names
// not every archive can hold.
func copyCorpus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/corpus")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{`escaped-\x2dname.container`, "colon:and_underscore.container", "percent%.container"} {
		write(t, filepath.Join(dir, name), "[Container]\nImage=docker.io/library/alpine\n[X-MainPID]\nUser=web\nCgroup=user\n")
	}
	link(t, "linked@.container", dir+"/linked@one.container")
	link(t, "linked@.container", dir+"/linked@two.container")
	return dir
}

// needQuadlet returns the path of Quadlet's generator.
func needQuadlet(t *testing.T) string {
	t.Helper()
	path, masked, err := FindQuadlet()
	if masked {
		t.Fatal("Quadlet's generator is masked here")
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// testGenerator runs Quadlet and our generator over the directory.
func testGenerator(t *testing.T, quadlet, dir string, programs Programs) (services []Converted, dropins map[string]*Dropin, refused int) {
	t.Helper()
	t.Setenv("QUADLET_UNIT_DIRS", dir)
	services, messages, err := Convert(quadlet, nil)
	if err != nil {
		t.Fatal(err)
	}
	g := NewGenerator(programs, func(level Level, service, text string) { t.Logf("<%d>%s: %s", level, service, text) })
	g.Accounts = testAccounts()
	g.UnitDirs = nil
	// Quadlet writes some options in another order each time.
	g.Convert = func(string, []string) ([]Converted, []string, error) { return services, messages, nil }
	dropins = map[string]*Dropin{}
	for _, d := range g.Dropins() {
		dropins[d.Unit] = d
	}
	for _, m := range messages {
		if _, _, ok := complaint(m); ok {
			refused++
			t.Log("Quadlet:", m)
		}
	}
	t.Logf("%d files, of which Quadlet refuses %d; %d services, %d drop-ins", len(corpusFiles(t, dir)), refused, len(services), len(dropins))
	return services, dropins, refused
}

// TestCorpus compares what Quadlet makes of the corpus with what becomes of it
// with our drop-ins: the command lines differ only where they must.
func TestCorpus(t *testing.T) {
	quadlet := needQuadlet(t)
	dir := copyCorpus(t)
	services, dropins, refused := testGenerator(t, quadlet, dir, testPrograms)
	if len(services)+refused < 150 {
		t.Errorf("%d services only", len(services))
	}
	files := corpusFiles(t, dir)
	family := NewFamily(services, testAccounts())
	family.Settle()
	for _, s := range services {
		t.Run(s.File(), func(t *testing.T) {
			d := dropins[s.Name]
			served := d != nil && strings.Contains(string(d.Text()), "\nUser=web\n") || d != nil && strings.Contains(string(d.Text()), "\nUser=db\n")
			if CheckServiceName(s.Name) != nil {
				if d != nil {
					t.Error("a drop-in for what is no unit")
				}
				return
			}
			switch text := files[s.File()]; {
			case slices.Contains([]string{"root.container", "root.volume", "root.kube", "root.pod", "root-in-pod.container"}, s.File()):
				if d != nil {
					t.Errorf("a drop-in for root's:\n%s", d.Text())
				}
				return
			case s.File() == "notify-healthy-user.container" && !strings.Contains(s.Unit.Get("Service", "ExecStart"), "--sdnotify=healthy"):
				t.Skip("this Quadlet does not know Notify=healthy")
			case strings.HasPrefix(text, "# Refused") || slices.Contains([]string{"conflict.volume", "conflict-two.container", "missing-user.volume"}, s.File()):
				if d == nil || served || !strings.Contains(string(d.Text()), "/oci-mainpid refuse --unit=") {
					t.Errorf("is not refused: %v", d)
				}
				return
			case !served && refused > 0 && !strings.Contains(text, "["+section+"]"):
				t.Skip("what names it, Quadlet refuses")
			case !served:
				t.Fatalf("is not served: %v", d)
			}
			dropin, err := Parse(d.Text())
			if err != nil {
				t.Fatal(err)
			}
			compare(t, s.Unit, dropin, family.File(s.File()).Cgroup)
		})
	}
}

// compare checks what the unit is with the drop-in.
func compare(t *testing.T, unit, dropin *Unit, cgroup Cgroup) {
	t.Helper()
	runtimeDir := strings.TrimPrefix(dropin.List("Service", "Environment")[0], "XDG_RUNTIME_DIR=")
	merged := &Unit{}
	merged.Merge(unit)
	merged.Merge(dropin)
	for _, key := range execKeys {
		var want, got [][]string
		for _, line := range unit.List("Service", key) {
			want = append(want, normalized(t, line, runtimeDir))
		}
		for _, line := range merged.List("Service", key) {
			line = strings.Replace(line, "/usr/bin/env -u OCI_MAINPID_FILE -u OCI_MAINPID_RESULT ", "", 1)
			line = strings.Replace(line, "/usr/bin/systemd-run --user --scope --quiet ", "", 1)
			if !strings.Contains(line, testPrograms.NotifyMainPID) {
				got = append(got, normalized(t, line, runtimeDir))
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s= has %d lines, had %d: %q", key, len(got), len(want), merged.List("Service", key))
			continue
		}
		for i := range want {
			if !slices.Equal(got[i], want[i]) {
				t.Errorf("%s=\n%q became\n%q", key, want[i], got[i])
			}
		}
		for _, line := range merged.List("Service", key) {
			checkCgroups(t, line, cgroup)
		}
	}
	for _, a := range dropin.Assignments {
		if a.Section == "Service" && strings.Contains(a.Value, "%t") {
			t.Errorf("%s=%s still names the system's runtime directory", a.Key, a.Value)
		}
	}
}

// normalized returns the line's words without what may differ.
func normalized(t *testing.T, line, runtimeDir string) []string {
	t.Helper()
	commands, err := parseExec(line)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	var words []string
	for _, c := range commands {
		p, isPodman := c.podman()
		words = append(words, c.prefix+c.path.text)
		for _, a := range c.args {
			text := a.text
			if isPodman || filepath.Base(c.path.text) == "rm" {
				text = strings.ReplaceAll(text, "%t/", runtimeDir+"/")
			}
			for _, o := range p.options {
				if o.name == "cgroups" && o.at == a {
					text = "CGROUPS"
				}
			}
			words = append(words, text)
		}
	}
	return words
}

// checkCgroups checks the mode that podman is told.
func checkCgroups(t *testing.T, line string, cgroup Cgroup) {
	t.Helper()
	commands, err := parseExec(line)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		p, _ := c.podman()
		value, given := p.last("cgroups")
		if !given || value == "disabled" {
			continue
		}
		if (value == "split") != (cgroup == Service) {
			t.Errorf("Cgroup=%s, and podman gets --cgroups=%s", cgroup, value)
		}
	}
}

// TestCorpusVerify has systemd load the units: the drop-ins bring no complaint
// that it does not have without them.
func TestCorpusVerify(t *testing.T) {
	quadlet := needQuadlet(t)
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal(err)
	}
	dir := copyCorpus(t)
	self, err := os.Executable() // systemd looks whether the programs are there
	if err != nil {
		t.Fatal(err)
	}
	services, dropins, _ := testGenerator(t, quadlet, dir, Programs{self, self})
	write(t, dir+"/complained-about.container", "[Container]\nImage=localhost/x\n[Service]\nNoSuchSetting=1\n")
	verify := func(name string, write func(dir string)) (complaints map[string]bool) {
		out := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(out, 0o755); err != nil {
			t.Fatal(err)
		}
		// It exits with 1 for the files that it refuses.
		if text, err := exec.Command(quadlet, "-no-kmsg-log", out).CombinedOutput(); err != nil && !strings.Contains(string(text), "converting") {
			t.Logf("%s: %v: %s", quadlet, err, text)
		}
		write(out)
		units, err := filepath.Glob(out + "/*.service")
		units = slices.DeleteFunc(units, func(path string) bool {
			// To systemd-analyze verify a colon is followed by an alias.
			return CheckServiceName(filepath.Base(path)) != nil || strings.Contains(path, ":")
		})
		if err != nil || len(units) < len(services)-5 {
			t.Fatalf("%d units of %d services, %v", len(units), len(services), err)
		}
		cmd := exec.Command(analyze, append([]string{"--man=no", "--recursive-errors=no", "verify"}, units...)...)
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+out+":", "SYSTEMD_LOG_LEVEL=warning")
		text, _ := cmd.CombinedOutput()
		complaints = map[string]bool{}
		for line := range strings.Lines(string(text)) {
			complaints[strings.ReplaceAll(strings.TrimSpace(line), out, "")] = true
		}
		t.Logf("%s: %d units, %d complaints", name, len(units), len(complaints))
		return complaints
	}
	before := verify("without", func(string) {})
	if len(before) == 0 {
		t.Error("no complaint about NoSuchSetting=")
	}
	after := verify("with", func(dir string) {
		for _, d := range dropins {
			if err := d.Write(dir); err != nil {
				t.Fatal(err)
			}
		}
	})
	// The same complaint about a line that the drop-in gives again.
	place := regexp.MustCompile(`^\S*?(/[^:]*)?:[0-9]+: `)
	known := map[string]bool{}
	for line := range before {
		known[place.ReplaceAllString(line, "")] = true
	}
	for line := range after {
		if !known[place.ReplaceAllString(line, "")] {
			t.Errorf("new: %s", line)
		}
	}
}
