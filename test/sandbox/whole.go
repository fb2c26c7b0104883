package sandbox

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// A whole machine has a kernel of its own, Debian's, with all controllers and an
// initrd of dracut's. qemu-system-x86_64(1) runs it, by KVM if the host has that.

// wholePackages returns what makes a whole machine of the suite's root file system.
func (s Suite) wholePackages() []string {
	p := []string{"linux-image-cloud-amd64", "dracut", "udev", "apparmor", "quota"}
	if s == Unstable {
		// selinux-policy-default 2:2.20261022-1 disables a module that it has not got,
		// and so cannot be installed.
		return p
	}
	return append(p, "selinux-policy-default", "policycoreutils", "selinux-utils")
}

// wholeUnits are masked on other machines, which share the host's kernel and devices.
var wholeUnits = []string{
	"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
	"modprobe@.service", "systemd-modules-load.service", "kmod-static-nodes.service",
	"systemd-remount-fs.service", "systemd-sysctl.service", "systemd-random-seed.service",
	"dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
}

// wholeRecipe is a number to raise when the code that makes a whole machine changes.
const wholeRecipe = 1

var toBuildWhole = []requirement{{"mkfs.ext4", "e2fsprogs"}}
var toBootWhole = []requirement{{"qemu-system-x86_64", "qemu-system-x86"}}

// agentSource is the program that runs commands in a whole machine.
//
//go:embed agent/main.go
var agentSource string

const agentUnit = `[Unit]
Description=Run the commands of the sandbox
DefaultDependencies=no
After=systemd-remount-fs.service

[Service]
ExecStart=/usr/lib/sandbox-agent
Restart=always
OOMScoreAdjust=-1000
`

// wholePorts is how many commands may run at the same time.
const wholePorts = 4

// buildWhole makes the disk, the kernel and the initrd of a suite's whole machine in
// the cache, unless they are there already. It returns their directory.
func buildWhole(ctx context.Context, suite Suite, progress io.Writer) (string, error) {
	if runtime.GOARCH != "amd64" {
		return "", fmt.Errorf("whole machines are for amd64 only, this host is %s", runtime.GOARCH)
	}
	if _, err := build(ctx, suite, progress); err != nil {
		return "", err
	}
	log := newLog(progress, suite)
	if err := prepareHost(ctx, toBuildWhole, log); err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	key, err := suite.key()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Append(nil, wholeRecipe, key, suite.wholePackages(), wholeUnits, agentSource, agentUnit))
	dir := filepath.Join(cache, "roots", string(suite)+"-whole-"+hex.EncodeToString(sum[:])[:12])
	return dir, cached(ctx, dir, log, func(partial string) error { return fillWhole(ctx, suite, partial, progress) })
}

// cached has the directory of a whole machine filled, unless it is there already.
func cached(ctx context.Context, dir string, log *logrus.Entry, fill func(partial string) error) error {
	if isDir(dir) {
		return nil
	}
	unlock, err := lock(ctx, dir+".lock", func() { log.Infof("waiting for another process to build a whole machine") })
	if err != nil {
		return err
	}
	defer unlock()
	if isDir(dir) {
		return nil
	}
	partial := dir + ".partial"
	if err := errors.Join(removeTree(partial), os.Mkdir(partial, 0o755)); err != nil {
		return err
	}
	if err := fill(partial); err != nil {
		return errors.Join(fmt.Errorf("build a whole machine: %w", err), removeTree(partial))
	}
	if err := os.Rename(partial, dir); err != nil {
		return fmt.Errorf("put a whole machine into the cache: %w", err)
	}
	return nil
}

