//go:build e2e

package e2e

import (
	"debug/elf"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// The versions of the packages that the tests make.
const (
	olderVersion = "1.2.3"
	newerVersion = "1.2.4"
)

// packageDir is where a machine has the packages: PACKAGE/VERSION.deb and .rpm.
const packageDir = "/srv/packages"

// archOther is another processor than that of the machines.
const archOther = "arm64"

// packages makes the packages of both versions, and returns the directory that
// has them as a machine has them. Those for another processor are NEWER-arm64.deb and
// .rpm.
var packages = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(scratch, "packages")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	make := func(version, arch, name string) error {
		if err := runMakefile("deb", "rpm", "VERSION="+version, "GOARCH="+arch); err != nil {
			return err
		}
		for kind, pattern := range map[string]string{"deb": "*_" + arch + ".deb", "rpm": "*." + rpmArch[arch] + ".rpm"} {
			made, err := filepath.Glob(filepath.Join(built, pattern))
			if err != nil || len(made) != 1 {
				return fmt.Errorf("make %s VERSION=%s GOARCH=%s made %q, %v", kind, version, arch, made, err)
			}
			if err := copyFile(filepath.Join(dir, name+"."+kind), made[0]); err != nil {
				return err
			}
		}
		return nil
	}
	// This machine's come last, because they are what is in the directory of the Makefile then.
	err := make(newerVersion, archOther, newerVersion+"-"+archOther)
	if err == nil {
		err = make(olderVersion, runtime.GOARCH, olderVersion)
	}
	if err == nil {
		err = make(newerVersion, runtime.GOARCH, newerVersion)
	}
	return dir, err
})

// rpmArch has rpm's names of processors.
var rpmArch = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// packager is a program that installs packages.
type packager struct {
	kind      string // deb or rpm
	install   string // shell scripts, with the package's file in $1
	upgrade   string
	reinstall string
	remove    string
	purge     string
	known     string // succeeds as long as the package is known in any way
}

var debPackager = packager{
	kind:      "deb",
	install:   `apt-get --yes install "$1"`,
	upgrade:   `apt-get --yes install "$1"`,
	reinstall: `apt-get --yes reinstall "$1"`,
	remove:    `apt-get --yes remove oci-mainpid-hook`,
	// There are no conffiles, but dpkg keeps the scripts until then.
	purge: `apt-get --yes purge oci-mainpid-hook`,
	known: `dpkg --status oci-mainpid-hook`,
}

var rpmPackager = packager{
	kind: "rpm",
	// What it requires was installed by dpkg.
	install:   `rpm --install --nodeps "$1" && rpm --verify --nodeps oci-mainpid-hook`,
	upgrade:   `rpm --upgrade --nodeps "$1" && rpm --verify --nodeps oci-mainpid-hook`,
	reinstall: `rpm --reinstall --nodeps "$1"`,
	remove:    `rpm --erase oci-mainpid-hook`,
	purge:     `:`,
	known:     `rpm --query oci-mainpid-hook`,
}

// TestPackages: a unit starts with the installed package, goes on running while
// that is upgraded, and is stopped when it is removed, which leaves nothing.
func TestPackages(t *testing.T) {
	t.Parallel()
	withPackages(t, everywhere, func(m machine) {
		m.subtestIn(onFirst, debPackager.kind, debPackager.test)
		if onLast.has(m.box.Suite) {
			// Not before, so that the .deb has no more than it requires.
			m.debian("rpm")
			m.subtest(rpmPackager.kind, rpmPackager.test)
			m.subtest("pages", pagesOfPackage)
			m.subtest("another processor", otherProcessor)
		}
	})
}

// withPackages is onFreshMachinesIn for a test of the packages.
func withPackages(t *testing.T, where place, test func(m machine)) {
	dir, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	onFreshMachinesIn(t, where, func(m machine) {
		if err := os.CopyFS(filepath.Join(m.box.Root(), packageDir), os.DirFS(dir)); err != nil {
			m.t.Fatal(err)
		}
		// Every system has these, but for machines that are built without pages.
		m.run("mkdir", "-p", "/usr/share/man/man1", "/usr/share/man/man5", "/usr/share/man/man7", "/usr/share/man/man8")
		test(m)
	})
}

