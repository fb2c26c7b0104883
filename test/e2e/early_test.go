//go:build e2e && machines

package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

// clientUnit asks every 10 ms from the initrd on. After the switch of roots, its paths
// lead to the root of the initrd. Its directory is still /run.
const clientUnit = `[Unit]
DefaultDependencies=no
IgnoreOnIsolate=yes
SurviveFinalKillSignal=yes
ConditionPathExists=/etc/initrd-release
Wants=early-service-initrd.service
After=early-service-initrd.service
[Service]
WorkingDirectory=/run
ExecStart=@` + guestPath + ` @guest count early-service/early-service.sock early-client
# The boot goes on first, on a slow machine.
Nice=19
`

// TestWholeEarlyService boots a whole machine whose initrd has the example
// examples/early-service. No number is missing or double, and nobody who asks is refused.
func TestWholeEarlyService(t *testing.T) {
	blocks, err := earlyService.blocks()
	if err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	write := func(path, text string) error {
		path = filepath.Join(files, path)
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
	}
	wants := filepath.Join(files, "etc/systemd/system/multi-user.target.wants")
	err = errors.Join(
		runMakefile("--directory=examples/early-service", "install", "DESTDIR="+files, "PREFIX=/usr"),
		os.MkdirAll(filepath.Join(files, filepath.Dir(guestPath)), 0o755), installGuest(files),
		write("usr/lib/systemd/system/early-client.service", clientUnit),
		write("etc/dracut.conf.d/early-client.conf", `install_items+=" `+guestPath+` /usr/lib/systemd/system/early-client.service /etc/systemd/system/sysinit.target.wants/early-client.service "`+"\n"),
		os.MkdirAll(filepath.Join(files, "etc/systemd/system/sysinit.target.wants"), 0o755),
		os.Symlink("/usr/lib/systemd/system/early-client.service", filepath.Join(files, "etc/systemd/system/sysinit.target.wants/early-client.service")),
		os.MkdirAll(wants, 0o755),
		os.Symlink("/usr/lib/systemd/system/early-service.service", filepath.Join(wants, "early-service.service")),
	)
	if err != nil {
		t.Fatal(err)
	}
	m := bootWhole(t, sandbox.Config{Files: files})
	const first, second, client = "early-service-initrd.service", "early-service.service", "early-client.service"
	for unit, want := range map[string]string{first: "inactive", second: "active", client: "active"} {
		if got := m.property(unit, "ActiveState"); got != want {
			t.Errorf("%s is %s", unit, got)
		}
	}
	time.Sleep(2 * time.Second) // of counting, and asking, after it all
	m.systemctl("stop", client)
	m.run("journalctl", "--sync")

	type entry struct {
		Message   string `json:"MESSAGE"`
		Unit      string `json:"_SYSTEMD_UNIT"`
		Monotonic string `json:"__MONOTONIC_TIMESTAMP"`
	}
	var numbers []int
	lastOf := map[string]int{}
	var switched, taken int64
	number := regexp.MustCompile(`^\d+$`)
	for line := range strings.Lines(m.run("journalctl", "--boot", "--output=json")) {
		var e entry
		if json.Unmarshal([]byte(line), &e) != nil {
			continue // a message of bytes
		}
		at, _ := strconv.ParseInt(e.Monotonic, 10, 64)
		switch {
		case (e.Unit == first || e.Unit == second) && number.MatchString(e.Message):
			n, _ := strconv.Atoi(e.Message)
			numbers = append(numbers, n)
			lastOf[e.Unit] = n
		case e.Unit == second && strings.HasPrefix(e.Message, "taken over with "):
			taken = at
		case strings.HasPrefix(e.Message, "Switching root"):
			switched = at
		}
	}
	story := m.run("journalctl", "--boot", "--output=short-monotonic", "--no-hostname", "--unit="+first, "--unit="+second)
	t.Logf("%d numbers, %d of them in the initrd's process; switched at %d, taken over at %d µs\n%s", len(numbers), lastOf[first]+1, switched, taken, story)
	for i, n := range numbers {
		if n != i {
			t.Fatalf("%d comes where %d should", n, i)
		}
	}
	if lastOf[first] == 0 || lastOf[second] <= lastOf[first] || switched == 0 || taken < switched {
		t.Error("it was not as it should be")
	}

	asked, before, between, after := 0, 0, 0, 0
	var last, end, gap, longest int64
	for line := range strings.Lines(m.run("cat", "/run/early-client")) {
		words := strings.Fields(line)
		if len(words) != 3 {
			t.Errorf("the client says %s", line)
			continue
		}
		at, _ := strconv.ParseInt(words[0], 10, 64)
		took, _ := strconv.ParseInt(words[1], 10, 64)
		n, err := strconv.ParseInt(words[2], 10, 64)
		if err != nil || n < last {
			t.Errorf("after %d the client says %s", last, line)
		}
		if asked++; asked > 1 {
			gap = max(gap, at-end)
		}
		last, end, longest = n, at+took, max(longest, took)
		switch {
		case at < switched:
			before++
		case at < taken:
			between++
		default:
			after++
		}
	}
	t.Logf("asked %d times: %d before the switch, %d until it was taken over, %d after; at most %d ms after the last answer, for %d ms", asked, before, between, after, gap/1000, longest/1000)
	if before < 10 || between < 10 || after < 10 {
		t.Error("the client was not there all through")
	}

	r := &reader{machine: m, dir: "/root"}
	r.open()
	for _, b := range blocks {
		if b.language == "sh" {
			r.read(b, nil)
		}
	}
	t.Log(r.transcript.String())
}