// buildWith makes of a whole machine's directory another one, with the files and the script
// of a Config, unless it is in the cache already. It returns that directory.
func buildWith(ctx context.Context, c Config, whole string) (string, error) {
	const script = `
set -eu
cp --sparse=always "$1/disk" "$2/disk"
cp "$1/kernel" "$2/kernel"
mkdir "$2/root"
mount -o loop "$2/disk" "$2/root"
[ ! -d "$3" ] || cp -a --no-preserve=ownership "$3/." "$2/root"
systemd-nspawn --quiet --register=no --keep-unit --pipe --resolv-conf=off --timezone=off --directory="$2/root" \
	sh -euc "$4"'
	dracut --force /boot/initrd.new "$(ls /usr/lib/modules)"'
mv "$2/root/boot/initrd.new" "$2/initrd"
umount "$2/root"
rmdir "$2/root"
`
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q\n", script, c.Prepare)
	if c.Files == "" {
		c.Files = os.DevNull
	}
	err := filepath.WalkDir(c.Files, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(sum, strings.TrimPrefix(path, c.Files), info.Mode())
		var content []byte
		switch info.Mode().Type() {
		case 0:
			content, err = os.ReadFile(path)
		case fs.ModeSymlink:
			var target string
			target, err = os.Readlink(path)
			content = []byte(target)
		}
		fmt.Fprintf(sum, "%d\n%s", len(content), content)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the files for a whole machine: %w", err)
	}
	log := newLog(c.Progress, c.Suite)
	dir := whole + "-with-" + hex.EncodeToString(sum.Sum(nil))[:12]
	return dir, cached(ctx, dir, log, func(partial string) error {
		if err := forgetOldest(filepath.Glob(whole + "-with-*[0-9a-f]")); err != nil {
			return err
		}
		log.Infof("making the initrd")
		cmd := exec.CommandContext(ctx, "sh", "-c", script, "sh", whole, partial, c.Files, c.Prepare)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("change the root: %w\n%s", err, out)
		}
		return nil
	})
}

// fillWhole installs what makes a machine a whole one on a machine of the other kind,
// whose root file system becomes the disk.
func fillWhole(ctx context.Context, suite Suite, dir string, progress io.Writer) (err error) {
	m, err := Boot(ctx, Config{Suite: suite, Progress: progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.PowerOff(context.WithoutCancel(ctx))) }()
	log := newLog(progress, suite)
	packages := suite.wholePackages()
	log.Infof("installing %s", strings.Join(packages, ", "))
	// /boot has the initrd of the kernel's package: not of this host, which would lack
	// the drivers of the machine's disk.
	config := filepath.Join(m.Root(), "etc/dracut.conf.d")
	err = errors.Join(os.MkdirAll(config, 0o755),
		os.WriteFile(filepath.Join(config, "sandbox.conf"), []byte("hostonly=no\ndrivers+=\" virtio_blk virtio_pci ext4 \"\n"), 0o644))
	if err == nil {
		err = m.Install(ctx, packages...)
	}
	if err != nil {
		return err
	}
	for _, unit := range wholeUnits {
		if err := os.Remove(filepath.Join(m.Root(), "etc/systemd/system", unit)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(m.Root(), maskedGenerators)); err != nil {
		return err
	}
	source, err := os.MkdirTemp("", "sandbox-agent-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(source)
	if err := os.WriteFile(filepath.Join(source, "main.go"), []byte(agentSource), 0o644); err != nil {
		return err
	}
	goBuild := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(m.Root(), "usr/lib/sandbox-agent"), "main.go")
	goBuild.Dir = source
	goBuild.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GO111MODULE=off")
	if out, err := goBuild.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	const unit = "usr/lib/systemd/system/sandbox-agent.service"
	err = errors.Join(
		os.WriteFile(filepath.Join(m.Root(), unit), []byte(agentUnit), 0o644),
		// To load all of Debian's profiles takes a minute. Whoever needs one loads it.
		os.Remove(filepath.Join(m.Root(), "etc/systemd/system/sysinit.target.wants/apparmor.service")),
		symlink("/"+unit, filepath.Join(m.Root(), "etc/systemd/system/sysinit.target.wants/sandbox-agent.service")),
		os.WriteFile(filepath.Join(m.Root(), "etc/fstab"), []byte("LABEL=root / ext4 rw 0 1\n"), 0o644),
		// The kernel has every controller.
		os.Remove(filepath.Join(m.Root(), "etc/containers/containers.conf.d/50-sandbox.conf")),
		personalise(m.Root(), string(suite)),
	)
	if err != nil {
		return err
	}
	log.Infof("making the disk")
	for name, pattern := range map[string]string{"kernel": "vmlinuz-*", "initrd": "initrd.img-*"} {
		found, err := filepath.Glob(filepath.Join(m.Root(), "boot", pattern))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("/boot/%s: %q, %v", pattern, found, err)
		}
		if err := os.Link(found[0], filepath.Join(dir, name)); err == nil {
			continue
		}
		data, err := os.ReadFile(found[0])
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o644)
		}
		if err != nil {
			return err
		}
	}
	disk := filepath.Join(dir, "disk")
	mkfs := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-L", "root", "-d", m.Root(), disk, "6G")
	if out, err := mkfs.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w\n%s", err, out)
	}
	return nil
}

