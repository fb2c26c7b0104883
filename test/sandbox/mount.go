package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// diskDirs are directories of a machine that are not on its overlay: podman
// keeps images in some of them, on overlays of its own, and overlayfs does not
// take an overlay for its upper layer.
var diskDirs = []struct {
	path string
	mode os.FileMode
}{
	{"/home", 0o755},
	{"/var/lib/containers", 0o755},
	{"/var/tmp", 0o777 | os.ModeSticky},
}

// mountRoot mounts a machine's root file system at target: an overlay of lower,
// written to in disk, with diskDirs of their own.
func mountRoot(lower, disk, target string) error {
	if err := os.MkdirAll(disk, 0o711); err != nil {
		return fmt.Errorf("make the disk: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", disk, err)
	}
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=0711"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", disk, err)
		}
	}
	upper, work := filepath.Join(disk, "upper"), filepath.Join(disk, "work")
	for _, dir := range []string{upper, work, target} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make the disk: %w", err)
		}
	}
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay on %s (%s): %w", target, options, err)
	}
	for _, d := range diskDirs {
		source, dest := filepath.Join(disk, filepath.Base(d.path)), filepath.Join(target, d.path)
		if err := os.Mkdir(source, d.mode); err != nil {
			return fmt.Errorf("make the disk: %w", err)
		}
		if err := os.Chmod(source, d.mode); err != nil { // whatever the umask
			return fmt.Errorf("make the disk: %w", err)
		}
		if err := unix.Mount(source, dest, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s to %s: %w", source, dest, err)
		}
	}
	return nil
}

// removeTree removes the directory and all that is in it. It unmounts what is
// mounted there first, so that it never removes anything through a mount.
func removeTree(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	points, err := mountsBelow(f, dir)
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// mountsBelow reads a mountinfo file, see proc_pid_mountinfo(5), and returns
// the mount points at dir and below, in the order in which they were mounted.
func mountsBelow(mountinfo io.Reader, dir string) ([]string, error) {
	var points []string
	s := bufio.NewScanner(mountinfo)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			return nil, fmt.Errorf("mountinfo: no mount point in %q", s.Text())
		}
		point := unescape(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	return points, s.Err()
}

// unescape undoes mountinfo's octal escapes (\040 is a space).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
