//go:build e2e

package e2e

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"oci-mainpid-hook/test/sandbox"
)

var update = flag.Bool("update", false, "write testdata anew, from what was seen")

// TestReadme does on a fresh machine what README.md says and nothing else: from
// the packages to a web server that answers, by either way. What the screen
// shows is testdata/readme-SUITE.txt. Not in the README are
//   - a mirror of docker.io, see dockerHub, since no machine reaches the real one;
//   - on Debian 13 the checkout, copied rather than cloned, and the modules that
//     the host has downloaded, by GOPROXY=; on testing it is installed beforehand;
//   - the answer to apt's question;
//   - between the two ways, which nobody goes both, the removal of the first.
func TestReadme(t *testing.T) {
	t.Parallel()
	const readme page = "README.md"
	blocks, err := readme.blocks()
	if err != nil {
		t.Fatal(err)
	}
	under := func(heading string) (under []block) {
		for _, b := range blocks {
			if b.heading == heading && b.language != "" {
				under = append(under, b)
			}
		}
		if len(under) == 0 {
			t.Fatalf("%s has no block under %q", readme, heading)
		}
		return under
	}
	install, quadlet, own := under("Install"), under("With Quadlet"), under("With a unit of your own")
	text, err := readme.text()
	if err != nil {
		t.Fatal(err)
	}
	debian := regexp.MustCompile("(?m)^\\| Debian .*`(apt install .*)`").FindStringSubmatch(text)
	if debian == nil {
		t.Fatalf("%s has no row of Debian's packages", readme)
	}

	onFreshMachinesIn(t, onFirst, func(m machine) {
		m.dockerHub()
		r := &reader{machine: m}
		inCheckout := func(blocks ...block) {
			r.dir, r.environment = "/root/oci-mainpid-hook", []string{"GOPROXY=file:///srv/modules"}
			for _, b := range blocks {
				r.read(b, nil)
			}
			r.dir, r.environment = "/root", nil
		}
		r.open()
		// To compile once is enough: the README's row is of Debian 13.
		compile := m.box.Suite == sandbox.Trixie
		if compile {
			m.checkOut("/root/oci-mainpid-hook")
			m.must(m.online("", "apt-get", "--quiet", "update")) // a fresh machine has no index of packages
			r.record(debian[1:], debian[1]+"\n"+m.must(m.online("y\n", "env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", debian[1])))
			inCheckout(install[0])
		} else if err := runMake("install", m.box.Root()); err != nil {
			m.t.Fatal(err)
		}

		serves := func(r *reader) {
			t.Helper()
			if got := r.run("curl", "--silent", "--fail", "--retry", "5", "--retry-all-errors", "http://localhost:8080/"); !strings.Contains(got, "Caddy") {
				r.t.Errorf("the web server says %.200q", got)
			}
			web := r.existingUser("web")
			container := "systemd-web"
			if r.try(web.as("podman", "container", "exists", container)...).status != 0 {
				container = "web"
			}
			unit{web, "web.service", container}.assertMainPIDIsConmon()
		}
		for _, b := range quadlet {
			r.read(b, nil)
		}
		serves(r)
		if err := m.box.Reboot(interrupted); err != nil {
			m.t.Fatal(err)
		}
		serves(r)

		m.systemctl("stop", "web")
		m.run("rm", quadletDir+"/web.container")
		m.systemctl("daemon-reload")
		r.open()
		for _, b := range own {
			r.read(b, nil)
		}
		serves(r)

		// What is for some readers only.
		transcript := normalise(r.transcript.String())
		if compile {
			inCheckout(install[1:]...)
		}

		golden := filepath.Join("testdata", "readme-"+string(m.box.Suite)+".txt")
		if *update {
			if err := os.WriteFile(golden, []byte(transcript), 0o644); err != nil {
				m.t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			m.t.Fatal(err)
		}
		if transcript != string(want) {
			m.t.Errorf("not what %s has, see -update:\n%s\n%s", golden,
				"no longer:\n"+difference(string(want), transcript), "now:\n"+difference(transcript, string(want)))
		}
	})
}

// checkOut copies the checkout, as it is, to a directory of the machine's, and
// the modules that it needs to /srv/modules, for GOPROXY=.
func (m machine) checkOut(dir string) {
	m.t.Helper()
	m.run("mkdir", "-p", dir, "/srv/modules")
	copyTo := func(dir string, tar *exec.Cmd) {
		m.t.Helper()
		var archive, message bytes.Buffer
		tar.Stdout, tar.Stderr = &archive, &message
		if err := tar.Run(); err != nil {
			m.t.Fatalf("%v: %v\n%s", tar, err, &message)
		}
		m.must(m.feed(archive.String(), "tar", "-x", "--no-same-owner", "-C", dir))
	}
	copyTo(dir, exec.Command("sh", "-c", `cd "$1" && git ls-files -z --cached --others --exclude-standard |
		tar --null --files-from=- --create`, "sh", checkout))
	copyTo("/srv/modules", exec.Command("sh", "-c", `cd "$1" && go mod download && tar -C "$(go env GOMODCACHE)/cache/download" --exclude='*.lock' --create .`, "sh", checkout))
}

// normalise replaces in a transcript what is different each time.
func normalise(transcript string) string {
	for _, r := range []struct{ pattern, with string }{
		{`\r`, ""},
		// What apt, go and make say is theirs.
		{`(?m)^(# (?:apt|make)\b.*\n)(?:[^#-].*\n)+`, "$1...\n"},
		// The log comes last; the order of its lines varies.
		{`(?m)^(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d .*\n)+`, "...\n"},
		{`[0-9a-f]{64}|[0-9a-f]{32}`, "ID"},
		{`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`, "UUID"},
		// Which UIDs are free depends on the packages.
		{`(?m)^(web +)\d+( /var/lib/web +)\d+-\d+`, "${1}UID${2}RANGE"},
		{`(user(?:-runtime-dir)?@|--user=)\d+`, "${1}UID"},
		{`since .*; .* ago`, "since TIME; AGO"},
		{`(?m)^(Date|Last-Modified|Etag|E[Tt]ag):.*`, "$1: ..."},
		{`(?m)^( +CPU: ).*`, "$1..."},
		{`(?m)^ +(Memory|Tasks|Mem peak|IO|IP): .*\n`, ""},
		{`(?m)^( +(?:Main PID|Process): )\d+`, "${1}PID"},
		{`(?m)([├└]─)\d+ `, "${1}PID "},
		{`(?m)^(.{100}).+$`, "$1..."},
	} {
		transcript = regexp.MustCompile(r.pattern).ReplaceAllString(transcript, r.with)
	}
	return transcript
}
