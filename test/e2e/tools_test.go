//go:build e2e && machines

package e2e

import (
	"path"
	"strings"
	"testing"
	"time"
)

// TestDebiansTools has others judge what is installed: shells and readers of
// man pages.
func TestDebiansTools(t *testing.T) {
	t.Parallel()
	onFreshMachinesIn(t, onFirst, func(m machine) {
		if err := install(m.box); err != nil {
			m.t.Fatal(err)
		}
		m.debian("tmux", "bash-completion", "zsh", "fish", "mandoc", "man-db", "groff")
		n := m.user().unit(service{mode: "mixed"})
		n.start()

		// As people have it who use zsh: compinit is not on by itself.
		m.write("/root/.zshrc", "autoload -Uz compinit\ncompinit\n")
		for _, shell := range []string{"bash -l -i", "zsh -i", "fish -i"} {
			m.subtest(strings.Fields(shell)[0], func(m machine) {
				screen := func() string { return m.run("tmux", "capture-pane", "-p", "-t", "shell") }
				for typed, completed := range map[string]string{
					"expl":                      "oci-mainpid explain",
					"status " + n.user.name[:3]: "oci-mainpid status " + n.name,
					"status --format=prometh":   "oci-mainpid status --format=prometheus",
					"explain x.service --sv":    "oci-mainpid explain x.service --svg",
				} {
					m.run("tmux", "new-session", "-d", "-s", "shell", "-x", "120", "-y", "30", shell)
					m.await("the prompt of "+shell, soon, func() bool { return strings.Contains(screen(), m.box.Name) })
					m.run("tmux", "send-keys", "-t", "shell", "-l", "oci-mainpid "+typed)
					m.await(shell+" shows "+typed, soon, func() bool { return strings.Contains(screen(), typed) })
					m.run("tmux", "send-keys", "-t", "shell", "Tab")
					completes := func() bool { return strings.Contains(screen(), completed) }
					for end := time.Now().Add(soon); !completes(); time.Sleep(100 * time.Millisecond) {
						if time.Now().After(end) {
							m.t.Errorf("%s does not complete %q:\n%s", shell, typed, screen())
							break
						}
					}
					m.run("tmux", "kill-session", "-t", "shell")
				}
			})
		}

		for _, page := range strings.Fields(m.shell("echo /usr/share/man/man*/*mainpid*")) {
			m.subtest(path.Base(page), func(m machine) {
				for _, args := range [][]string{
					{"mandoc", "-Tlint", "-Wwarning", page},
					{"env", "MANWIDTH=80", "man", "--warnings=all", "--local-file", "--pager=cat", page},
				} {
					r := m.try(args...)
					for line := range strings.Lines(r.stderr) {
						m.t.Error(line)
					}
					if args[0] == "mandoc" {
						for line := range strings.Lines(r.stdout) {
							// A page from no release has no date.
							if !strings.Contains(line, `missing date, using ""`) {
								m.t.Error(line)
							}
						}
					} else if r.status != 0 {
						m.t.Error(r)
					}
				}
			})
		}
	})
}
