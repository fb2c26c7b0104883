package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

// Build makes the suite's root file system in the cache, unless it is there
// already. It installs the host programs that it needs and that are missing,
// and returns when another process that builds the same one is done. Lines of
// progress go to progress, which may be nil.
func Build(ctx context.Context, suite Suite, progress io.Writer) error {
	_, err := build(ctx, suite, progress)
	return err
}

// build does what Build does, and returns the path of the root file system.
func build(ctx context.Context, suite Suite, progress io.Writer) (string, error) {
	if err := suite.check(); err != nil {
		return "", err
	}
	if os.Geteuid() != 0 {
		return "", ErrNotRoot
	}
	log := newLog(progress, suite)
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	key, err := suite.key()
	if err != nil {
		return "", err
	}
	root := filepath.Join(cache, "roots", key)
	if isDir(root) {
		return root, nil
	}
	if err := prepareHost(ctx, toBuild, log); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return "", fmt.Errorf("make the cache: %w", err)
	}
	unlock, err := lock(ctx, root+".lock", func() { log.Infof("waiting for another process to build %s", key) })
	if err != nil {
		return "", err
	}
	defer unlock()
	if isDir(root) {
		return root, nil
	}

	partial := root + ".partial"
	if err := removeTree(partial); err != nil {
		return "", fmt.Errorf("remove what an interrupted build left: %w", err)
	}
	if err := install(ctx, suite, partial, log); err != nil {
		return "", errors.Join(err, removeTree(partial))
	}
	log.Infof("customising")
	if err := customise(ctx, suite, partial); err != nil {
		return "", errors.Join(fmt.Errorf("customise %s: %w", suite, err), removeTree(partial))
	}
	if err := os.Rename(partial, root); err != nil {
		return "", fmt.Errorf("put %s into the cache: %w", suite, err)
	}
	n, err := countPackages(root)
	if err != nil {
		return "", err
	}
	log.Infof("done, %d packages", n)
	return root, nil
}

// install fills dir with the suite's packages. See mmdebstrap(1).
func install(ctx context.Context, suite Suite, dir string, log *logrus.Entry) error {
	args := []string{
		"--mode=root", "--variant=apt", "--format=directory",
		// The index of a testing suite may have expired.
		`--aptopt=Acquire::Check-Valid-Until "false"`,
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--include=" + strings.Join(suite.packages(), ","),
	}
	if setup := suite.setup(); setup != "" {
		args = append(args, "--setup-hook="+setup)
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, string(suite), dir)...)
	// Debian's own python3 and tar: another python3 may take a second for each package.
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	// The mounts that mmdebstrap makes in dir vanish when it ends in any way.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second

	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	var last tail
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		s := bufio.NewScanner(r)
		for s.Scan() {
			last.add(s.Text())
			if step, ok := strings.CutPrefix(s.Text(), "I: "); ok {
				log.Infof("%s", step)
			}
		}
		io.Copy(io.Discard, r)
	}()
	log.Infof("installing %d packages and what they need", len(suite.packages()))
	err := cmd.Run()
	w.Close()
	<-copied
	if err != nil {
		return fmt.Errorf("mmdebstrap %s: %w\n%s", suite, err, last.String())
	}
	return nil
}

// maskedGenerators is where systemd's own generators are masked, of which a throw-away
// machine needs none. To run them takes two thirds of the processor time of a reload.
const maskedGenerators = "etc/systemd/system-generators"

// customise prepares a freshly installed root file system for a machine: it adds
// the files of image, masks units and generators, and makes the archive of the busybox image.
func customise(ctx context.Context, suite Suite, root string) error {
	if err := writeImage(suite, root); err != nil {
		return err
	}
	units := filepath.Join(root, "etc/systemd/system")
	if err := os.MkdirAll(units, 0o755); err != nil {
		return err
	}
	for _, u := range masked {
		if err := symlink("/dev/null", filepath.Join(units, u)); err != nil {
			return err
		}
	}
	generators, err := filepath.Glob(filepath.Join(root, "usr/lib/systemd/system-generators/systemd-*"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, maskedGenerators), 0o755); err != nil {
		return err
	}
	for _, g := range generators {
		if err := symlink("/dev/null", filepath.Join(root, maskedGenerators, filepath.Base(g))); err != nil {
			return err
		}
	}
	if err := symlink("/usr/lib/systemd/system/multi-user.target", filepath.Join(units, "default.target")); err != nil {
		return err
	}
	for _, dir := range diskDirs {
		if err := os.MkdirAll(filepath.Join(root, dir.path), dir.mode); err != nil {
			return err
		}
	}
	applets, err := exec.CommandContext(ctx, "chroot", root, "/bin/busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("list the applets of busybox: %w", err)
	}
	path := filepath.Join(root, BusyboxTar)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	var tar bytes.Buffer
	if err := writeBusyboxTar(&tar, filepath.Join(root, "usr/bin/busybox"), strings.Fields(string(applets))); err != nil {
		return err
	}
	return os.WriteFile(path, tar.Bytes(), 0o644)
}

// writeImage lays the files of image over root, and has every unit among them
// started early in the boot.
func writeImage(suite Suite, root string) error {
	const units = "usr/lib/systemd/system/"
	return suite.walkImage(func(path string, data []byte) error {
		dest := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(dest, data, 0o644); err != nil {
			return err
		}
		unit, ok := strings.CutPrefix(path, units)
		if !ok {
			return nil
		}
		wants := filepath.Join(root, "etc/systemd/system/sysinit.target.wants")
		if err := os.MkdirAll(wants, 0o755); err != nil {
			return err
		}
		return symlink("/"+path, filepath.Join(wants, unit))
	})
}

// symlink makes a symbolic link, and replaces what is at the path.
func symlink(target, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, path)
}

// countPackages returns how many packages are installed in root.
func countPackages(root string) (int, error) {
	status, err := os.ReadFile(filepath.Join(root, "var/lib/dpkg/status"))
	if err != nil {
		return 0, err
	}
	return bytes.Count(status, []byte("\nStatus: install ok installed\n")), nil
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}