func (p packager) test(m machine) {
	file := func(version string) string { return fmt.Sprintf("%s/%s.%s", packageDir, version, p.kind) }
	const list = `find / -xdev \( -path /tmp -o -path /var/log -o -path /var/lib -o -path /var/cache -o -path /home \) -prune -o -printf '%y %p\n' | sort`
	u := m.user()
	u.quadlets(map[string]string{"NAME.container": sleeper + owned})
	n := u.quadletUnit("NAME.service", "NAME")
	n.cleanUp()
	slow := u.slowUnits(3)
	// The managers of these users are needed without their units, too.
	lingering, loggedIn := m.user(), m.user()
	loggedIn.quadlets(map[string]string{"NAME.container": sleeper + owned})
	other := loggedIn.quadletUnit("NAME.service", "NAME")
	other.cleanUp()
	before := m.shell(list)

	m.shell(p.install, file(olderVersion))
	for _, program := range []string{"oci-mainpid", helperProgram} {
		if got := m.run(program, "--version"); got != path.Base(program)+" "+olderVersion {
			m.t.Errorf("%s --version: %s", program, got)
		}
	}
	n.start()
	running := n.assertMainPIDIsConmon()
	for _, script := range []string{p.upgrade, p.reinstall} {
		m.shell(script, file(newerVersion))
		if got := m.run("oci-mainpid", "--version"); got != "oci-mainpid "+newerVersion {
			m.t.Errorf("after %q: %s", script, got)
		}
		if now := n.assertMainPIDIsConmon(); now != running {
			m.t.Errorf("%q changed %v to %v", script, running, now)
		}
	}
	n.stopAll(judgement{})

	hand := lingering.unit(service{mode: "mixed"})
	m.run("loginctl", "enable-linger", lingering.name)
	session := "session-of-" + loggedIn.name
	m.run("systemd-run", "--unit="+session, "--property=User="+loggedIn.name, "--property=PAMName=login", "sleep", "2000")
	m.t.Cleanup(func() {
		m.try("systemctl", "stop", session)
		m.try("loginctl", "disable-linger", lingering.name)
	})
	all := append([]unit{n, hand, other}, slow...)
	for _, each := range all {
		each.start()
		each.assertMainPIDIsConmon()
	}
	described, dropin := n.property("SourcePath"), path.Join(unitDir, hand.name+".d", "50-oci-mainpid.conf")
	out := m.shell("{ " + p.remove + "; } 2>&1")
	for _, want := range []string{
		"the units of these Quadlet files fail to start, and none runs as root:",
		fmt.Sprintf("%s: to remove its unit, type: rm '%[1]s'", described),
		"the units of these drop-ins fail to start, and none runs as root:",
		fmt.Sprintf("%s: to keep %s from being started, type: systemctl disable '%[2]s'", dropin, hand.name),
	} {
		if !strings.Contains(out, want) {
			m.t.Errorf("the removal does not say %q: %s", want, out)
		}
	}
	for _, each := range all {
		each.assertState("inactive")
		each.assertGone()
	}
	m.assertStoppedTogether(slow)
	for _, c := range []struct {
		user  user
		state string
	}{{u, "inactive"}, {lingering, "active"}, {loggedIn, "active"}} {
		if got := m.property("user@"+c.user.uid+".service", "ActiveState"); got != c.state {
			m.t.Errorf("the manager of %s is %s, not %s", c.user.name, got, c.state)
		}
		if m.property("user@"+c.user.uid+".service", "RefuseManualStop") != "no" {
			m.t.Errorf("the manager of %s still refuses to be stopped", c.user.name)
		}
	}
	// systemd stops user-runtime-dir@UID.service once the manager has stopped.
	m.await(u.runtimeDir()+" is removed", soon, func() bool { return m.try("test", "-e", u.runtimeDir()).status != 0 })
	// The hand-written unit keeps its drop-in, with which it fails.
	hand.startFails()
	m.run("rm", "-r", path.Join(unitDir, hand.name), path.Dir(dropin))
	m.systemctl("daemon-reload")
	for _, script := range []string{":", p.purge} {
		m.shell(script)
		if r := m.try("test", "-e", "/run/oci-mainpid"); r.status == 0 {
			m.t.Errorf("after %q: /run/oci-mainpid is left", script)
		}
		if left := difference(m.shell(list), before); left != "" {
			m.t.Errorf("after %q there is left:\n%s", script, left)
		}
	}
	if r := m.try("sh", "-c", p.known); r.status == 0 {
		m.t.Errorf("still known: %v", r)
	}
}

