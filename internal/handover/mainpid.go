package handover

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/internal/regular"
)

// ErrTaken says that another container of the unit was first.
var ErrTaken = errors.New("another container of the unit was first")

// WriteMainPID writes a conmon's PID into the unit's mainpid file, as text with
// a newline, in one write(2). If the file is not empty, WriteMainPID leaves it as
// it is and returns ErrTaken: the first container of a unit wins.
func WriteMainPID(f *os.File, pid int) error {
	// Two hooks of one unit may share one open file description, and flock(2)
	// locks that. A record lock belongs to the process (F_SETLK, fcntl(2)).
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock); err != nil {
		if err == unix.EAGAIN || err == unix.EACCES {
			return ErrTaken
		}
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > 0 {
		return ErrTaken
	}
	text := strconv.AppendInt(nil, int64(pid), 10)
	n, err := unix.Pwrite(int(f.Fd()), append(text, '\n'), 0)
	if err == nil && n <= len(text) {
		err = unix.ENOSPC
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return nil
}

// errIncomplete says that a mainpid file is empty or ends in the middle of a PID,
// so that its writer may still complete it.
var errIncomplete = errors.New("incomplete")

// maxMainPID is the size of the longest PID with its newline, in bytes.
const maxMainPID = len("4194304\n")

// parseMainPID parses the contents of a mainpid file: a PID in decimal with a
// newline, or as four bytes in the machine's order. The high byte of a PID is
// always zero, so four bytes are never taken for text. The error is errIncomplete
// for an empty file and for digits without a newline.
func parseMainPID(b []byte) (int, error) {
	if len(b) > maxMainPID {
		return 0, fmt.Errorf("%d bytes are no PID", len(b))
	}
	digits, _ := bytes.CutSuffix(b, []byte("\n"))
	pid, err := strconv.ParseUint(string(digits), 10, 32)
	switch {
	case len(b) == 0 || err == nil && len(digits) == len(b):
		return 0, errIncomplete
	case err != nil && len(b) == 4 && binary.NativeEndian.Uint32(b) < proc.MaxPID:
		pid = uint64(binary.NativeEndian.Uint32(b))
	case err != nil:
		return 0, fmt.Errorf("%q is no PID", b)
	}
	if pid == 0 || pid >= proc.MaxPID {
		return 0, fmt.Errorf("%d is no PID", pid)
	}
	return int(pid), nil
}

// ReadMainPID returns the PID in a mainpid file that this process may read by its name,
// or has open: OpenFile= in systemd.service(5). The error says that there is none yet, or
// that the contents are no PID.
func ReadMainPID(path string) (int, error) {
	b, err := regular.Read(path, int64(maxMainPID))
	if err != nil {
		fd, found := proc.FindDescriptor(os.Getpid(), path)
		if !found {
			return 0, fmt.Errorf("mainpid file: %w", err)
		}
		b = make([]byte, maxMainPID+1)
		n, err := unix.Pread(fd, b, 0)
		if err != nil {
			return 0, fmt.Errorf("mainpid file %s: %w", path, err)
		}
		b = b[:n]
	}
	pid, err := parseMainPID(b)
	if err != nil {
		return 0, fmt.Errorf("mainpid file %s: %w", path, err)
	}
	return pid, nil
}