// forgetOldest removes all but two of the directories. A machine that runs keeps its disk
// open.
func forgetOldest(dirs []string, err error) error {
	made := map[string]time.Time{}
	for _, dir := range dirs {
		info, statErr := os.Stat(dir)
		if statErr != nil {
			return statErr
		}
		made[dir] = info.ModTime()
	}
	slices.SortFunc(dirs, func(a, b string) int { return made[b].Compare(made[a]) })
	for _, dir := range dirs[min(2, len(dirs)):] {
		err = errors.Join(err, removeTree(dir), os.Remove(dir+".lock"))
	}
	return err
}

// startWhole starts qemu on the image in the directory, with more of the kernel's command
// line.
func (m *Machine) startWhole(image, kernel string) error {
	if err := m.save(); err != nil {
		return err
	}
	if err := errors.Join(removeTree(m.Disk), os.MkdirAll(m.Disk, 0o700)); err != nil {
		return fmt.Errorf("make the disk: %w", err)
	}
	// Without KVM, the newest processor is the slowest: a machine that is ready after 54 s
	// as a Nehalem is ready after 75 s with AVX and page tables of five levels.
	cpu := "Nehalem"
	if unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil {
		cpu = "max"
	}
	args := []string{
		"-accel", "kvm", "-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "2", "-m", "2048",
		"-nodefaults", "-no-user-config", "-display", "none", "-nic", "none",
		"-kernel", filepath.Join(image, "kernel"), "-initrd", filepath.Join(image, "initrd"),
		"-append", "root=LABEL=root rw console=ttyS0 quiet mitigations=off systemd.getty_auto=no rd.shell=0 rd.emergency=poweroff systemd.hostname=" + m.Name + " " + kernel,
		// What the machine writes is in a file without a name below TMPDIR.
		"-drive", "file=" + filepath.Join(image, "disk") + ",if=virtio,format=raw,snapshot=on,cache=unsafe",
		"-chardev", "file,id=console,append=on,path=" + m.Console(), "-serial", "chardev:console",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
	}
	for i := range wholePorts {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=port%d,path=%s,server=on,wait=off", i, m.port(i)),
			"-device", fmt.Sprintf("virtserialport,chardev=port%d,name=sandbox.%d", i, i))
	}
	// What qemu says comes first in the console's log: qemu appends to it.
	console, err := os.OpenFile(m.Console(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer console.Close()
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.Env = []string{searchPath, "TMPDIR=" + m.Disk}
	return m.supervise(cmd, console)
}

// port is the socket of one of the machine's ports.
func (s state) port(i int) string { return filepath.Join(s.dir(), fmt.Sprintf("port%d", i)) }

// rebootWhole reboots a whole machine by a command of systemctl(1), reboot or
// soft-reboot, and returns when it is running, or degraded, again.
func (m *Machine) rebootWhole(ctx context.Context, verb string) error {
	// A soft-reboot keeps the boot's ID.
	const started = "systemctl show --value --property=UserspaceTimestampMonotonic; cat /proc/sys/kernel/random/boot_id"
	ask := func() (string, error) {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		out, err := m.Command(ctx, "sh", "-ec", started).Output()
		return string(out), err
	}
	before, err := ask()
	if err != nil {
		return fmt.Errorf("ask machine %s for its boot: %w", m.Name, err)
	}
	if out, err := m.Command(ctx, "systemctl", verb, "--no-block").CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s: %w\n%s", verb, err, out)
	}
	for boot := before; boot == before || err != nil; boot, err = ask() {
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the end of systemctl %s: %w", verb, err)
		}
	}
	if _, err := m.waitRunning(ctx); err != nil {
		return fmt.Errorf("after systemctl %s: %w\n%s", verb, err, consoleTail(m.Console()))
	}
	return nil
}
