package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Timeout bounds Send, SendFiles and Barrier if their context has no deadline. So a
// manager that does not read its socket cannot keep its services waiting for ever.
const Timeout = 5 * time.Second

// MaxFiles is how many descriptors a datagram can carry: SCM_MAX_FD, see
// unix(7).
const MaxFiles = 253

var (
	// ErrNoSocket says that there is no manager: NOTIFY_SOCKET is not set, or is
	// empty. A program that people also run by hand ignores this error.
	ErrNoSocket = errors.New("NOTIFY_SOCKET is not set")

	// ErrAddress is wrapped by errors about an address that is none, is too long, or
	// is of a kind that is not supported.
	ErrAddress = errors.New("unsupported address")
)

// A Client sends messages to one manager. It keeps no socket open between messages, so
// it need not be closed. Several goroutines may use it at the same time.
//
// The methods of a nil Client fail with ErrNoSocket, and its As and OrSelf return nil.
// So a program that also runs without a manager need only look for ErrNoSocket when it
// sends.
type Client struct {
	address Address
	as      *unix.Ucred // nil for this process
	orSelf  bool
}

// FromEnvironment returns a client for the socket in NOTIFY_SOCKET, or nil and an error
// of Open. It does not change the environment.
func FromEnvironment() (*Client, error) {
	return Open(os.Getenv("NOTIFY_SOCKET"))
}

// Open returns a client for a socket: an absolute path, "@" and an abstract name, or a
// vsock address with its CID, see ParseAddress. It fails with ErrNoSocket for an empty
// address and with ErrAddress for any other. It does not find out whether a manager
// listens there: Send does.
//
// Over vsock there are neither descriptors nor credentials. So SendFiles, Barrier and As
// fail with unix.EOPNOTSUPP, and Send itself waits until the manager has the message,
// unless it is a datagram.
func Open(address string) (*Client, error) {
	a, err := ParseAddress(address)
	if err != nil {
		return nil, err
	}
	if a.IsVsock() && a.CID == AnyCID {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s: %w: no CID to send to", address, ErrAddress)
	}
	return &Client{address: a}, nil
}

// Address returns where the client sends. It is the zero Address of a nil Client.
func (c *Client) Address() Address {
	if c == nil {
		return Address{}
	}
	return c.address
}

// As returns a client that sends in the name of another process, like sd_pid_notify(3),
// but with any user and group. The kernel demands CAP_SYS_ADMIN in this PID namespace,
// and CAP_SETUID or CAP_SETGID if the user or group is not the caller's. Without these
// capabilities sending fails with unix.EPERM, and without such a process with
// unix.ESRCH.
func (c *Client) As(pid, uid, gid int) *Client {
	if c == nil {
		return nil
	}
	other := *c
	other.as = &unix.Ucred{Pid: int32(pid), Uid: uint32(uid), Gid: uint32(gid)}
	return &other
}

// OrSelf returns a client that sends in the name of this process if As is not permitted.
func (c *Client) OrSelf() *Client {
	if c == nil {
		return nil
	}
	other := *c
	other.orSelf = true
	return &other
}

// Send sends one message. While the manager's queue is full it waits, until ctx is done
// or Timeout has passed. The error then wraps context.Canceled or
// context.DeadlineExceeded. A message that is not valid is not sent, and the error wraps
// ErrInvalid.
func (c *Client) Send(ctx context.Context, assignments ...Assignment) error {
	return c.SendFiles(ctx, nil, assignments...)
}

// SendFiles is Send with open descriptors, at most MaxFiles. They stay open in this
// process. The manager closes its copies, unless the message has FDSTORE=1 or
// MAINPIDFD=1.
func (c *Client) SendFiles(ctx context.Context, fds []int, assignments ...Assignment) error {
	if c == nil {
		return ErrNoSocket
	}
	m := Message(assignments)
	datagram, err := m.Format()
	if err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return err
	}
	if len(fds) > MaxFiles {
		return fmt.Errorf("%w: %d descriptors, more than %d", ErrInvalid, len(fds), MaxFiles)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	return c.send(ctx, datagram, fds)
}

// Barrier waits until the manager has handled all earlier messages, like
// sd_notify_barrier(3). A process that the manager did not start itself must not exit
// before, or the manager may not find out which unit its messages belong to. Barrier
// waits as long as Send, and returns the same errors.
func (c *Client) Barrier(ctx context.Context) error {
	if c == nil {
		return ErrNoSocket
	}
	ctx, cancel := bounded(ctx)
	defer cancel()

	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	defer r.Close()
	// The manager answers by closing its copy, which must be the last one.
	err = c.send(ctx, []byte("BARRIER=1"), []int{int(w.Fd())})
	w.Close()
	if err != nil {
		return fmt.Errorf("barrier: %w", err)
	}

	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err = r.Read(make([]byte, 1))
	switch {
	case err == io.EOF:
		return nil
	case err == nil:
		err = errors.New("manager wrote to the pipe")
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = ctx.Err()
	}
	return fmt.Errorf("barrier: wait for %s: %w", c.address, err)
}

// bounded gives ctx a deadline if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, found := ctx.Deadline(); found {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, Timeout)
}

// send sends a datagram with descriptors, in the name of the client's process.
func (c *Client) send(ctx context.Context, datagram []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if c.as == nil {
		return c.transmit(ctx, datagram, rights)
	}
	err := c.transmit(ctx, datagram, append(rights[:len(rights):len(rights)], unix.UnixCredentials(c.as)...))
	if c.orSelf && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP)) {
		return c.transmit(ctx, datagram, rights)
	}
	if err != nil {
		return fmt.Errorf("as PID %d, user %d, group %d: %w", c.as.Pid, c.as.Uid, c.as.Gid, err)
	}
	return nil
}

// transmit sends a datagram with control messages, see unix(7) and cmsg(3).
func (c *Client) transmit(ctx context.Context, datagram, control []byte) (err error) {
	defer func() {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = ctx.Err()
		}
		if err != nil {
			err = fmt.Errorf("send to %s: %w", c.address, err)
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.address.IsVsock() {
		if len(control) > 0 {
			return unix.EOPNOTSUPP
		}
		return transmitVsock(ctx, c.address, datagram)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	socket := os.NewFile(uintptr(fd), c.address.Name)
	defer socket.Close()
	// poll(2) waits for room in the manager's queue only if the socket is connected.
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: c.address.Name}); err != nil {
		return err
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { socket.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var sendErr error
	if err := raw.Write(func(fd uintptr) (done bool) {
		_, sendErr = unix.SendmsgN(int(fd), datagram, control, nil, unix.MSG_NOSIGNAL)
		return sendErr != unix.EAGAIN
	}); err != nil {
		return err
	}
	return sendErr
}
