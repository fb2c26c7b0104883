package sandbox

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// A Suite is a release of Debian, by its code name.
type Suite string

// The suites a machine can be made of.
const (
	Bookworm Suite = "bookworm" // systemd 252: no OpenFile=; podman 4.3: no Quadlet
	Trixie   Suite = "trixie"
	Forky    Suite = "forky"
	Unstable Suite = "unstable" // with podman 6 of experimental
)

// Suites returns every suite that Build knows, oldest first.
func Suites() []Suite {
	return []Suite{Bookworm, Trixie, Forky, Unstable}
}

// check returns an error that names the known suites when s is none of them.
func (s Suite) check() error {
	if slices.Contains(Suites(), s) {
		return nil
	}
	return fmt.Errorf("unknown suite %q (known: %v)", string(s), Suites())
}

// packages returns what is installed on top of apt and Debian's essential
// packages.
func (s Suite) packages() []string {
	p := []string{
		"systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd",
		"podman", "crun", "runc", "conmon", "uidmap", "catatonit", "fuse-overlayfs",
		"passt", "netavark", "aardvark-dns", "nftables",
		"busybox-static", "procps", "iproute2", "kmod", "passwd", "ca-certificates", "curl",
	}
	if s == Bookworm {
		// podman uses pasta since 4.4, netavark nftables since 1.10.
		p = append(p, "slirp4netns", "iptables")
	}
	return p
}

// setup returns a script that mmdebstrap(1) runs before it asks Debian's archive for
// packages, with the root in $1; "" where there is nothing to set up.
func (s Suite) setup() string {
	if s != Unstable {
		return ""
	}
	return `mkdir -p "$1/etc/apt/preferences.d"
sed "s/ unstable / experimental /" "$1/etc/apt/sources.list" >"$1/etc/apt/sources.list.d/experimental.list"
echo "Package: podman golang-github-containers-common conmon crun netavark aardvark-dns passt
Pin: release a=experimental
Pin-Priority: 990" >"$1/etc/apt/preferences.d/sandbox"`
}

// masked are units that a throw-away machine does not need. They make the boot
// slower, or change the host through a writable /sys or /proc/sys.
var masked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
	"e2scrub_reap.service", "fstrim.timer", "man-db.timer", "podman-auto-update.timer",
	"systemd-tmpfiles-clean.timer",
	"console-getty.service", "container-getty@.service", "getty@.service", "getty-static.service",
	"ldconfig.service", "systemd-journal-catalog-update.service", "systemd-update-done.service",
	"systemd-firstboot.service", "systemd-homed.service", "systemd-machine-id-commit.service",
	"systemd-networkd-wait-online.service", "systemd-remount-fs.service",
	"systemd-hwdb-update.service", "systemd-udevd.service", "systemd-udev-trigger.service",
	"systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
	"modprobe@.service", "systemd-modules-load.service", "kmod-static-nodes.service",
	"systemd-sysctl.service", "systemd-binfmt.service", "systemd-random-seed.service",
	"proc-sys-fs-binfmt_misc.automount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
	"sys-kernel-config.mount", "dev-hugepages.mount",
	"netavark-dhcp-proxy.service", "netavark-dhcp-proxy.socket", "netavark-firewalld-reload.service",
}

// image holds the files that customise copies over the installed packages, by
// their paths: first those in image/all, for every suite, then those in
// image/SUITE.
//
//go:embed image
var image embed.FS

// walkImage calls f with the path and the contents of each of the suite's
// files, always in the same order.
func (s Suite) walkImage(f func(path string, data []byte) error) error {
	for _, part := range []string{"image/all", "image/" + string(s)} {
		err := fs.WalkDir(image, part, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path == part {
				return nil
			}
			if err != nil || d.IsDir() {
				return err
			}
			data, err := image.ReadFile(path)
			if err != nil {
				return err
			}
			return f(strings.TrimPrefix(path, part+"/"), data)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// recipe is a number to raise when the code that makes a root file system changes.
// The packages, the masked units and image are in the key themselves.
const recipe = 2

// key returns the name of the suite's root file system in the cache: the suite and
// a hash of everything that decides what the root file system contains, except the
// state of Debian's archive.
func (s Suite) key() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n%s\n%s\n", recipe, strings.Join(s.packages(), " "), strings.Join(masked, " "))
	fmt.Fprint(h, s.setup())
	err := s.walkImage(func(path string, data []byte) error {
		_, err := fmt.Fprintf(h, "%s %d\n%s", path, len(data), data)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("hash the files of the image: %w", err)
	}
	return string(s) + "-" + hex.EncodeToString(h.Sum(nil))[:12], nil
}
