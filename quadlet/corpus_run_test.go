//go:build e2e

package quadlet

// These tests need Quadlet and systemd-analyze: test/e2e runs them on its
// machines.

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/unitfile"
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
		write(t, filepath.Join(dir, name), "[Container]\nImage=docker.io/library/alpine\n[Service]\nUser=web\n[X-MainPID]\nCgroup=user\n")
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

// planCorpus runs Quadlet over the directory and returns what it makes, and what
// our generator would do.
func planCorpus(t *testing.T, quadlet, dir string, programs dropin.Programs) (services []Converted, plan *Plan, refused int) {
	t.Helper()
	t.Setenv("QUADLET_UNIT_DIRS", dir)
	services, messages, err := Convert(context.Background(), quadlet, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := NewPlanner(dropin.Generator)
	p.Programs = programs
	p.Accounts = testAccounts(t)
	p.UnitDirs = nil
	// Quadlet writes some options in another order each time.
	p.Convert = func(context.Context, string, []string) ([]Converted, []string, error) { return services, messages, nil }
	plan = p.Quadlet(context.Background())
	for _, note := range slices.Concat(plan.Warnings, plan.Errors) {
		t.Log(note)
	}
	for _, d := range plan.Decisions {
		t.Logf("%s: %v %q", d.Service, d.Err, d.Warnings)
	}
	for _, m := range messages {
		if _, _, ok := complaint(m); ok {
			refused++
			t.Log("Quadlet:", m)
		}
	}
	t.Logf("%d files, of which Quadlet refuses %d; %d services, %d decisions", len(corpusFiles(t, dir)), refused, len(services), len(plan.Decisions))
	return services, plan, refused
}

// TestCorpus compares what Quadlet makes of the corpus with what becomes of it
// with our drop-ins: the command lines differ only where they must.
func TestCorpus(t *testing.T) {
	quadlet := needQuadlet(t)
	dir := copyCorpus(t)
	services, plan, refused := planCorpus(t, quadlet, dir, testPrograms)
	if len(services)+refused < 150 {
		t.Errorf("%d services only", len(services))
	}
	files := corpusFiles(t, dir)
	roots := []string{"root.container", "root.volume", "root.kube", "root.pod", "root-in-pod.container", "conflict.volume", "missing-user.volume"}
	for _, s := range services {
		t.Run(s.File(), func(t *testing.T) {
			d := plan.Of(s.Name)
			switch {
			case unitfile.CheckServiceName(s.Name) != nil || slices.Contains(roots, s.File()):
				if d != nil {
					t.Errorf("a drop-in for what is root's, or no unit:\n%s", d.Dropin.Text())
				}
				return
			case s.File() == "notify-healthy-user.container" && !strings.Contains(s.Unit.Get("Service", "ExecStart"), "--sdnotify=healthy"):
				t.Skip("this Quadlet does not know Notify=healthy")
			case d == nil:
				t.Fatal("is left alone")
			case strings.HasPrefix(files[s.File()], "# Refused"):
				if d.Err == nil || !strings.Contains(string(d.Dropin.Text()), "/oci-mainpid refuse --unit=") {
					t.Errorf("is not refused:\n%s", d.Dropin.Text())
				}
				return
			case d.Err != nil:
				t.Fatalf("is refused: %v", d.Err)
			}
			text, err := unitfile.Parse(d.Dropin.Text())
			if err != nil {
				t.Fatal(err)
			}
			compare(t, s.Unit, text, d.Options.Cgroup)
		})
	}
}

// compare checks what the unit is with the drop-in.
func compare(t *testing.T, unit, ours *unitfile.File, cgroup dropin.Cgroup) {
	t.Helper()
	runtimeDir := strings.TrimPrefix(ours.List("Service", "Environment")[0], "XDG_RUNTIME_DIR=")
	merged := &unitfile.File{}
	merged.Merge(unit)
	merged.Merge(ours)
	for _, key := range dropin.ExecKeys {
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
			if !slices.Contains(want[i], "--log-driver") {
				got[i] = slices.DeleteFunc(got[i], func(word string) bool { return word == "--log-driver=journald" })
			}
			if !slices.Equal(got[i], want[i]) {
				t.Errorf("%s=\n%q became\n%q", key, want[i], got[i])
			}
		}
		for _, line := range merged.List("Service", key) {
			checkCgroups(t, line, cgroup)
		}
	}
	for _, a := range ours.Assignments {
		if a.Section == "Service" && strings.Contains(a.Value, "%t") {
			t.Errorf("%s=%s still names the system's runtime directory", a.Key, a.Value)
		}
	}
}

// normalized returns the line's words without what may differ.
func normalized(t *testing.T, line, runtimeDir string) []string {
	t.Helper()
	commands, err := unitfile.ParseCommands(line)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	var words []string
	for _, c := range commands {
		p, isPodman := podmancmd.Parse(c.Path.Text, c.Arguments())
		words = append(words, c.Prefix+c.Path.Text)
		for _, a := range c.Args {
			text := a.Text
			if isPodman || filepath.Base(c.Path.Text) == "rm" {
				text = strings.NewReplacer("%t/", runtimeDir+"/", "%h", "/home/web", "%U", "1000", "%G", "1000").Replace(text)
			}
			for _, o := range p.All("cgroups") {
				if o.At == a {
					text = "CGROUPS"
				}
			}
			if !strings.HasPrefix(text, "--infra-conmon-pidfile=") { // for PIDFile=, which is gone
				words = append(words, text)
			}
		}
	}
	return words
}

// checkCgroups checks the mode that podman is told.
func checkCgroups(t *testing.T, line string, cgroup dropin.Cgroup) {
	t.Helper()
	commands, err := unitfile.ParseCommands(line)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		p, _ := podmancmd.Parse(c.Path.Text, c.Arguments())
		value, given := p.Last("cgroups")
		if !given || value == "disabled" {
			continue
		}
		if (value == "split") != (cgroup == dropin.Service) {
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
	services, plan, _ := planCorpus(t, quadlet, dir, dropin.Programs{OCIMainPID: self, NotifyMainPID: self})
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
			return unitfile.CheckServiceName(filepath.Base(path)) != nil || strings.Contains(path, ":")
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
		refusing, serving := plan.Dropins()
		for _, d := range slices.Concat(refusing, serving) {
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