// slowUnits makes Quadlet units whose containers take 4 s to stop.
func (u user) slowUnits(n int) []unit {
	u.t.Helper()
	const text = "[Container]\nImage=" + imageName + "\nContainerName=CONTAINER\nExec=sh -c 'trap \"sleep 4; exit 0\" TERM; sleep 1000 & wait'\n" + owned
	files := map[string]string{}
	var units []unit
	for i := range n {
		name := fmt.Sprintf("NAME-slow%d", i)
		files[name+".container"] = strings.ReplaceAll(text, "CONTAINER", name)
		unit := u.quadletUnit(name+".service", name)
		unit.cleanUp()
		units = append(units, unit)
	}
	u.quadlets(files)
	return units
}

// assertStoppedTogether checks that systemd had begun to stop all of the units
// before the first had stopped. None of them was stopped before.
func (m machine) assertStoppedTogether(units []unit) {
	m.t.Helper()
	m.run("journalctl", "--sync")
	args := []string{"journalctl", "--no-pager", "--output=cat", "_PID=1"}
	for _, n := range units {
		args = append(args, "--unit="+n.name)
	}
	said := m.run(args...)
	first, _, stopped := strings.Cut(said, "\nStopped ")
	if begun := strings.Count(first, "\nStopping "); !stopped || begun != len(units) {
		m.t.Errorf("%d of %d units were being stopped when the first had stopped:\n%s", begun, len(units), said)
	}
}

// pagesOfPackage: README, Troubleshooting and the guides are in the package, and
// each link between pages leads to a file of the package.
func pagesOfPackage(m machine) {
	const unpacked = "/srv/unpacked"
	m.run("dpkg-deb", "--extract", packageDir+"/"+newerVersion+".deb", unpacked)
	dir := filepath.Join(m.box.Root(), unpacked, "usr/share/doc/oci-mainpid-hook")
	for _, page := range []string{"README.md", "docs/troubleshooting.md", "docs/rootful-to-rootless.md", "docs/user-to-system.md", "docs/credentials.md", "docs/reload.md", "docs/fleet.md", "docs/selinux-apparmor.md"} {
		if _, err := os.Stat(filepath.Join(dir, page)); err != nil {
			m.t.Errorf("not in the package: %v", err)
		}
	}
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "examples/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			m.t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	links := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, link := range regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`).FindAllStringSubmatch(string(text), -1) {
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), link[1])); err != nil {
				m.t.Errorf("%s has a link to %s, which is not in the package", filepath.Base(page), link[1])
			}
		}
	}
	m.t.Logf("%d pages with %d links", len(pages), links)
	listed := m.shell("rpm --query --list --package " + packageDir + "/" + newerVersion + ".rpm")
	for _, page := range pages {
		if name := strings.TrimPrefix(page, filepath.Join(m.box.Root(), unpacked)); !strings.Contains(listed, name) {
			m.t.Errorf("%s is in the .deb and not in the .rpm", name)
		}
	}
}

// otherProcessor: the packages for another processor say so, and so do their programs.
func otherProcessor(m machine) {
	file := packageDir + "/" + newerVersion + "-" + archOther
	if got := m.run("dpkg-deb", "--field", file+".deb", "Architecture"); got != archOther {
		m.t.Errorf("the .deb is for %s", got)
	}
	if got := m.run("rpm", "--query", "--package", "--queryformat=%{ARCH}", file+".rpm"); got != rpmArch[archOther] {
		m.t.Errorf("the .rpm is for %s", got)
	}
	const unpacked = "/srv/unpacked-" + archOther
	m.run("dpkg-deb", "--extract", file+".deb", unpacked)
	for _, program := range []string{"bin/oci-mainpid", "libexec/oci-mainpid/notify-mainpid", "libexec/oci-mainpid/podman-pause", "libexec/oci/hooks.d/oci-mainpid-hook"} {
		f, err := elf.Open(filepath.Join(m.box.Root(), unpacked, "usr", program))
		if err != nil {
			m.t.Fatal(err)
		}
		if f.Machine != elf.EM_AARCH64 {
			m.t.Errorf("%s is for %v", program, f.Machine)
		}
		f.Close()
	}
}
