package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Server is the manager's end: it receives what clients send to one address. Only one
// goroutine may call Receive at a time.
type Server struct {
	// Files is how many descriptors of a message Receive hands on, at most MaxFiles. It
	// closes those of a message that has more. 0, the default, closes all.
	Files int

	address Address
	source  source
	barrier *os.File // of the last BARRIER=1, to be closed
}

// A Notification is a message that a Server has received.
type Notification struct {
	// Message is what systemd would read: a line that is no assignment is left out. It
	// may be empty.
	Message Message

	// Sender is who sent it, by the kernel's word.
	Sender Sender

	// Files are the descriptors that came with it, which the caller closes. There are
	// none unless Server.Files allows them.
	Files []*os.File
}

// Close closes the descriptors of the notification.
func (n *Notification) Close() {
	if n.Sender.PIDFD != nil {
		n.Sender.PIDFD.Close()
	}
	closeAll(n.Files)
}

// A Sender is the process that sent a message. The kernel fills it in: nobody can name
// another process without CAP_SYS_ADMIN, see Client.As.
type Sender struct {
	// PID is the process's, in this PID namespace. It is 0 if the process is in none that
	// is visible from here, or on another machine. The process may have ended, and its
	// PID may be another's by now: see PIDFD.
	PID int

	// UID and GID are those of the process, in this user namespace. They are -1 on
	// another machine.
	UID, GID int

	// PIDFD refers to the process, even to one that has ended (Linux 6.16). It is nil
	// before Linux 6.5, and, before 6.16, for a process that has ended.
	// Notification.Close closes it.
	PIDFD *os.File

	// CID is the sender's machine, vsock(7). It is 0 for a process on this one.
	CID uint32
}

// ErrTooMany is wrapped by errors about a message with more descriptors than allowed.
var ErrTooMany = errors.New("too many descriptors")

// A source is a socket that datagrams come from, of one address family. receive waits
// until ctx is done. A datagram that was too long for b has n > len(b).
type source interface {
	receive(ctx context.Context, b []byte) (n int, files []*os.File, from Sender, err error)
	Close() error
}

// Listen returns a server for an address, see ParseAddress. A Unix socket that has a path
// is made with the process's umask, and Close removes it. Listen fails with
// unix.EADDRINUSE if the path exists.
func Listen(address string) (*Server, error) {
	a, err := ParseAddress(address)
	if err != nil {
		return nil, err
	}
	listen := listenUnix
	if a.IsVsock() {
		listen = listenVsock
	}
	s := &Server{address: a}
	if s.source, err = listen(a); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	return s, nil
}

// Address returns where the server listens, for NOTIFY_SOCKET.
func (s *Server) Address() Address { return s.address }

// Close stops listening. Whoever waits at a barrier is let go.
func (s *Server) Close() error {
	s.answerBarrier()
	return s.source.Close()
}

// Receive waits for the next message, until ctx is done. All that came with it is read
// and bounded: MaxSize bytes, MaxFiles descriptors.
//
// A message that is not valid is an error that wraps ErrInvalid or ErrTooMany. The
// notification then is not nil: it has the Sender. Any other error is the socket's, and
// final.
//
// Receive answers BARRIER=1 itself, at its next call: so the sender goes on when the
// caller has handled all messages before. Like systemd, it ignores a message that has
// BARRIER=1 and something else, or not one descriptor.
func (s *Server) Receive(ctx context.Context) (*Notification, error) {
	for {
		s.answerBarrier()
		b := make([]byte, MaxSize)
		n, files, from, err := s.source.receive(ctx, b)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("receive from %s: %w", s.address, err)
		}
		notification := &Notification{Sender: from}
		if n > len(b) {
			closeAll(files)
			return notification, fmt.Errorf("%w: %d bytes, more than %d", ErrInvalid, n, MaxSize)
		}
		m, err := parse(b[:n], false)
		if err != nil {
			closeAll(files)
			return notification, err
		}
		if hasBarrier(m) {
			if len(m) == 1 && len(files) == 1 {
				s.barrier = files[0]
			} else {
				closeAll(files)
			}
			notification.Close()
			continue
		}
		notification.Message = m
		if len(files) > s.Files {
			closeAll(files)
			if s.Files > 0 {
				return notification, fmt.Errorf("%w: %d, more than %d", ErrTooMany, len(files), s.Files)
			}
			files = nil
		}
		notification.Files = files
		return notification, nil
	}
}

