// Package hostile reads files as root that somebody else may have written, who
// is taken for an enemy: no symbolic link is followed, no FIFO or lease is
// waited for, no device is opened for longer than to see that it is one, and no
// size is trusted.
package hostile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLink says that a symbolic link, or another file system, is in the way.
var ErrLink = errors.New("a symbolic link or mount in the user's directory is not followed")

// ErrTooLarge says that a file is larger than it may be.
var ErrTooLarge = errors.New("too large")

// ReadFile reads the regular file at path, which is below dir: a directory that
// root has put there, as a home directory is, while all that is below belongs to
// somebody else. It fails with fs.ErrNotExist, ErrLink or ErrTooLarge, or with an
// error of the file system.
func ReadFile(dir, path string, limit int64) ([]byte, error) {
	f, err := open(dir, path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("is not a regular file")}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = &fs.PathError{Op: "read", Path: path, Err: ErrTooLarge}
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// ReadDir returns the names in the directory at path, below dir, at most limit
// of them.
func ReadDir(dir, path string, limit int) ([]string, error) {
	f, err := open(dir, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(limit)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

// open opens a path below dir. openat2(2), which tells the kernel to follow
// nothing, is there since Linux 5.6.
func open(dir, path string, flags int) (*os.File, error) {
	below, ok := strings.CutPrefix(filepath.Clean(path), filepath.Clean(dir)+"/")
	if !ok {
		return nil, fmt.Errorf("%s is not below %s", path, dir)
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(at)
	fd, err := unix.Openat2(at, below, &unix.OpenHow{
		Flags: uint64(flags | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC),
		// Another file system may be one that its owner implements, fuse(4),
		// and never answers.
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case err == unix.ELOOP || err == unix.EXDEV:
		return nil, &fs.PathError{Op: "open", Path: path, Err: ErrLink}
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
