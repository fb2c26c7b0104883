package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/conmontest"
)

// serve returns a server at a path, and a client of it.
func serve(t *testing.T) (*Server, *Client) {
	t.Helper()
	s, err := Listen(filepath.Join(t.TempDir(), "notify"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	c, err := Open(s.Address().String())
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// raw sends a datagram that Client would not.
func raw(t *testing.T, s *Server, datagram []byte, fds ...int) error {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20); err != nil {
		t.Fatal(err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(fd, datagram, rights, &unix.SockaddrUnix{Name: s.Address().Name}, 0)
}

func TestServerReceives(t *testing.T) {
	s, c := serve(t)
	if err := c.Send(short(t), Ready(), Status(`a\b`)); err != nil {
		t.Fatal(err)
	}
	n, err := s.Receive(short(t))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if want := (Message{{"READY", "1"}, {"STATUS", `a\b`}}); !reflect.DeepEqual(n.Message, want) {
		t.Errorf("got %q, want %q", n.Message, want)
	}
	if n.Sender.PID != os.Getpid() || n.Sender.UID != os.Getuid() || n.Sender.GID != os.Getgid() || n.Sender.CID != 0 {
		t.Errorf("sender %+v", n.Sender)
	}
	if n.Sender.PIDFD == nil {
		t.Log("this kernel gives no pidfd of a sender")
	} else if err := unix.PidfdSendSignal(int(n.Sender.PIDFD.Fd()), 0, nil, 0); err != nil {
		t.Error("pidfd of the sender:", err)
	}
}

// The server reads what systemd reads: it leaves out a line that it does not understand,
// and ignores all of a message that is not text.
func TestServerReads(t *testing.T) {
	for _, test := range []struct {
		name, in string
		want     Message
		err      error
	}{
		{name: "a line that is no assignment", in: "nonsense\nREADY=1\n=\n 1=2", want: Message{{"READY", "1"}}},
		{name: "a carriage return splits", in: "STATUS=a\rREADY=1", want: Message{{"STATUS", "a"}, {"READY", "1"}}},
		{name: "a backslash escapes", in: `STATUS=a\\b\c`, want: Message{{"STATUS", `a\bc`}}},
		{name: "nothing", in: ""},
		{name: "as long as may be", in: "A=" + strings.Repeat("x", MaxSize-2), want: Message{{"A", strings.Repeat("x", MaxSize-2)}}},
		{name: "a byte too long", in: "A=" + strings.Repeat("x", MaxSize-1), err: ErrInvalid},
		{name: "a megabyte", in: strings.Repeat("READY=1\n", 1<<17), err: ErrInvalid},
		{name: "a NUL inside", in: "A=1\x00B=2", err: ErrInvalid},
		{name: "a backslash at the end", in: `READY=1\`, err: ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := serve(t)
			if err := raw(t, s, []byte(test.in)); err != nil {
				if len(test.in) > MaxSize && errors.Is(err, unix.EMSGSIZE) {
					return // the kernel itself refuses it
				}
				t.Fatal(err)
			}
			n, err := s.Receive(short(t))
			if !errors.Is(err, test.err) || n == nil || !reflect.DeepEqual(n.Message, test.want) {
				t.Fatalf("got %+v, %v, want %q, %v", n, err, test.want, test.err)
			}
			if n.Sender.PID != os.Getpid() {
				t.Errorf("sender %+v", n.Sender)
			}
			n.Close()
		})
	}
}

func TestServerClosesDescriptors(t *testing.T) {
	for _, test := range []struct {
		name          string
		allowed, sent int
		message       string
		received      int
		err           error
	}{
		{name: "none are wanted", sent: 1, message: "FDSTORE=1"},
		{name: "as many as can be sent", sent: MaxFiles, message: "FDSTORE=1"},
		{name: "with a message that is too long", allowed: 4, sent: 1, message: strings.Repeat("x", MaxSize+1), err: ErrInvalid},
		{name: "with a message that is no text", allowed: 4, sent: 1, message: "A=\x00B", err: ErrInvalid},
		{name: "as many as are wanted", allowed: 2, sent: 2, message: "FDSTORE=1", received: 2},
		{name: "more than are wanted", allowed: 2, sent: 3, message: "FDSTORE=1", err: ErrTooMany},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := serve(t)
			s.Files = test.allowed
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			fds := make([]int, test.sent)
			for i := range fds {
				fds[i] = int(w.Fd())
			}
			if err := raw(t, s, []byte(test.message), fds...); err != nil {
				t.Fatal(err)
			}
			w.Close()
			n, err := s.Receive(short(t))
			if !errors.Is(err, test.err) || n == nil || len(n.Files) != test.received {
				t.Fatalf("got %+v, %v", n, err)
			}
			n.Close()
			r.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := r.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a descriptor is still open: %v", err)
			}
		})
	}
}

// A barrier is answered when the messages before it have been handled, and not before.
func TestServerBarrier(t *testing.T) {
	s, c := serve(t)
	done := make(chan error, 1)
	go func() {
		err := c.Send(short(t), Ready())
		if err == nil {
			err = c.Barrier(short(t))
		}
		done <- err
	}()
	n, err := s.Receive(short(t))
	if err != nil || len(n.Message) != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
	n.Close()
	select {
	case err := <-done:
		t.Fatal("answered while the message is handled:", err)
	case <-time.After(100 * time.Millisecond):
	}
	ctx, cancel := context.WithCancel(context.Background())
	received := make(chan error, 1)
	go func() {
		_, err := s.Receive(ctx)
		received <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-received; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Like systemd, the server ignores all of a message that has BARRIER=1 and more.
func TestServerOddBarriers(t *testing.T) {
	s, c := serve(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, fds := range [][]int{nil, {int(w.Fd())}, {int(w.Fd()), int(w.Fd())}} {
		if err := raw(t, s, []byte("READY=1\nBARRIER=1"), fds...); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw(t, s, []byte("BARRIER=1"), int(w.Fd()), int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := c.Send(short(t), Stopping()); err != nil {
		t.Fatal(err)
	}
	n, err := s.Receive(short(t))
	if err != nil || !reflect.DeepEqual(n.Message, Message{Stopping()}) {
		t.Fatalf("%+v, %v", n, err)
	}
	n.Close()
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a descriptor is still open: %v", err)
	}
}

func TestServerEnds(t *testing.T) {
	s, c := serve(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("without a message:", err)
	}
	// It goes on afterwards.
	if err := c.Send(short(t), Ready()); err != nil {
		t.Fatal(err)
	}
	n, err := s.Receive(short(t))
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.Address().Name); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket stays:", err)
	}
	if _, err := s.Receive(short(t)); err == nil || errors.Is(err, ErrInvalid) {
		t.Error("after Close:", err)
	}
}

// A sender that has ended is still named by its PID, and by a pidfd where the kernel has
// one for it.
func TestServerSenderHasEnded(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	if os.Getenv("SDNOTIFY_TEST_SENDER") != "" {
		c, err := FromEnvironment()
		if err == nil {
			err = c.Send(context.Background(), Ready())
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	s, _ := serve(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestServerSenderHasEnded$")
	cmd.Env = append(os.Environ(), "SDNOTIFY_TEST_SENDER=1", "NOTIFY_SOCKET="+s.Address().String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n, err := s.Receive(short(t))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.Sender.PID != cmd.Process.Pid {
		t.Errorf("sender %d, want %d", n.Sender.PID, cmd.Process.Pid)
	}
	if n.Sender.PIDFD == nil {
		t.Log("this kernel has no pidfd of a process that has ended")
	} else if err := unix.PidfdSendSignal(int(n.Sender.PIDFD.Fd()), 0, nil, 0); err != unix.ESRCH {
		t.Error("pidfd of the sender:", err)
	}
}

func TestListenRefuses(t *testing.T) {
	s, _ := serve(t)
	if _, err := Listen(s.Address().String()); !errors.Is(err, unix.EADDRINUSE) {
		t.Error("the path exists:", err)
	}
	if _, err := Listen(""); !errors.Is(err, ErrNoSocket) {
		t.Error(err)
	}
	if _, err := Listen("/nonexistent/notify"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestParseAddress(t *testing.T) {
	for _, test := range []struct {
		text string
		want Address
		err  error
	}{
		{text: "", err: ErrNoSocket},
		{text: "/run/notify", want: Address{Network: "unix", Name: "/run/notify"}},
		{text: "@abstract", want: Address{Network: "unix", Name: "@abstract"}},
		{text: "@", err: ErrAddress},
		{text: "notify", err: ErrAddress},
		{text: "/a\x00b", err: ErrAddress},
		{text: "/" + strings.Repeat("a", 106), want: Address{Network: "unix", Name: "/" + strings.Repeat("a", 106)}},
		{text: "/" + strings.Repeat("a", 107), err: ErrAddress},
		{text: "vsock:2:1234", want: Address{Network: "vsock", CID: 2, Port: 1234}},
		{text: "vsock::1234", want: Address{Network: "vsock", CID: AnyCID, Port: 1234}},
		{text: "vsock-dgram:2:0", want: Address{Network: "vsock-dgram", CID: 2}},
		{text: "vsock-stream:1:4294967294", want: Address{Network: "vsock-stream", CID: 1, Port: 4294967294}},
		{text: "vsock-seqpacket:3:9", want: Address{Network: "vsock-seqpacket", CID: 3, Port: 9}},
		{text: "vsock:2", err: ErrAddress},
		{text: "vsock:2:", err: ErrAddress},
		{text: "vsock:2:4294967295", err: ErrAddress},
		{text: "vsock:x:1", err: ErrAddress},
		{text: "vsock:2:1:3", err: ErrAddress},
		{text: "vsock", err: ErrAddress},
		{text: "vsock-raw:2:1", err: ErrAddress},
	} {
		t.Run(fmt.Sprintf("%.20q", test.text), func(t *testing.T) {
			got, err := ParseAddress(test.text)
			if !errors.Is(err, test.err) || got != test.want {
				t.Fatalf("got %+v, %v", got, err)
			}
			if err == nil && got.String() != test.text {
				t.Errorf("String: %q", got)
			}
		})
	}
}
