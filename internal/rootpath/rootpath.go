// Package rootpath looks at paths that a user's file names, as root. It looks at
// a path only if nobody but root can change what is there, and it asks a file
// system nothing that a user may implement and leave unanswered, see fuse(4).
package rootpath

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// never are the directories below which nothing is looked at, whoever owns it:
// what is in /proc/PID/root or /proc/PID/fd is whatever that process has there.
var never = []string{"/proc", "/sys", "/dev"}

// judge returns an error if the path is not to be looked at, by its text alone.
func judge(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%q is not an absolute path without . and ..", path)
	}
	for _, dir := range never {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return fmt.Errorf("%s is below %s", path, dir)
		}
	}
	return nil
}

// file is an open file that nothing has been asked of but who owns it.
type file struct {
	fd   int // of O_PATH
	path string
	stat unix.Statx_t
}

func (f file) is(format uint16) bool { return f.stat.Mode&unix.S_IFMT == format }

// walk opens a path one name at a time, from / on. It follows links, which are
// root's as all else on the way is.
func walk(path string) (f file, err error) {
	const maxLinks = 40
	for range maxLinks + 1 {
		var link string
		if f, link, err = walkToLink(path); err != nil || link == "" {
			return f, err
		}
		path = link
	}
	return f, &fs.PathError{Op: "open", Path: path, Err: unix.ELOOP}
}

// walkToLink walks to the end of the path, or to the first link on it: then it
// returns the path with the link's target in place of the link.
func walkToLink(path string) (_ file, link string, err error) {
	if err := judge(path); err != nil {
		return file{}, "", err
	}
	at, err := openAt(file{fd: unix.AT_FDCWD}, "/", "/")
	if err != nil {
		return file{}, "", err
	}
	rootMount := at.stat.Mnt_id
	for rest := strings.TrimPrefix(path, "/"); rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next, err := openAt(at, name, filepath.Join(at.path, name))
		crosses := err == nil && next.stat.Mnt_id != at.stat.Mnt_id && next.stat.Mnt_id != rootMount
		unix.Close(at.fd)
		if at = next; err != nil {
			return file{}, "", err
		}
		if crosses {
			err = judgeMount(at)
		}
		if err == nil && at.is(unix.S_IFLNK) {
			target := make([]byte, unix.PathMax)
			n, readErr := unix.Readlinkat(at.fd, "", target)
			if link = string(target[:max(n, 0)]); !filepath.IsAbs(link) {
				link = filepath.Join(filepath.Dir(at.path), link)
			}
			link, err = filepath.Join(link, rest), readErr
		}
		if err != nil || link != "" {
			unix.Close(at.fd)
			return file{}, link, err
		}
	}
	return at, "", nil
}

// openAt opens a name in a directory and judges who may change it.
func openAt(dir file, name, path string) (file, error) {
	f := file{path: path}
	var err error
	if f.fd, err = unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return f, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	err = unix.Statx(f.fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE|unix.STATX_MODE|unix.STATX_UID|unix.STATX_SIZE|unix.STATX_MNT_ID, &f.stat)
	switch {
	case err != nil:
		err = &fs.PathError{Op: "stat", Path: path, Err: err}
	case f.stat.Uid != 0:
		err = fmt.Errorf("%s belongs to UID %d, not to root", path, f.stat.Uid)
	case !f.is(unix.S_IFLNK) && f.stat.Mode&0o022 != 0:
		err = fmt.Errorf("%s can be changed by others than root", path)
	}
	if err != nil {
		unix.Close(f.fd)
	}
	return f, err
}

// judgeMount returns an error if the file system at f may be a user's or is the
// kernel's view of processes. The kernel has mount IDs in statx(2) since Linux
// 5.8; before that nothing counts as a mount.
func judgeMount(f file) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		found := uint64(m.ID) == f.stat.Mnt_id
		return !found, found
	})
	switch {
	case err != nil:
		return err
	case len(mounts) == 0:
		return fmt.Errorf("%s is on a mount that is gone", f.path)
	}
	if kind := mounts[0].FSType; strings.HasPrefix(kind, "fuse") || kind == "proc" {
		return fmt.Errorf("%s is on a file system of the type %s", f.path, kind)
	}
	return nil
}

// Stat returns what kind of file is at the path, and its permissions. An error
// is fs.ErrNotExist or says why the path was not looked at.
func Stat(path string) (fs.FileMode, error) {
	f, err := walk(path)
	if err != nil {
		return 0, err
	}
	unix.Close(f.fd)
	mode := fs.FileMode(f.stat.Mode & 0o777)
	if !f.is(unix.S_IFREG) {
		mode |= fs.ModeIrregular
	}
	return mode, nil
}

// open opens the file or directory at the path for reading.
func open(path string, format uint16, kind string) (*os.File, error) {
	f, err := walk(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(f.fd)
	if !f.is(format) {
		return nil, fmt.Errorf("%s is not a %s", path, kind)
	}
	opened, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.fd))
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.Unwrap(err)}
	}
	return opened, nil
}

// ErrTooLarge says that a file has more bytes, or a directory more names, than
// are to be read.
var ErrTooLarge = errors.New("too large")

// ReadFile reads the regular file at the path.
func ReadFile(path string, limit int) ([]byte, error) {
	f, err := open(path, unix.S_IFREG, "regular file")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(b) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d KiB", path, ErrTooLarge, limit>>10)
	}
	return b, err
}

// ReadDir returns the names in the directory at the path.
func ReadDir(path string, limit int) ([]string, error) {
	f, err := open(path, unix.S_IFDIR, "directory")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(limit + 1)
	if err == nil && len(names) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d files", path, ErrTooLarge, limit)
	}
	if err == io.EOF {
		err = nil
	}
	return names, err
}
