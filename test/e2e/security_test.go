//go:build e2e

package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestSecurityPage: each test, group of TestAttack and case that SECURITY.md has in
// the last column of its table is there.
func TestSecurityPage(t *testing.T) {
	text, err := page("SECURITY.md").text()
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	err = filepath.WalkDir(checkout, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		source.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	look := func(row, what, pattern, name string) {
		found++
		if !strings.Contains(source.String(), strings.ReplaceAll(pattern, "NAME", name)) {
			t.Errorf("there is no %s %q: %s", what, name, row)
		}
	}
	for row := range strings.Lines(text) {
		cells := strings.Split(row, " | ")
		if len(cells) != 4 {
			continue
		}
		for _, m := range regexp.MustCompile(`\b(Test\w+)(?:/([a-z]+(?: [a-zA-Z]+)*))?`).FindAllStringSubmatch(cells[3], -1) {
			look(row, "test", "func NAME(t *testing.T)", m[1])
			if m[2] != "" {
				look(row, "group of cases", `{"NAME", battle.`, m[2])
			}
		}
		for _, m := range regexp.MustCompile(`\*([^*]+)\*`).FindAllStringSubmatch(cells[3], -1) {
			look(row, "case", `"NAME`, m[1])
		}
	}
	if found < 100 {
		t.Errorf("only %d names in the table", found)
	}
}

// TestExposure: systemd-analyze security calls no unit worse than it was without
// the project, when root's podman ran it.
func TestExposure(t *testing.T) {
	onStacks(t, func(m machine) {
		u := m.user()
		kube := "[Kube]\nYaml=pod.yaml\n"
		u.quadlets(map[string]string{
			"pod.yaml":               "apiVersion: v1\nkind: Pod\nmetadata:\n  name: NAME\n",
			"NAME-a.container":       sleeper,
			"NAME-b.pod":             "[Pod]\n",
			"NAME-c.kube":            kube,
			"NAME-mixed.container":   sleeper + owned,
			"NAME-service.container": sleeper + owned + inMode("service"),
			"NAME-user.container":    sleeper + owned + inMode("user"),
			"NAME-e.pod":             "[Pod]\n" + owned,
			"NAME-f.kube":            kube + owned,
		})
		for _, c := range []struct{ name, was, is string }{
			{"a container, Cgroup mixed", "-a", "-mixed"},
			{"a container, Cgroup service", "-a", "-service"},
			{"a container, Cgroup user", "-a", "-user"},
			{"a pod", "-b-pod", "-e-pod"},
			{"a kube unit", "-c", "-f"},
		} {
			m.share(c.name, func(m machine) {
				was, is := m.exposure(u.name+c.was), m.exposure(u.name+c.is)
				m.t.Logf("%v, was %v", is, was)
				if is > was {
					m.t.Errorf("the exposure is %v, and was %v", is, was)
				}
			})
		}
	})
}

var overall = regexp.MustCompile(`Overall exposure level for \S+: (\d+\.\d+)`)

// exposure is that of a unit, from 0 to 10.
func (m machine) exposure(name string) float64 {
	m.t.Helper()
	report := m.run("systemd-analyze", "security", "--no-pager", name+".service")
	found := overall.FindStringSubmatch(report)
	if found == nil {
		m.t.Fatalf("no exposure level in\n%s", report)
	}
	level, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		m.t.Fatal(err)
	}
	return level
}
