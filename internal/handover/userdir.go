package handover

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// UserDir returns the directory below which a user's units have their mainpid files.
// It is a file system of the user's own: whatever the user writes into a mainpid
// file, and whatever they keep open of it, takes no room from other users' units.
func UserDir(uid int) string { return filepath.Join(Dir, usersName, strconv.Itoa(uid)) }

// usersName is no name of a unit, which has a suffix such as ".service".
const usersName = "users"

// What the file system of a user's mainpid files may hold: a page for each of 1,000
// units on most machines, and two inodes. The attributes that a user may set on their
// own files (xattr(7)) take inodes' room.
const userDirOptions = "mode=0711,size=4m,nr_inodes=4k"

// UserDirOf returns the UserDir that a mainpid file belongs in, "" if it is elsewhere.
func UserDirOf(mainPIDFile string) string {
	dir := filepath.Dir(filepath.Dir(mainPIDFile))
	uid, err := strconv.ParseUint(filepath.Base(dir), 10, 32)
	if err != nil || dir != UserDir(int(uid)) {
		return ""
	}
	return dir
}

// mountUserDir mounts a file system on a UserDir, if none is mounted there. It stays
// mounted, so that what the user keeps open of it counts at the next start, too.
func mountUserDir(dir string) error {
	// Two units of the user may start at once.
	lock, err := lockUserDirs(filepath.Join(dir, "mainpid"), true)
	if err != nil {
		return err
	}
	defer lock.Close()
	mounted, err := isMountPoint(dir)
	if err != nil || mounted {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, userDirOptions+labelOption()); err != nil {
		return fmt.Errorf("mount a tmpfs of the user's own on %s: %w", dir, err)
	}
	return nil
}

// labelOption returns the mount option with which a file system has the SELinux label of
// Dir, "" without SELinux.
func labelOption() string {
	label := make([]byte, 4096)
	n, err := unix.Lgetxattr(Dir, "security.selinux", label)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(",rootcontext=%q", strings.TrimRight(string(label[:n]), "\x00"))
}

// lockUserDirs keeps all other programs from mounting and unmounting UserDirs, until the
// file is closed. The directory of path must be root's; with create it is made.
func lockUserDirs(path string, create bool) (*os.File, error) {
	parent, err := openParent(path, create)
	if err != nil {
		return nil, err
	}
	unix.Close(parent)
	lock, err := os.Open(filepath.Join(Dir, usersName))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		lock.Close()
		return nil, &fs.PathError{Op: "lock", Path: lock.Name(), Err: err}
	}
	return lock, nil
}

// isMountPoint reports whether a file system is mounted on a directory.
func isMountPoint(dir string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, &fs.PathError{Op: "statx", Path: dir, Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Users returns the UIDs that have a UserDir.
func Users() []int {
	entries, _ := os.ReadDir(filepath.Join(Dir, usersName))
	var uids []int
	for _, e := range entries {
		if uid, err := strconv.ParseUint(e.Name(), 10, 32); err == nil && e.IsDir() {
			uids = append(uids, int(uid))
		}
	}
	return uids
}

// UnitsOf returns the names in a user's UserDir: units that have a mainpid file.
func UnitsOf(uid int) []string {
	entries, _ := os.ReadDir(UserDir(uid))
	var units []string
	for _, e := range entries {
		units = append(units, e.Name())
	}
	return units
}

// RemoveUserDir unmounts and removes a user's UserDir, which must be empty. It fails as
// long as a process keeps a file of it open.
func RemoveUserDir(uid int) error {
	dir := UserDir(uid)
	lock, err := lockUserDirs(dir, false)
	if err != nil {
		return err
	}
	defer lock.Close()
	if units := UnitsOf(uid); len(units) > 0 {
		return &fs.PathError{Op: "remove", Path: dir, Err: unix.ENOTEMPTY}
	}
	mounted, err := isMountPoint(dir)
	if err == nil && mounted {
		if err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
			err = &fs.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
	if err != nil {
		return err
	}
	return removeEmpty(dir)
}
