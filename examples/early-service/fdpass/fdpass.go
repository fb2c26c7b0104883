// Package fdpass hands open files to another process, together with a line of text that
// says what they are: SCM_RIGHTS in unix(7). Both processes take part. A reload of a unit
// has no use for that: it copies the sockets of a conmon that takes no part, by
// pidfd_getfd(2).
package fdpass

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// MaxFiles is how many files can go with one line: SCM_MAX_FD, see unix(7).
const MaxFiles = 253

// Send sends a line without its line break, and at most MaxFiles files, such as a
// *net.UnixListener. The files stay open in this process.
func Send(conn *net.UnixConn, line string, files ...syscall.Conn) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("pass %d files: at most %d can go with one message", len(files), MaxFiles)
	}
	return withDescriptors(files, nil, func(fds []int) error {
		var rights []byte
		if len(fds) > 0 {
			rights = syscall.UnixRights(fds...)
		}
		b := []byte(line + "\n")
		n, _, err := conn.WriteMsgUnix(b, rights, nil)
		if err == nil && n < len(b) {
			_, err = conn.Write(b[n:])
		}
		return err
	})
}

// withDescriptors calls use with the descriptors of files, which stay open meanwhile.
// (os.File.Fd would make them blocking for all who have them.)
func withDescriptors(files []syscall.Conn, fds []int, use func([]int) error) (err error) {
	if len(files) == 0 {
		return use(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) { err = withDescriptors(files[1:], append(fds, int(fd)), use) })
	return errors.Join(err, controlErr)
}

// Receive receives what Send has sent: a line of at most limit bytes, and files that the
// caller closes. It fails with io.EOF if the other process has sent nothing and closed
// the connection.
func Receive(conn *net.UnixConn, limit int) (line string, files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	b := make([]byte, limit+1)
	rights := make([]byte, syscall.CmsgSpace(4*MaxFiles))
	for n := 0; ; {
		read, size, flags, _, err := conn.ReadMsgUnix(b[n:], rights)
		received, parseErr := parse(rights[:size])
		files = append(files, received...)
		if n += read; errors.Is(err, io.EOF) && n > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err = errors.Join(err, parseErr); err != nil {
			return "", files, err
		}
		if flags&syscall.MSG_CTRUNC != 0 {
			return "", files, errors.New("some of the files did not arrive: this process may not have so many")
		}
		if i := bytes.IndexByte(b[:n], '\n'); i >= 0 && i == n-1 {
			return string(b[:i]), files, nil
		} else if i >= 0 || n == len(b) {
			return "", files, fmt.Errorf("received %.40q, not one line of at most %d bytes", b[:n], limit)
		}
	}
}

// parse returns the files in control messages.
func parse(rights []byte) (files []*os.File, err error) {
	messages, err := syscall.ParseSocketControlMessage(rights)
	for _, m := range messages {
		fds, parseErr := syscall.ParseUnixRights(&m)
		err = errors.Join(err, parseErr)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, err
}
