package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// This file has AF_VSOCK, vsock(7): messages from a virtual machine to its host. A
// datagram is a message, as on a Unix socket. Where the kernel has no datagrams, a
// connection is a message: the sender shuts it down, and the receiver closes it when it
// has read all. There are neither descriptors nor credentials.

// vsockSocket opens a socket for an address. Like systemd, "vsock" is datagrams, else
// sequenced packets, else a stream: the first that this kernel has.
func vsockSocket(a Address) (fd, kind int, err error) {
	kinds := map[string][]int{
		"vsock":           {unix.SOCK_DGRAM, unix.SOCK_SEQPACKET, unix.SOCK_STREAM},
		"vsock-dgram":     {unix.SOCK_DGRAM},
		"vsock-seqpacket": {unix.SOCK_SEQPACKET},
		"vsock-stream":    {unix.SOCK_STREAM},
	}[a.Network]
	for _, kind := range kinds {
		fd, err = unix.Socket(unix.AF_VSOCK, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err == nil {
			return fd, kind, nil
		}
		if !notSupported(err) {
			break
		}
	}
	return -1, 0, noVsock(os.NewSyscallError("socket", err))
}

// notSupported reports whether the kernel has no such socket: EOPNOTSUPP and its kin,
// and ENODEV for datagrams, which only some hypervisors have.
func notSupported(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOTSUP, unix.EAFNOSUPPORT, unix.EPFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT, unix.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// noVsock says what an error of the kernel's means.
func noVsock(err error) error {
	if notSupported(err) {
		return fmt.Errorf("this kernel has no such vsock: %w", err)
	}
	return err
}

// transmitVsock sends a message to a vsock address. With a connection, it waits until
// the manager has read the message.
func transmitVsock(ctx context.Context, a Address, datagram []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fd, kind, err := vsockSocket(a)
	if err != nil {
		return err
	}
	if err := bindPrivileged(fd); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("bind", err)
	}
	err = unix.Connect(fd, &unix.SockaddrVM{CID: a.CID, Port: a.Port})
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return noVsock(os.NewSyscallError("connect", err))
	}
	socket := os.NewFile(uintptr(fd), a.String())
	defer socket.Close()
	stop := context.AfterFunc(ctx, func() { socket.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	if err := awaitConnected(raw); err != nil {
		return noVsock(err)
	}
	if n, err := socket.Write(datagram); err != nil {
		return err
	} else if n < len(datagram) {
		return io.ErrShortWrite
	}
	if kind == unix.SOCK_DGRAM {
		return nil
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return os.NewSyscallError("shutdown", err)
	}
	switch n, err := socket.Read(make([]byte, 1)); {
	case err == io.EOF:
		return nil
	case err != nil:
		return err
	default:
		return fmt.Errorf("manager sent %d bytes instead of an end", n)
	}
}

// bindPrivileged gives a socket a port below 1024, if this process may. The manager
// sees by that that root has sent the message.
func bindPrivileged(fd int) error {
	for port := uint32(1023); port > 0; port-- {
		switch err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err {
		case unix.EADDRINUSE:
		case unix.EACCES, unix.EPERM:
			return nil
		default:
			return err
		}
	}
	return unix.EADDRINUSE
}

// awaitConnected waits for a connect(2) that is in progress.
func awaitConnected(raw interface {
	Write(func(fd uintptr) (done bool)) error
}) error {
	var connectErr error
	err := raw.Write(func(fd uintptr) (done bool) {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		if err == nil {
			// The socket may be woken before it is connected.
			if _, err = unix.Getpeername(int(fd)); err == unix.ENOTCONN {
				return false
			}
		}
		connectErr = os.NewSyscallError("connect", err)
		return true
	})
	if err != nil {
		return err
	}
	return connectErr
}

// listenVsock returns the source of a vsock address.
func listenVsock(a Address) (source, error) {
	fd, kind, err := vsockSocket(a)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: a.CID, Port: a.Port}); err != nil {
		unix.Close(fd)
		return nil, noVsock(os.NewSyscallError("bind", err))
	}
	if kind == unix.SOCK_DGRAM {
		return &datagramSource{os.NewFile(uintptr(fd), a.String())}, nil
	}
	return listenConnections(fd, a.String())
}

