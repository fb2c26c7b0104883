//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
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

// packages makes the packages of both versions, and returns the directory that
// has them as a machine has them.
var packages = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "oci-mainpid-packages-")
	if err != nil {
		return "", err
	}
	for _, version := range []string{olderVersion, newerVersion} {
		if err := runMakefile("deb", "rpm", "VERSION="+version); err != nil {
			return dir, err
		}
		for _, kind := range []string{"deb", "rpm"} {
			made, err := filepath.Glob(filepath.Join(built, "*"+kind))
			if err != nil || len(made) != 1 {
				return dir, fmt.Errorf("make %s VERSION=%s made %q, %v", kind, version, made, err)
			}
			if err := copyFile(filepath.Join(dir, version+"."+kind), made[0]); err != nil {
				return dir, err
			}
		}
	}
	return dir, nil
})

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

var packagers = []packager{{
	kind:      "deb",
	install:   `apt-get --yes install "$1"`,
	upgrade:   `apt-get --yes install "$1"`,
	reinstall: `apt-get --yes reinstall "$1"`,
	remove:    `apt-get --yes remove oci-mainpid-hook`,
	// There are no conffiles, but dpkg keeps the scripts until then.
	purge: `apt-get --yes purge oci-mainpid-hook`,
	known: `dpkg --status oci-mainpid-hook`,
}, {
	kind: "rpm",
	// What it requires was installed by dpkg.
	install:   `rpm --install --nodeps "$1" && rpm --verify --nodeps oci-mainpid-hook`,
	upgrade:   `rpm --upgrade --nodeps "$1" && rpm --verify --nodeps oci-mainpid-hook`,
	reinstall: `rpm --reinstall --nodeps "$1"`,
	remove:    `rpm --erase oci-mainpid-hook`,
	purge:     `:`,
	known:     `rpm --query oci-mainpid-hook`,
}}

// TestPackages: a unit starts with the installed package, goes on running while
// that is upgraded, and is stopped when it is removed, which leaves nothing.
func TestPackages(t *testing.T) {
	t.Parallel()
	dir, err := packages()
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err != nil {
		t.Fatal(err)
	}
	onFreshMachines(t, func(m machine) {
		if err := os.CopyFS(filepath.Join(m.box.Root(), packageDir), os.DirFS(dir)); err != nil {
			m.t.Fatal(err)
		}
		// Every system has these, but for machines that are built without pages.
		m.run("mkdir", "-p", "/usr/share/man/man1", "/usr/share/man/man5", "/usr/share/man/man7", "/usr/share/man/man8")
		for _, p := range packagers {
			m.subtest(p.kind, p.test)
			if p.kind == "deb" {
				// Not before, so that the .deb has no more than it requires.
				if err := m.box.Install(interrupted, "lintian", "rpm", "rpmlint"); err != nil {
					m.t.Fatal(err)
				}
			}
		}
		m.subtest("lintian", lintian)
		m.subtest("rpmlint", rpmlint)
	})
}

func (p packager) test(m machine) {
	file := func(version string) string { return fmt.Sprintf("%s/%s.%s", packageDir, version, p.kind) }
	const list = `find / -xdev \( -path /tmp -o -path /var/log -o -path /var/lib -o -path /var/cache -o -path /home \) -prune -o -printf '%y %p\n' | sort`
	u := m.user()
	u.quadlets(map[string]string{"NAME.container": sleeper + owned})
	n := u.quadletUnit("NAME.service", "NAME")
	n.cleanUp()
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

	n.start()
	n.assertMainPIDIsConmon()
	described := n.property("SourcePath")
	if out := m.shell("{ " + p.remove + "; } 2>&1"); !strings.Contains(out, "starts as root") || !strings.Contains(out, described) {
		m.t.Errorf("the removal does not warn of %s: %s", described, out)
	}
	n.assertState("inactive")
	n.assertGone()
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

// lintian: the checker of Debian's packages has nothing to say, apart from what
// packaging/lintian-overrides gives a reason for.
func lintian(m machine) {
	// Overridden tags are shown, so that there is something to see if all is well.
	out := m.run("lintian", "--allow-root", "--show-overrides", packageDir+"/"+newerVersion+".deb")
	m.t.Log(out)
	if !strings.Contains(out, "O: oci-mainpid-hook: statically-linked-binary") {
		m.t.Error("lintian did not look at the programs")
	}
	if found := regexp.MustCompile(`(?m)^[EW]: .*`).FindAllString(out, -1); found != nil {
		m.t.Errorf("lintian found %q", found)
	}
}

// rpmlint: the checker of rpm packages finds no error, apart from what
// packaging/rpmlint.toml gives a reason for.
func rpmlint(m machine) {
	config, err := os.ReadFile("../../packaging/rpmlint.toml")
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(packageDir+"/rpmlint.toml", string(config))
	out := m.run("rpmlint", "--config", packageDir+"/rpmlint.toml", packageDir+"/"+newerVersion+".rpm")
	m.t.Log(out)
	if !strings.Contains(out, "1 packages and 0 specfiles checked; 0 errors") {
		m.t.Error("rpmlint found errors")
	}
}
