package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Timeout bounds Send, SendFiles and Barrier if their context has no deadline of
// its own: a manager that does not read its socket must not hang
// its services.
const Timeout = 5 * time.Second

// MaxFiles is how many descriptors a datagram can carry: SCM_MAX_FD, see
// unix(7).
const MaxFiles = 253

var (
	// ErrNoSocket says that there is no manager to tell: NOTIFY_SOCKET is not
	// set, or is empty. A program that also runs by hand ignores it.
	ErrNoSocket = errors.New("NOTIFY_SOCKET is not set")

	// ErrAddress is wrapped by the errors of an address that is no Unix
	// socket's absolute path or abstract name, or is too long for one.
	ErrAddress = errors.New("unsupported address")
)

// A Client sends messages to one manager. It holds no socket between messages,
// so that it need not be closed. It may be used by several goroutines at once.
//
// The methods of a nil Client fail with ErrNoSocket; As and OrSelf return nil
// again. So a program that also runs without a manager looks for ErrNoSocket
// where it sends, and nowhere else.
type Client struct {
	address string
	as      *unix.Ucred // nil: this process
	orSelf  bool
}

// FromEnvironment returns a client for the socket that NOTIFY_SOCKET names, or
// nil and an error as Open does. It leaves the environment as it is.
func FromEnvironment() (*Client, error) {
	return Open(os.Getenv("NOTIFY_SOCKET"))
}

// Open returns a client for the socket with the given address: an absolute
// path, or "@" and an abstract name, of at most 107 bytes. It fails with
// ErrNoSocket for an empty address and with ErrAddress for any other (such as
// vsock:). Whether somebody listens there only Send can tell.
func Open(address string) (*Client, error) {
	if address == "" {
		return nil, ErrNoSocket
	}
	if address[0] != '/' && address[0] != '@' || address == "@" || strings.IndexByte(address, 0) >= 0 {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s: %w", address, ErrAddress)
	}
	if room := len(unix.RawSockaddrUnix{}.Path) - 1; len(address) > room {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s: %w: %d bytes, sockaddr_un has room for %d", address, ErrAddress, len(address), room)
	}
	return &Client{address: address}, nil
}

// As returns a client that sends in the name of another process, like
// sd_pid_notify(3), which uses the caller's own real user and group. The kernel
// asks for CAP_SYS_ADMIN in this PID namespace, and for CAP_SETUID or
// CAP_SETGID if the user or group is not the caller's. Without them, or without
// such a process, sending fails with unix.EPERM or unix.ESRCH.
func (c *Client) As(pid, uid, gid int) *Client {
	if c == nil {
		return nil
	}
	other := *c
	other.as = &unix.Ucred{Pid: int32(pid), Uid: uint32(uid), Gid: uint32(gid)}
	return &other
}

// OrSelf returns a client that sends in its own name where As is not permitted.
func (c *Client) OrSelf() *Client {
	if c == nil {
		return nil
	}
	other := *c
	other.orSelf = true
	return &other
}

// Send sends one message. It blocks while the manager's queue is full, until
// ctx is done or Timeout has passed; the error then wraps context.Canceled or
// context.DeadlineExceeded. A message that is not valid is not sent; the error
// then wraps ErrInvalid.
func (c *Client) Send(ctx context.Context, assignments ...Assignment) error {
	return c.SendFiles(ctx, nil, assignments...)
}

// SendFiles is Send with open descriptors, at most MaxFiles. They stay open
// here. The manager closes what it does not want, which is all of them unless
// the message has FDSTORE=1 or MAINPIDFD=1.
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

// Barrier waits until the manager has handled everything that was sent before,
// like sd_notify_barrier(3). A process that the manager did not start itself
// must not exit sooner, or the manager may not find out who sent the message.
// Its time and the errors when it is over are those of Send.
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
	// The manager's copy has to be the last one: its close is the answer.
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

// send sends a datagram with descriptors, under the client's identity.
func (c *Client) send(ctx context.Context, datagram []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if c.as == nil {
		return c.transmit(ctx, datagram, rights)
	}
	err := c.transmit(ctx, datagram, append(rights[:len(rights):len(rights)], unix.UnixCredentials(c.as)...))
	if c.orSelf && errors.Is(err, unix.EPERM) {
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
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	socket := os.NewFile(uintptr(fd), c.address)
	defer socket.Close()
	// Only a connected socket can be waited for when the queue is full.
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: c.address}); err != nil {
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
