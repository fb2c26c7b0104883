package sdnotify

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Prepared is one message with a socket of its own, both made in advance. To send it
// takes neither memory of this process nor a new descriptor. So a daemon can still say
// Watchdog, Errno or Stopping when it can make nothing any more. Several goroutines may
// use it at the same time.
type Prepared struct {
	datagram []byte
	control  []byte
	orSelf   bool

	mu     sync.Mutex
	socket int // -1 once closed

	// The kernel gets pointers to these: as variables of Send they would be allocated.
	name    unix.SockaddrUnix
	polling [1]unix.PollFd
}

// Prepare returns a message that is ready to be sent, to be closed by the caller. It
// fails for what Send fails for, if there is no listener at the manager's socket, and
// with ErrAddress for a vsock address, to which each message takes a new socket.
func (c *Client) Prepare(assignments ...Assignment) (*Prepared, error) {
	if c == nil {
		return nil, ErrNoSocket
	}
	m := Message(assignments)
	datagram, err := m.Format()
	if err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	if c.address.IsVsock() {
		return nil, fmt.Errorf("prepare for %s: %w", c.address, ErrAddress)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("prepare for %s: %w", c.address, os.NewSyscallError("socket", err))
	}
	p := &Prepared{datagram: datagram, orSelf: c.orSelf, socket: fd, name: unix.SockaddrUnix{Name: c.address.Name}}
	if c.as != nil {
		p.control = unix.UnixCredentials(c.as)
	}
	p.polling[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	if err := unix.Connect(fd, &p.name); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("prepare for %s: %w", c.address, os.NewSyscallError("connect", err))
	}
	return p, nil
}

// Send sends the message, without allocating. While the manager's queue is full it
// waits, at most Timeout, and then fails with unix.ETIMEDOUT. If nobody listens any more
// it fails with unix.ECONNREFUSED or unix.ENOENT, and after Close with os.ErrClosed.
// Errors are not wrapped, which would allocate.
func (p *Prepared) Send() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.socket < 0 {
		return os.ErrClosed
	}
	err := p.transmit(p.control)
	if err == unix.EPERM && p.orSelf {
		err = p.transmit(nil)
	}
	return err
}

func (p *Prepared) transmit(control []byte) error {
	start, reconnected := time.Now(), false
	for {
		_, err := unix.SendmsgN(p.socket, p.datagram, control, nil, unix.MSG_NOSIGNAL)
		switch err {
		case unix.EAGAIN:
			left := Timeout - time.Since(start)
			if left <= 0 {
				return unix.ETIMEDOUT
			}
			if _, err := unix.Poll(p.polling[:], int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
				return err
			}
		case unix.EINTR:
		case unix.ECONNREFUSED, unix.ENOTCONN:
			// The manager may have a new socket at the same address.
			if reconnected {
				return err
			}
			reconnected = true
			if err := unix.Connect(p.socket, &p.name); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// Close gives the socket back. A second Close does nothing.
func (p *Prepared) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.socket < 0 {
		return nil
	}
	fd := p.socket
	p.socket = -1
	return os.NewSyscallError("close", unix.Close(fd))
}
