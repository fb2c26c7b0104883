//go:build e2e && machines

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCheckers: what can check the packages, and the files for other distributions, has
// nothing to say of them.
func TestCheckers(t *testing.T) {
	t.Parallel()
	withPackages(t, onLast, func(m machine) {
		m.debian("lintian", "rpm", "rpmlint", "shellcheck", "nix-bin")
		m.subtest("recipes", recipes)
		m.subtest("lintian", lintian)
		m.subtest("rpmlint", rpmlint)
	})
}

// recipes: the files for other distributions hold before what can check them here. None
// of these distributions is here.
func recipes(m machine) {
	const dir = "/srv/packaging"
	root := func(path string) string { return filepath.Join(m.box.Root(), path) }
	if err := os.CopyFS(root(dir), os.DirFS("../../packaging")); err != nil {
		m.t.Fatal(err)
	}
	m.subtest("the PKGBUILD and its scripts, by shellcheck", func(m machine) {
		m.run("shellcheck", "--severity=warning", dir+"/arch/PKGBUILD", dir+"/arch/oci-mainpid-hook.install",
			dir+"/after-install.sh", dir+"/before-remove.sh", dir+"/after-remove.sh")
	})
	m.subtest("package() of the PKGBUILD, and a start with its paths", func(m machine) {
		const pkgdir = "/srv/arch"
		if err := makePackage(m.t.TempDir(), root(pkgdir)); err != nil {
			m.t.Fatal(err)
		}
		for file, part := range map[string]string{
			"usr/share/containers/oci/hooks.d/oci-mainpid-hook.json":  `"/usr/lib/oci/hooks.d/oci-mainpid-hook"`,
			"usr/lib/systemd/system/oci-mainpid-pause@.service":       "=/usr/lib/oci-mainpid/podman-pause ",
			"usr/lib/oci-mainpid/after-remove.sh":                     "#!/bin/sh",
			"usr/share/zsh/site-functions/_oci-mainpid":               "#compdef",
			"usr/share/licenses/oci-mainpid-hook/copyright":           "Apache-2.0",
			"usr/lib/systemd/system-generators/oci-mainpid-generator": "\x7fELF",
			"usr/lib/oci/hooks.d/oci-mainpid-hook":                    "\x7fELF",
		} {
			if text, err := os.ReadFile(filepath.Join(root(pkgdir), file)); err != nil || !strings.Contains(string(text), part) {
				m.t.Errorf("%s does not have %q, %v", file, part, err)
			}
		}
		if m.try("test", "-e", pkgdir+"/usr/libexec").status == 0 {
			m.t.Error("there is a /usr/libexec")
		}
		u := m.user()
		m.write("/srv/arch.service", "[Service]\nType=notify\nExecStart=podman run -d --rm --sdnotify=conmon --name x "+imageName+"\n")
		if out, want := m.run(pkgdir+"/usr/bin/oci-mainpid", "generate", "--dry-run", "--user="+u.name, "/srv/arch.service"), pkgdir+"/usr/lib/oci-mainpid/notify-mainpid"; !strings.Contains(out, want) {
			m.t.Errorf("the drop-in does not run %s:\n%s", want, out)
		}
	})
	m.subtest("the Nix files, by nix-instantiate --parse", func(m machine) {
		for _, file := range []string{"package.nix", "module.nix"} {
			if out := m.run("nix-instantiate", "--parse", dir+"/nixos/"+file); !strings.Contains(out, "oci-mainpid-hook") {
				m.t.Errorf("%s: %s", file, out)
			}
		}
	})
	const spec = dir + "/rpm/oci-mainpid-hook.spec"
	m.subtest("the spec file, by rpmspec and rpmlint", func(m machine) {
		m.run("rpmspec", "--parse", spec)
		out := m.run("rpmlint", "--config", dir+"/rpmlint.toml", spec)
		m.t.Log(out)
		if !strings.Contains(out, "0 packages and 1 specfiles checked; 0 errors") {
			m.t.Error("rpmlint found errors")
		}
	})
	m.subtest("the spec file's lists and scripts, by rpmbuild with what make install installed", func(m machine) {
		const top = "/srv/rpmbuild"
		if err := runMake("install", root(top+"/installed")); err != nil {
			m.t.Fatal(err)
		}
		// In the place of make, because there is no Go here: it copies what was installed.
		m.write(top+"/make", `#!/bin/sh
for word; do case $word in DESTDIR=*) cp -a `+top+`/installed/. "${word#DESTDIR=}" ;; esac; done
`)
		m.shell(`chmod 755 $1/make; mkdir -p $1/SOURCES $1/source/oci-mainpid-hook-1.0.0/docs $1/vendor/vendor; cd $1/source
			cp -a $2 oci-mainpid-hook-1.0.0/packaging
			cd oci-mainpid-hook-1.0.0; touch LICENSE README.md SECURITY.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md; cd ..
			tar -czf $1/SOURCES/oci-mainpid-hook-1.0.0.tar.gz oci-mainpid-hook-1.0.0
			tar --zstd -cf $1/SOURCES/vendor.tar.zst -C $1/vendor vendor
			rpmbuild -bb --nodeps --define "_topdir $1" --define "__make $1/make" $3`, top, dir, spec)
		file := m.shell(`ls ` + top + `/RPMS/*/*.rpm`)
		has := map[string]bool{}
		for _, line := range strings.Fields(m.run("rpm", "--query", "--list", "--package", file)) {
			has[line] = true
		}
		installed := 0
		for _, file := range strings.Fields(m.shell(`cd ` + top + `/installed; find . ! -type d -printf '/%P\n'`)) {
			if installed++; !has[file] && !has[file+".gz"] {
				m.t.Errorf("make install installs %s, and the package does not have it", file)
			}
		}
		if installed < 20 {
			m.t.Errorf("make install installed %d files", installed)
		}
		scripts := m.run("rpm", "--query", "--scripts", "--package", file)
		for _, part := range []string{"systemd-tmpfiles --create oci-mainpid.conf", "oci-mainpid quadlet-files", "systemctl stop 'run-oci\\x2dmainpid.mount'"} {
			if !strings.Contains(scripts, part) {
				m.t.Errorf("the package's scripts do not have %q:\n%s", part, scripts)
			}
		}
		if missing := regexp.MustCompile(`.*%(\{|[a-z_]{4}).*`).FindString(scripts); missing != "" {
			m.t.Errorf("a macro is left: %s", missing)
		}
	})
}

// makePackage does what makepkg(8) does with the PKGBUILD, once it has unpacked the
// source: a link to this directory.
func makePackage(srcdir, pkgdir string) error {
	here, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	if err := os.Symlink(here, filepath.Join(srcdir, "oci-mainpid-hook-1.0.0")); err != nil {
		return err
	}
	makeMutex.Lock()
	defer makeMutex.Unlock()
	// The modules are here already.
	cmd := exec.Command("bash", "-euc", `export GOMODCACHE=$(go env GOMODCACHE); srcdir=$1 pkgdir=$2; . "$3"; cd "$srcdir"; package`,
		"makepkg", srcdir, pkgdir, filepath.Join(here, "packaging/arch/PKGBUILD"))
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("package() of the PKGBUILD: %w\n%s", err, out)
	}
	return nil
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
