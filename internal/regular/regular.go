// Package regular reads regular files that may be anything else: it waits for no
// FIFO or lease, keeps no device open, and trusts no size.
//
// Read is for a path that its caller trusts. ReadBelow and ListBelow are for root,
// in a directory that somebody else, taken for an enemy, may write: they follow
// no symbolic link and enter no other file system.
package regular

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrLink says that a symbolic link, or another file system, is in the way.
	ErrLink = errors.New("a symbolic link or mount in the user's directory is not followed")
	// ErrTooLarge says that a file is larger than it may be.
	ErrTooLarge = errors.New("too large")
	// ErrNotRegular says that a file is a directory, a device, a FIFO or a socket.
	ErrNotRegular = errors.New("not a regular file")
)

// openFlags keep open(2) from waiting, and from changing this process.
const openFlags = unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC

// Read returns the contents of the regular file at path, at most limit bytes. A
// link is followed. The device /dev/null is an empty file: a link to it masks a
// unit (systemd.unit(5)). The error is an fs.PathError: ErrTooLarge,
// ErrNotRegular, or the kernel's.
func Read(path string, limit int64) ([]byte, error) {
	// The os package's files make the Go runtime start its poller, which would be
	// a tenth of what the hook costs every container.
	fd, err := unix.Open(path, unix.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return read(fd, path, limit)
}

// ReadBelow returns the contents of the regular file at path, at most limit bytes.
// The path is below dir: a directory that root has put there, such as a home
// directory, while all that is below belongs to somebody else. The error is
// ErrLink, or one of Read's.
func ReadBelow(dir, path string, limit int64) ([]byte, error) {
	fd, err := openBelow(dir, path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return read(fd, path, limit)
}

// ListBelow returns the names in the directory at path, which is below dir, at
// most limit of them.
func ListBelow(dir, path string, limit int) ([]string, error) {
	fd, err := openBelow(dir, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	names, err := f.Readdirnames(limit)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

// Check returns ErrNotRegular unless the open file is a regular one.
func Check(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ErrNotRegular
	}
	return nil
}

// read reads an open file from its beginning to its end.
func read(fd int, path string, limit int64) ([]byte, error) {
	failed := func(err error) ([]byte, error) { return nil, &fs.PathError{Op: "read", Path: path, Err: err} }
	var st unix.Stat_t
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		return failed(err)
	case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3):
		return nil, nil
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return failed(unix.EISDIR)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return failed(ErrNotRegular)
	}
	b := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return failed(err)
		case n == 0:
			return b, nil
		case int64(len(b)+n) > limit:
			return failed(ErrTooLarge)
		}
		b = slices.Grow(b[:len(b)+n], 1)
	}
}

// openBelow opens a path below dir. The caller closes the descriptor. openat2(2),
// which tells the kernel to follow nothing, is there since Linux 5.6.
func openBelow(dir, path string, flags int) (int, error) {
	below, ok := strings.CutPrefix(filepath.Clean(path), filepath.Clean(dir)+"/")
	if !ok {
		return -1, fmt.Errorf("%s is not below %s", path, dir)
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(at)
	fd, err := unix.Openat2(at, below, &unix.OpenHow{
		Flags: uint64(flags | unix.O_NOFOLLOW | openFlags),
		// Another file system may be one that its owner implements, fuse(4),
		// and never answers.
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case err == unix.ELOOP || err == unix.EXDEV:
		return -1, &fs.PathError{Op: "open", Path: path, Err: ErrLink}
	case err != nil:
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}
