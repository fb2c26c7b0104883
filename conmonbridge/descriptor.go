package conmonbridge

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/internal/regular"
)

// OpenMainPIDFile opens the unit's mainpid file for writing. It opens the file by
// its name if the user may: a file that was prepared for the user. Else it copies,
// with pidfd_getfd(2), the descriptor that PID 1 opened for the unit (OpenFile= in
// systemd.service(5)), from a process that has inherited it: an ancestor of this
// process, conmon, podman or a child of podman. from is the PID of that process, 0
// for the name.
func (d Destination) OpenMainPIDFile() (f *os.File, from int, err error) {
	if d.MainPIDFile == "" {
		f, err := copyDescriptor(d.source, d.listen)
		if err != nil {
			return nil, 0, fmt.Errorf("take descriptor %d (%s) from conmon %d: %w", d.listen, handover.DescriptorName, d.source, err)
		}
		return f, d.source, nil
	}
	f, openErr := openRegular(d.MainPIDFile)
	if openErr == nil {
		return f, 0, nil
	}
	holders := append(proc.Ancestors(), d.source)
	if d.podman > 1 {
		holders = append(holders, d.podman)
		// A podman that has forked to enter its user namespace is outside of it,
		// so pidfd_getfd(2) fails with EPERM. Its child is inside.
		if below, err := proc.Children(d.podman); err == nil {
			holders = append(holders, below...)
		}
	}
	for _, pid := range holders {
		fd, ok := proc.FindDescriptor(pid, d.MainPIDFile)
		if !ok {
			continue
		}
		if f, err := copyDescriptor(pid, fd); err == nil {
			if f.Name() == d.MainPIDFile {
				return f, pid, nil
			}
			f.Close()
		}
	}
	return nil, 0, fmt.Errorf("open %s: %w, and no descriptor of it in podman or conmon (is it the unit's OpenFile=?)", d.MainPIDFile, openErr)
}

// Stderr returns the standard error of this process or, if that is /dev/null, of
// its parent. crun gives /dev/null to hooks, and has podman's standard error
// itself, which leads to the unit's journal.
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

// openRegular opens a regular file for writing. It follows no link and waits for
// nothing.
func openRegular(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := regular.Check(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
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
	err = regular.Check(own)
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
