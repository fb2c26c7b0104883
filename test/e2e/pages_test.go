//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// page is a Markdown file of the project, by its path in the checkout.
type page string

// checkout is the project's directory.
const checkout = "../.."

// pages returns every page that people read.
func pages() ([]page, error) {
	var all []page
	for _, pattern := range []string{"*.md", "docs/*.md", "examples/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(checkout, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			rel, err := filepath.Rel(checkout, f)
			if err != nil {
				return nil, err
			}
			all = append(all, page(rel))
		}
	}
	return all, nil
}

// earlyService is the page whose commands TestWholeEarlyService types.
const earlyService page = "examples/early-service/README.md"

// block is what stands between a page's fences.
type block struct {
	page     page
	line     int    // of the opening fence
	heading  string // above it
	language string // "" if the fence names none
	text     string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

// path returns the path that a file names in its first line, or below #!, and
// "" for what is no file.
func (b block) path() string {
	first, rest, _ := strings.Cut(b.text, "\n")
	if strings.HasPrefix(first, "#!") {
		first, _, _ = strings.Cut(rest, "\n")
	}
	if name, ok := strings.CutPrefix(first, "# /"); ok && !strings.Contains(name, " ") {
		return "/" + name
	}
	return ""
}

func (p page) text() (string, error) {
	text, err := os.ReadFile(filepath.Join(checkout, string(p)))
	return string(text), err
}

// blocks returns what is fenced in a page.
func (p page) blocks() ([]block, error) {
	text, err := p.text()
	if err != nil {
		return nil, err
	}
	var all []block
	var open *block
	heading := ""
	number := 0
	for line := range strings.Lines(text) {
		number++
		fence, isFence := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "```")
		switch {
		case open != nil && isFence && fence == "":
			all, open = append(all, *open), nil
		case open != nil:
			open.text += line
		case isFence:
			open = &block{page: p, line: number, heading: heading, language: fence}
		case strings.HasPrefix(line, "#"):
			heading = strings.TrimSpace(strings.TrimLeft(line, "#"))
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%v: the fence is not closed", open)
	}
	return all, nil
}

// notRun are the lines of pages that no test types, and why.
var notRun = map[page]map[string]string{
	"README.md": {
		"make demo    # boots a throw-away Debian machine and shows it: before, after": "boots a machine, which a machine cannot; the demonstration asserts what it shows",
		"make test    # all tests, on throw-away Debian machines":                      "is what runs this test",
	},
	"CONTRIBUTING.md": {
		"go test -tags e2e ./test/e2e -stacks=trixie -run TestMainPID -v":                                 "is a part of what runs this test",
		"go test -tags e2e ./test/e2e -stacks=forky -run TestStrangersPID -keep":                          "is a part of what runs this test",
		"go test -tags e2e ./test/e2e -stacks=trixie -run TestSoak -soak=200 -soak-seed=7 -soak-go-on -v": "is a part of what runs this test, and takes minutes",
		"bin/sandbox shell m1": "wants a terminal and somebody who types",
	},
	earlyService: {
		"make -C examples/early-service install": "TestWholeEarlyService does, for a machine that it boots next",
		"systemctl enable early-service.service": "TestWholeEarlyService does, for a machine that it boots next",
		"dracut --force":                         "TestWholeEarlyService does, for a machine that it boots next",
		"reboot":                                 "TestWholeEarlyService boots",
		"echo get_counter | nc -N -U /run/early-service/early-service.sock":         "the machine has no nc; the unit tests ask",
		"echo set_counter 1000000 | nc -N -U /run/early-service/early-service.sock": "the machine has no nc; the unit tests ask",
	},
	"docs/selinux-apparmor.md": {
		"make selinux": "TestWholeSELinux has the package's script do the same",
		"semodule --install=/usr/share/selinux/packages/oci_mainpid.cil": "TestWholeSELinux has the package's script do it",
		"restorecon -R /run/oci-mainpid":                                 "TestWholeSELinux has the package's script do it",
		"semanage fcontext --add --equal /home /srv/home":                "has a say only where a kernel enforces it",
		"restorecon -R /srv/home":                                        "has a say only where a kernel enforces it",
	},
}

// reader is somebody who types what pages say, as root on a machine, in one
// shell for each page.
type reader struct {
	machine
	// dir is where they are.
	dir string
	// environment is more of it, NAME=VALUE.
	environment []string
	// transcript is what the screen has shown.
	transcript strings.Builder
	typed      []string
}

// failing are the commands, by their lines, that are meant to fail, with their
// exit statuses.
type failing map[string]int

// shellStart is read by the reader's shell before the first line of a block:
// functions live on from block to block, and each failure is written down.
const shellStart = `
unset BASH_ENV
mkdir -p /run/reader
[ ! -e /run/reader/functions ] || . /run/reader/functions
: >/run/reader/failures
set -o pipefail
failed() { echo "$1 $2" >>/run/reader/failures; }
trap 'failed $? $LINENO' ERR
leave() { declare -f >/run/reader/functions; }
trap leave EXIT
exec 2>&1
set -v
`

// open begins a page, with a shell of its own.
func (r *reader) open() { r.run("rm", "-rf", "/run/reader") }

// read does what a block says: types the commands, or writes the file. It
// returns what the screen shows.
func (r *reader) read(b block, fails failing) string {
	r.t.Helper()
	if b.path() != "" {
		r.write(b.path(), b.text)
		if strings.HasPrefix(b.text, "#!") {
			r.run("chmod", "755", b.path())
		}
		fmt.Fprintf(&r.transcript, "--- %s\n%s\n", b.path(), b.text)
		return ""
	}
	var lines []string
	for line := range strings.Lines(b.text) {
		line = strings.TrimSuffix(line, "\n")
		if notRun[b.page][line] == "" {
			lines = append(lines, line)
		}
	}
	return r.typeLines(b.String(), lines, fails)
}

// typeLines types lines, some of which may fail.
func (r *reader) typeLines(where string, lines []string, fails failing) string {
	r.t.Helper()
	script := strings.Join(lines, "\n") + "\n"
	r.write("/run/reader.start", shellStart)
	r.write("/run/reader.block", script)
	args := append([]string{"env", "--chdir=" + path.Join("/", r.dir), "BASH_ENV=/run/reader.start"}, r.environment...)
	args = append(args, "bash", "/run/reader.block")
	ctx, cancel := context.WithTimeout(interrupted, onlineTimeout)
	defer cancel()
	res := r.finish(ctx, r.box.Command(ctx, args[0], args[1:]...), "", args)
	failed := failing{}
	for _, f := range strings.Split(r.run("cat", "/run/reader/failures"), "\n") {
		if status, line, ok := strings.Cut(f, " "); ok {
			n, _ := strconv.Atoi(line)
			failed[lines[min(max(n, 1), len(lines))-1]], _ = strconv.Atoi(status)
		}
	}
	for line, status := range failed {
		if status != fails[line] {
			r.t.Errorf("%s: exit status %d, not %d, of: %s\n%s", where, status, fails[line], line, res.stdout)
		}
	}
	for line, status := range fails {
		if slices.Contains(lines, line) && failed[line] == 0 {
			r.t.Errorf("%s: exit status 0, not %d, of: %s\n%s", where, status, line, res.stdout)
		}
	}
	if r.t.Failed() {
		r.t.FailNow()
	}
	r.typed = append(r.typed, lines...)
	// What is read for a trap is shown, too.
	screen := strings.ReplaceAll(res.stdout, "failed $? $LINENO\n", "")
	screen = strings.TrimSuffix(strings.TrimSuffix(screen, "leave"), "\n")
	r.record(lines, screen)
	return screen
}

// record appends to the transcript what the screen showed: the lines as they
// were typed, behind a prompt, and what was written between them.
func (r *reader) record(lines []string, screen string) {
	for line := range strings.Lines(screen + "\n") {
		if text := strings.TrimSuffix(line, "\n"); len(lines) > 0 && text == lines[0] {
			lines = lines[1:]
			if text != "" {
				line = "# " + line
			}
		}
		r.transcript.WriteString(line)
	}
}
