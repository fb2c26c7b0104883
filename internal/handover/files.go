package handover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/regular"
)

// Prepare makes a unit's mainpid file, result file and record anew, all empty, and the
// directories above them that are missing (mode 0711). The mainpid file
// belongs to owner, a UID, with mode 0600: to root where podman gets it as a
// descriptor, to the unit's user where the hook opens it by name. The result
// file belongs to root, with mode 0644, the record (mode 0600) too.
//
// Whatever stood in their places is unlinked, never opened. A mainpid file in a
// UserDir is on a file system of that user's own. After an error no file is
// left.
func Prepare(mainPIDFile, resultFile string, owner int) error {
	var err error
	if dir := UserDirOf(mainPIDFile); dir != "" {
		err = mountUserDir(dir)
	}
	if err == nil {
		err = makeFile(mainPIDFile, 0o600, owner)
	}
	if err == nil {
		err = makeFile(resultFile, 0o644, os.Geteuid())
	}
	if err == nil {
		err = makeFile(recordFile(resultFile), 0o600, os.Geteuid())
	}
	if err != nil {
		Forget(mainPIDFile, resultFile) // if Forget fails, it is for the reason in err
	}
	return err
}

// Forget removes what Prepare and PrepareReload made: the files, and their directories
// once they are empty. It is no error when they are gone already.
func Forget(mainPIDFile, resultFile string) error {
	var errs []error
	forgetReload(mainPIDFile, resultFile)
	for _, path := range []string{mainPIDFile, recordFile(resultFile), resultFile} {
		dir, err := openParent(path, false)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = unlink(dir, path)
			unix.Close(dir)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, removeEmpty(filepath.Dir(path)))
	}
	return errors.Join(errs...)
}

// removeEmpty removes the directory at path if it is empty.
func removeEmpty(path string) error {
	if path == "/" {
		return nil
	}
	parent, err := openParent(path, false)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	switch err := unix.Unlinkat(parent, filepath.Base(path), unix.AT_REMOVEDIR); err {
	case nil, unix.ENOENT, unix.ENOTEMPTY, unix.EEXIST, unix.EBUSY:
		return nil
	default:
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
}

// openResult opens the result file for writing, and makes a result file that is
// missing. It refuses one that others than root may write. The file is locked and
// says resultWaiting until it is closed, unless somebody else has locked it.
func openResult(path string) (*os.File, error) {
	f, err := openIn(path, unix.O_WRONLY|unix.O_CREAT, 0o644)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = regular.ErrNotRegular
	case int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0:
		err = errors.New("others may write it")
	case st.Nlink != 1:
		err = errors.New("has a second name (hard link)")
	case st.Size > 0: // an empty file keeps the page that Prepare reserved
		err = f.Truncate(0)
	}
	if err == nil && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		_, err = f.WriteAt([]byte(resultWaiting), 0)
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "open result file", Path: path, Err: err}
	}
	return f, nil
}

// openMainPID opens the mainpid file for reading.
func openMainPID(path string) (*os.File, error) {
	f, err := openIn(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	if err := regular.Check(int(f.Fd())); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "open mainpid file", Path: path, Err: err}
	}
	return f, nil
}

// openIn opens a file in a directory that only root can change. It follows no
// link and waits for no FIFO, device or lease.
func openIn(path string, flags int, mode uint32) (*os.File, error) {
	dir, err := openParent(path, false)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, filepath.Base(path), flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: noLink(err)}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// makeFile makes a new, empty file in the place of whatever had that name.
func makeFile(path string, mode uint32, owner int) error {
	dir, err := openParent(path, true)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unlink(dir, path); err != nil {
		return err
	}
	fd, err := unix.Openat(dir, filepath.Base(path), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err == nil {
		defer unix.Close(fd)
		// openat(2) has applied the umask to the mode.
		if err = unix.Fchmod(fd, mode); err == nil {
			err = unix.Fchown(fd, owner, -1)
		}
		// Reserve a page, because the file system may be full when the file is
		// written. Some file systems cannot.
		if e := unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 1); err == nil && e != unix.EOPNOTSUPP {
			err = e
		}
	}
	if err != nil {
		return &fs.PathError{Op: "make", Path: path, Err: err}
	}
	return nil
}

// unlink removes a file, or whatever is no directory, from the directory dir.
func unlink(dir int, path string) error {
	err := unix.Unlinkat(dir, filepath.Base(path), 0)
	if err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// openParent opens the directory of a file, one component after the other from
// the root, and follows no link. Each directory must belong to root or to this
// user. Nobody else may be able to write it, unless it has the sticky bit: so
// nobody replaces what is in it. With create, openParent makes missing directories,
// with mode 0711.
func openParent(path string, create bool) (int, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return -1, fmt.Errorf("path %q: is not absolute or not clean: it must begin with a slash and have no ., .., double or trailing slash", path)
	}
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	names := strings.Split(path[1:], "/")
	for i, name := range names[:len(names)-1] {
		next, err := openStep(dir, name, create)
		unix.Close(dir)
		if err != nil {
			at := "/" + strings.Join(names[:i+1], "/")
			return -1, &fs.PathError{Op: "open directory", Path: at, Err: noLink(err)}
		}
		dir = next
	}
	return dir, nil
}

// openStep opens one directory in another one.
func openStep(dir int, name string, create bool) (int, error) {
	const flags = unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, unix.O_PATH|flags, 0)
	if err == unix.ENOENT && create {
		const mode = 0o711
		if err := unix.Mkdirat(dir, name, mode); err != nil && err != unix.EEXIST {
			return -1, err
		}
		// mkdirat(2) has applied the umask to the mode.
		if fd, err = unix.Openat(dir, name, unix.O_RDONLY|flags, 0); err == nil {
			err = unix.Fchmod(fd, mode)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		err = fmt.Errorf("belongs to UID %d, who could change what is in it", st.Uid)
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
		err = fmt.Errorf("others may change what is in it (mode %04o)", st.Mode&0o7777)
	default:
		return fd, nil
	}
	unix.Close(fd)
	return -1, err
}

// noLink puts ELOOP into words: open(2) returns it for a link with O_NOFOLLOW.
func noLink(err error) error {
	if err == unix.ELOOP {
		return errors.New("a symbolic link is not followed")
	}
	return err
}
