//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestOutput: what a container writes is in the journal of its unit, though the user
// may not read the journal, unless the author of the unit chose another place.
func TestOutput(t *testing.T) {
	const writing = "[Container]\nImage=" + imageName + "\nExec=sh -c 'echo hello; trap \"exit 0\" TERM; sleep 1000 & wait'\n"
	onStacks(t, func(m machine) {
		u := m.user()
		u.quadlets(map[string]string{
			"NAME-mixed.container":   writing + owned,
			"NAME-service.container": writing + owned + inMode("service"),
			"NAME-user.container":    writing + owned + inMode("user"),
			"NAME-file.container":    writing + "LogDriver=k8s-file\n" + owned,
		})
		for _, c := range []struct {
			name           string
			inUnit, inFile bool
		}{{"mixed", true, false}, {"service", true, false}, {"user", false, false}, {"file", false, true}} {
			m.subtest(c.name, func(m machine) {
				n := u.in(m).quadletUnit("NAME-"+c.name+".service", "systemd-NAME-"+c.name)
				n.start()
				hello := func(text string) bool { return strings.Contains(text, "hello") }
				if c.inFile {
					m.await("podman logs has the output", soon, func() bool { return hello(n.podman("logs", n.container)) })
				} else {
					m.await("the journal has the output", soon, func() bool {
						return hello(m.run("journalctl", "--no-pager", "--output=cat", "CONTAINER_NAME="+n.container, "_COMM=conmon"))
					})
				}
				if got := hello(n.journal(n.name)); got != c.inUnit {
					m.t.Errorf("journalctl -u %s has the output: %t, want %t", n.name, got, c.inUnit)
				}
			})
		}
	})
}

// TestEndsAtOnce: a container that ends before its main process is verified ends its
// unit as it ended itself.
func TestEndsAtOnce(t *testing.T) {
	onStacks(t, func(m machine) {
		for _, mode := range []string{"mixed", "service", "user"} {
			for _, runtime := range []string{"crun", "runc"} {
				m.subtest(mode+" with "+runtime, func(m machine) {
					u := m.user()
					files := map[string]string{}
					for _, status := range []int{0, 3} {
						files[fmt.Sprintf("NAME-%d.container", status)] = fmt.Sprintf("[Container]\nImage=%s\nExec=sh -c 'exit %d'\nGlobalArgs=--runtime=%s\n", imageName, status, runtime) + owned + inMode(mode)
					}
					u.quadlets(files)
					for range 5 {
						success, failure := u.quadletUnit("NAME-0.service", "systemd-NAME-0"), u.quadletUnit("NAME-3.service", "systemd-NAME-3")
						success.start()
						success.awaitState("inactive")
						success.assertEnded("inactive", "success", "0")
						u.try("systemctl", "start", failure.name)
						failure.awaitState("failed")
						failure.assertEnded("failed", "exit-code", "3")
						u.systemctl("reset-failed", failure.name)
					}
				})
			}
		}
	})
}
