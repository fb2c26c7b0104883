//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The programs as they are installed.
const (
	hookProgram   = "/usr/libexec/oci/hooks.d/oci-mainpid-hook"
	helperProgram = "/usr/libexec/oci-mainpid/notify-mainpid"
)

// TestHookByHand: whatever the hook is given, it changes nothing, and says in
// one line what is wrong with it.
func TestHookByHand(t *testing.T) {
	const state = `{"ociVersion": "1.0.2", "id": "web", "status": "running", "pid": %s, "bundle": "/"}`
	cases := []struct{ name, stdin, said string }{
		{"empty", "", `is empty`},
		{"truncated", `{"ociVersion": "1.0.2", "id"`, `.+`},
		{"huge, of nobody's container", `{"id": "` + strings.Repeat("x", 5<<20) + `"}`, ""},
		{"not JSON", "web is running\n", `.+`},
		{"not an object", "[1, 2]\n", `.+`},
		{"two objects", fmt.Sprintf(state+state, "4194303", "4194303"), `.+`},
		{"without a pid", `{"ociVersion": "1.0.2", "id": "web", "status": "running", "bundle": "/"}`, `with pid 0`},
		{"pid 0", fmt.Sprintf(state, "0"), `with pid 0`},
		{"pid 1", fmt.Sprintf(state, "1"), `with pid 1`},
		{"negative pid", fmt.Sprintf(state, "-5"), `with pid -5`},
		{"pid larger than an int", fmt.Sprintf(state, "99999999999999999999"), `.+`},
		{"pid that is text", fmt.Sprintf(state, `"12"`), `.+`},
		{"pid of a process that is gone", fmt.Sprintf(state, "4194303"), ""},
		{"pid of a process without a conmon", fmt.Sprintf(state, "2"), ""},
		{"container that is stopped", strings.Replace(fmt.Sprintf(state, "0"), "running", "stopped", 1), ""},
	}
	onStacks(t, func(m machine) {
		n := m.user().unit(service{mode: "mixed"})
		n.start()
		p, files := n.assertMainPIDIsConmon(), n.files()
		for _, c := range cases {
			m.share(c.name, func(m machine) {
				r := m.feed(c.stdin, hookProgram)
				r.stdout += r.stderr
				want, status := `^oci-mainpid-hook: container state on standard input: [^\n]*`+c.said+`[^\n]*$`, 1
				if c.said == "" {
					want, status = "^$", 0
				}
				if r.status != status || !regexp.MustCompile(want).MatchString(r.stdout) {
					m.t.Errorf("%v\nnot status %d with %q", r, status, want)
				}
			})
		}
		m.subtest("an argument", func(m machine) {
			if r := m.try(hookProgram, "--help"); r.status != 2 || !strings.HasPrefix(r.stderr, "oci-mainpid-hook: takes no arguments") {
				m.t.Error(r)
			}
		})
		if now := n.assertMainPIDIsConmon(); now != p {
			m.t.Errorf("the unit's processes were %v, are %v", p, now)
		}
		if now := n.files(); now != files {
			m.t.Errorf("the unit's files were\n%s\nare\n%s", files, now)
		}
	})
}

// TestHelperByHand: notify-mainpid that cannot reach systemd says so, with an
// exit status of its own and in the result file.
func TestHelperByHand(t *testing.T) {
	const dir, mainPIDFile, resultFile = "/run/oci-mainpid/byhand", "/run/oci-mainpid/byhand/mainpid", "/run/oci-mainpid/byhand/result"
	cases := []struct{ name, notifySocket, said string }{
		{"NOTIFY_SOCKET unset", "", `NOTIFY_SOCKET`},
		{"NOTIFY_SOCKET too long", "/run/" + strings.Repeat("x", 200), `NOTIFY_SOCKET`},
		{"NOTIFY_SOCKET relative", "run/notify", `NOTIFY_SOCKET`},
		{"NOTIFY_SOCKET without a file", "/run/nobody", `/run/nobody`},
		{"NOTIFY_SOCKET without a listener", "/srv/deserted", `/srv/deserted`},
	}
	onStacks(t, func(m machine) {
		u := m.user()
		u.systemctl("start", "user@"+u.uid)
		manager := u.property("user@"+u.uid, "MainPID")
		// A socket's file stays when its owner ends.
		if err := unix.Mknod(filepath.Join(m.box.Root(), "srv/deserted"), unix.S_IFSOCK|0o666, 0); err != nil {
			m.t.Fatal(err)
		}
		for _, c := range cases {
			m.share(c.name, func(m machine) {
				m.run(helperProgram, "--prepare", mainPIDFile, resultFile)
				m.t.Cleanup(func() { m.run(helperProgram, "--forget", mainPIDFile, resultFile) })
				m.write(mainPIDFile, manager+"\n")
				command := []string{"env", "INVOCATION_ID=0123456789abcdef0123456789abcdef"}
				if c.notifySocket != "" {
					command = append(command, "NOTIFY_SOCKET="+c.notifySocket)
				}
				r := m.try(append(command, helperProgram, "--user="+u.name, "--require=user", mainPIDFile, resultFile)...)
				if r.status != 4 || !regexp.MustCompile(`^notify-mainpid: `+mainPIDFile+`: [^\n]*`+c.said+`[^\n]*$`).MatchString(r.stderr) {
					m.t.Error(r)
				}
				if got := m.run("cat", resultFile); !regexp.MustCompile(`^error: .*` + c.said).MatchString(got) {
					m.t.Errorf("the result is %q", got)
				}
				if got := m.run("cat", mainPIDFile); got != manager {
					m.t.Errorf("the mainpid file is %q", got)
				}
			})
		}
		m.run("test", "!", "-e", dir)
	})
}
