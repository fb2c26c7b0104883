package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// writeFile writes a file whole, or leaves the old file. Root asked for the file, and no
// other user may lead it elsewhere. So each directory on the path must be root's and
// writable by nobody else, or have the sticky bit like /tmp. No link is followed. An
// old file must be a regular file of root's; its mode is kept. A new file has mode 0644.
func writeFile(path string, data []byte) error {
	absolute, err := absolutePath(path)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	dir, err := openDirectory(filepath.Dir(absolute))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer unix.Close(dir)
	name := filepath.Base(absolute)
	mode, err := replaceable(dir, name)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	temporary := "." + name + "." + rand.Text()
	fd, err := unix.Openat(dir, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: make a temporary file beside it: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), temporary)
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = unix.Renameat(dir, temporary, dir, name)
	}
	if err != nil {
		unix.Unlinkat(dir, temporary, 0)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// writable fails if writeFile would refuse to replace the file.
func writable(path string) error {
	dir, err := openDirectory(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	_, err = replaceable(dir, filepath.Base(path))
	return err
}

// absolutePath is filepath.Abs with the kernel's path of the working directory, which
// has no links.
func absolutePath(path string) (string, error) {
	if filepath.IsAbs(path) {
		return filepath.Clean(path), nil
	}
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Getcwd(buffer)
	if err != nil {
		return "", fmt.Errorf("find the working directory: %w", err)
	}
	return filepath.Join(strings.TrimSuffix(string(buffer[:n]), "\x00"), path), nil
}

// errElsewhere is the advice for a directory that somebody else can change.
var errElsewhere = errors.New("name a file in a directory of root's, such as /root")

// openDirectory opens a directory step by step, from the root directory on. It fails for
// a link, and for a directory that a user other than root can change.
func openDirectory(path string) (int, error) {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	at := "/"
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if name == "" {
			break // the root itself
		}
		at = filepath.Join(at, name)
		next, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOTDIR && isLink(dir, name) {
			err = errors.New("is a symbolic link: name the directory that it leads to")
		}
		unix.Close(dir)
		if err != nil {
			return -1, fmt.Errorf("%s: %w", at, err)
		}
		dir = next
		if err := onlyRoots(dir); err != nil {
			unix.Close(dir)
			return -1, fmt.Errorf("%s: %w", at, err)
		}
	}
	return dir, nil
}

func isLink(dir int, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// onlyRoots fails if a user other than root can replace files in a directory.
func onlyRoots(dir int) error {
	var st unix.Stat_t
	err := unix.Fstat(dir, &st)
	switch {
	case err != nil:
		return err
	case st.Uid != 0:
		return fmt.Errorf("belongs to UID %d, who could change where the file goes: %w", st.Uid, errElsewhere)
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
		return fmt.Errorf("others may write in it (mode %04o): %w", st.Mode&0o7777, errElsewhere)
	}
	return nil
}

// replaceable returns the mode of the file with that name, or of a new one. It fails if
// the name is taken by anything but a regular file of root's.
func replaceable(dir int, name string) (os.FileMode, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT:
		return 0o644, nil
	case err != nil:
		return 0, err
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return 0, errors.New("is a symbolic link: remove it, or name another file")
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return 0, errors.New("is not a regular file: name another one")
	case st.Uid != 0:
		return 0, fmt.Errorf("belongs to UID %d: remove it, or name another file", st.Uid)
	}
	return os.FileMode(st.Mode & 0o777), nil
}
