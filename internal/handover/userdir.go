package handover

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

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
	parent, err := openParent(filepath.Join(dir, "mainpid"), true)
	if err != nil {
		return err
	}
	unix.Close(parent)
	// Two units of the user may start at once.
	lock, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return &fs.PathError{Op: "lock", Path: lock.Name(), Err: err}
	}
	mounted, err := isMountPoint(dir)
	if err != nil || mounted {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, userDirOptions); err != nil {
		return fmt.Errorf("mount a tmpfs of the user's own on %s: %w", dir, err)
	}
	return nil
}

// isMountPoint reports whether a file system is mounted on a directory.
func isMountPoint(dir string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, &fs.PathError{Op: "statx", Path: dir, Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
