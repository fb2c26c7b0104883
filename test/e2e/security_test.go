//go:build e2e

package e2e

import (
	"regexp"
	"strconv"
	"testing"
)

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
			m.subtest(c.name, func(m machine) {
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