// senderAt is the sender at an address. Only a machine is known of it.
func senderAt(from unix.Sockaddr) Sender {
	s := Sender{UID: -1, GID: -1}
	if vm, ok := from.(*unix.SockaddrVM); ok {
		s.CID = vm.CID
	}
	return s
}

// A datagramSource receives datagrams that carry nothing but bytes.
type datagramSource struct{ socket *os.File }

func (s *datagramSource) Close() error { return s.socket.Close() }

func (s *datagramSource) receive(ctx context.Context, b []byte) (n int, files []*os.File, from Sender, err error) {
	err = readUntil(ctx, s.socket, func(fd int) error {
		var sender unix.Sockaddr
		var err error
		n, sender, err = unix.Recvfrom(fd, b, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		from = senderAt(sender)
		return err
	})
	return n, nil, from, err
}

// maxConnections is how many connections a connectionSource reads at the same time.
// As many again wait in the kernel's queue, and the kernel refuses more.
const maxConnections = 64

// A connectionSource receives connections, each of which is a message. None of them can
// keep another waiting: each is read by a goroutine of its own, for Timeout at most.
type connectionSource struct {
	listener *os.File
	messages chan connection
	failed   chan error    // why there are no more connections
	closed   chan struct{} // by Close
	running  sync.WaitGroup
	once     sync.Once
}

// A connection is one message, all of it, or one byte more than MaxSize.
type connection struct {
	text []byte
	from Sender
}

// listenConnections takes the connections to a socket that is bound.
func listenConnections(fd int, name string) (source, error) {
	if err := unix.Listen(fd, maxConnections); err != nil {
		unix.Close(fd)
		return nil, noVsock(os.NewSyscallError("listen", err))
	}
	s := &connectionSource{
		listener: os.NewFile(uintptr(fd), name),
		messages: make(chan connection),
		failed:   make(chan error, 1),
		closed:   make(chan struct{}),
	}
	s.running.Add(1)
	go s.accept()
	return s, nil
}

func (s *connectionSource) Close() (err error) {
	s.once.Do(func() {
		close(s.closed)
		err = s.listener.Close()
		s.running.Wait()
	})
	return err
}

func (s *connectionSource) receive(ctx context.Context, b []byte) (n int, files []*os.File, from Sender, err error) {
	from = Sender{UID: -1, GID: -1}
	if err := ctx.Err(); err != nil {
		return 0, nil, from, err
	}
	select {
	case c := <-s.messages:
		copy(b, c.text)
		return len(c.text), nil, c.from, nil
	case err := <-s.failed:
		s.failed <- err
		return 0, nil, from, err
	case <-ctx.Done():
		return 0, nil, from, ctx.Err()
	}
}

// accept takes connections until the listener is closed.
func (s *connectionSource) accept() {
	defer s.running.Done()
	free := make(chan struct{}, maxConnections)
	for {
		select {
		case free <- struct{}{}:
		case <-s.closed:
			s.failed <- os.ErrClosed
			return
		}
		var fd int
		var from Sender
		err := readUntil(context.Background(), s.listener, func(listener int) error {
			var sender unix.Sockaddr
			var err error
			fd, sender, err = unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			from = senderAt(sender)
			return err
		})
		switch {
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.ECONNRESET):
			<-free // the sender has gone
			continue
		case err != nil:
			select {
			case <-s.closed:
				err = os.ErrClosed
			default:
			}
			s.failed <- err
			return
		}
		s.running.Add(1)
		go func() {
			defer func() { <-free; s.running.Done() }()
			s.read(os.NewFile(uintptr(fd), "connection"), from)
		}()
	}
}

// read hands on the message of a connection, and then closes it. So the sender, who
// waits for that, knows that it was received. A connection that its sender breaks, does
// not shut down in time, or gives up before it sends anything is no message.
func (s *connectionSource) read(socket *os.File, from Sender) {
	defer socket.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.closed:
			socket.SetDeadline(time.Unix(1, 0))
		case <-stop:
		}
	}()
	socket.SetDeadline(time.Now().Add(Timeout))
	// Room for all: what does not fit of a sequenced packet is lost.
	text := make([]byte, MaxSize+1)
	n, err := io.ReadFull(socket, text)
	if n == 0 || err != nil && err != io.ErrUnexpectedEOF {
		return
	}
	select {
	case s.messages <- connection{text[:n], from}:
	case <-s.closed:
	}
}
