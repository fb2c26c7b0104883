package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// diskDirs are directories of a machine that are not on its overlay. podman keeps
// images in some of them, on overlays of its own, and overlayfs refuses an overlay
// as its upper layer.
var diskDirs = []struct {
	path string
	mode os.FileMode
}{
	{"/home", 0o755},
	{"/var/lib/containers", 0o755},
	{"/var/tmp", 0o777 | os.ModeSticky},
}

// mountRoot mounts a machine's root file system at target: an overlay over lower.
// Changes go to the directory disk, which has the diskDirs, too.
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

// removeTree removes the directory and everything in it. It first unmounts what
// is mounted at the directory and below, so that it never removes anything
// through a mount.
func removeTree(dir string) error {
	// The kernel's table has the paths without symbolic links.
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(parent, filepath.Base(dir))))
	if err != nil {
		return fmt.Errorf("list the mounts below %s: %w", dir, err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return os.RemoveAll(dir)
}