// hasBarrier reports whether BARRIER=1 is in m.
func hasBarrier(m Message) bool {
	for _, a := range m {
		if a.Name == "BARRIER" && a.Value == "1" {
			return true
		}
	}
	return false
}

// answerBarrier closes the descriptor of the last BARRIER=1, which is the answer.
func (s *Server) answerBarrier() {
	if s.barrier != nil {
		s.barrier.Close()
		s.barrier = nil
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// unixSource is a datagram socket of unix(7).
type unixSource struct {
	socket *os.File
	path   string // to be removed, "" for an abstract name
	oob    []byte
}

// oobSize is room for as many descriptors as a datagram can carry, the credentials and a
// pidfd.
var oobSize = unix.CmsgSpace(4*MaxFiles) + unix.CmsgSpace(unix.SizeofUcred) + unix.CmsgSpace(4)

func listenUnix(a Address) (source, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	s := &unixSource{socket: os.NewFile(uintptr(fd), a.Name), oob: make([]byte, oobSize)}
	// Before bind(2), so that no message comes without its sender.
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err == nil {
		// Linux 6.5. Without it there are no pidfds.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSPIDFD, 1)
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: a.Name})
	}
	if err != nil {
		s.socket.Close()
		return nil, err
	}
	if a.Name[0] == '/' {
		s.path = a.Name
	}
	return s, nil
}

func (s *unixSource) Close() error {
	if s.path != "" {
		if err := unix.Unlink(s.path); err != nil && err != unix.ENOENT {
			s.socket.Close()
			return &fs.PathError{Op: "remove", Path: s.path, Err: err}
		}
	}
	return s.socket.Close()
}

func (s *unixSource) receive(ctx context.Context, b []byte) (n int, files []*os.File, from Sender, err error) {
	var oobn int
	err = readUntil(ctx, s.socket, func(fd int) error {
		// MSG_TRUNC: n is the size of the datagram, even if b is smaller.
		n, oobn, _, _, err = unix.Recvmsg(fd, b, s.oob, unix.MSG_TRUNC|unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		return err
	})
	if err != nil {
		return 0, nil, from, err
	}
	files, from, err = parseControl(s.oob[:oobn])
	return n, files, from, err
}

// readUntil calls receive, which gets something from a socket, until it is done or ctx
// is.
func readUntil(ctx context.Context, socket *os.File, receive func(fd int) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	if err := socket.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		socket.SetReadDeadline(time.Unix(1, 0))
		close(woken)
	})
	defer func() {
		if !stop() {
			<-woken // the next call's deadline must come after
		}
	}()
	var receiveErr error
	err = raw.Read(func(fd uintptr) (done bool) {
		for receiveErr = unix.EINTR; receiveErr == unix.EINTR; {
			receiveErr = receive(int(fd))
		}
		return receiveErr != unix.EAGAIN
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ctx.Err()
	case err != nil:
		return err
	}
	return receiveErr
}

// parseControl returns what the control messages of a datagram carry, cmsg(3).
func parseControl(oob []byte) (files []*os.File, from Sender, err error) {
	from = Sender{UID: -1, GID: -1}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, from, err
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch m.Header.Type {
		case unix.SCM_RIGHTS, unix.SCM_PIDFD:
			fds, err := parseDescriptors(m)
			if err != nil {
				closeAll(files)
				return nil, from, err
			}
			for _, fd := range fds {
				f := os.NewFile(uintptr(fd), "descriptor of a notification")
				switch {
				case f == nil: // the kernel has no pidfd: a negative number
				case m.Header.Type == unix.SCM_PIDFD:
					from.PIDFD = f
				default:
					files = append(files, f)
				}
			}
		case unix.SCM_CREDENTIALS:
			ucred, err := unix.ParseUnixCredentials(&m)
			if err != nil {
				closeAll(files)
				return nil, from, err
			}
			from.PID, from.UID, from.GID = int(ucred.Pid), int(ucred.Uid), int(ucred.Gid)
		}
	}
	return files, from, nil
}

// parseDescriptors returns the descriptors of a control message. A pidfd has the form of
// SCM_RIGHTS, with one descriptor.
func parseDescriptors(m unix.SocketControlMessage) ([]int, error) {
	m.Header.Type = unix.SCM_RIGHTS
	return unix.ParseUnixRights(&m)
}
