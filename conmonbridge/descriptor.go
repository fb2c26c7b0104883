package conmonbridge

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// OpenMainPIDFile opens the unit's mainpid file for writing: by its name where
// the user may (a file that was prepared for the user), else as the descriptor
// that PID 1 opened for the unit (OpenFile= in systemd.service(5)) and podman
// inherited. The latter is copied with pidfd_getfd(2) from whoever still has
// it: an ancestor of this process, conmon, podman or a child of podman. from is
// the PID of that process, 0 for the name.
func (u Unit) OpenMainPIDFile() (f *os.File, from int, err error) {
	if u.MainPIDFile == "" {
		f, err := copyDescriptor(u.conmon, u.listen)
		if err != nil {
			return nil, 0, fmt.Errorf("take descriptor %d (%s) from conmon %d: %w", u.listen, DescriptorName, u.conmon, err)
		}
		return f, u.conmon, nil
	}
	f, openErr := openRegular(u.MainPIDFile)
	if openErr == nil {
		return f, 0, nil
	}
	holders := append(ancestors(), u.conmon)
	if u.podman > 1 {
		holders = append(holders, u.podman)
		// A process that podman left to enter its user namespace answers
		// EPERM; its child inside does not.
		if below, err := children(u.podman); err == nil {
			holders = append(holders, below...)
		}
	}
	for _, pid := range holders {
		fd, ok := descriptorOf(pid, u.MainPIDFile)
		if !ok {
			continue
		}
		if f, err := copyDescriptor(pid, fd); err == nil {
			if f.Name() == u.MainPIDFile {
				return f, pid, nil
			}
			f.Close()
		}
	}
	return nil, 0, fmt.Errorf("open %s: %w, and no descriptor of it in podman or conmon (is it the unit's OpenFile=?)", u.MainPIDFile, openErr)
}

// Stderr returns where errors of this process are read: its standard error or,
// if that is /dev/null, its parent's. crun gives /dev/null to hooks; its own is
// podman's, which leads to the journal of the unit.
func Stderr() *os.File {
	var own, null unix.Stat_t
	if unix.Fstat(2, &own) != nil || unix.Stat(os.DevNull, &null) != nil || own.Rdev != null.Rdev || own.Mode != null.Mode {
		return os.Stderr
	}
	pidfd, err := unix.PidfdOpen(os.Getppid(), 0)
	if err != nil {
		return os.Stderr
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, 2, 0)
	if err != nil {
		return os.Stderr
	}
	return os.NewFile(uintptr(fd), "standard error of the parent")
}

// openRegular opens a regular file for writing, follows no link and blocks on
// nothing.
func openRegular(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := checkRegular(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

var errNotRegular = errors.New("not a regular file")

func checkRegular(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errNotRegular
	}
	return nil
}

// descriptorOf returns the number of the descriptor of a process whose link in
// proc_pid_fd(5) names path.
func descriptorOf(pid int, path string) (int, bool) {
	dir := procPath(pid, "fd")
	d, err := os.Open(dir)
	if err != nil {
		return 0, false
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0, false
	}
	for _, name := range names {
		if link, err := os.Readlink(dir + "/" + name); err == nil && link == path {
			fd, err := strconv.Atoi(name)
			return fd, err == nil
		}
	}
	return 0, false
}

// copyDescriptor copies the descriptor of another process, if it is that of a
// regular file open for writing. The file's name is what the link in
// proc_pid_fd(5) says.
func copyDescriptor(pid, fd int) (*os.File, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return nil, err
	}
	err = checkRegular(own)
	if err == nil {
		var flags int
		if flags, err = unix.FcntlInt(uintptr(own), unix.F_GETFL, 0); err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY {
			err = errors.New("not open for writing")
		}
	}
	var name string
	if err == nil {
		name, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(own))
	}
	if err != nil {
		unix.Close(own)
		return nil, err
	}
	return os.NewFile(uintptr(own), name), nil
}
