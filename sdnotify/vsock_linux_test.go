package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listenAt(t *testing.T, address string) *Server {
	t.Helper()
	s, err := Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// assertReceives checks what a server receives next.
func assertReceives(t *testing.T, s *Server, want ...Assignment) Sender {
	t.Helper()
	n, err := s.Receive(within(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if !slices.Equal(n.Message, Message(want)) {
		t.Errorf("got %q, want %q", n.Message, want)
	}
	return n.Sender
}

// TestVsockMissing: where the kernel has no vsock, or none for the address, the error
// says so.
func TestVsockMissing(t *testing.T) {
	address := func(network string, cid uint32) string { return fmt.Sprintf("%s:%d:20000", network, cid) }
	// No machine can have this CID, which is reserved.
	const nobody = 0xFFFFFFF0
	for _, network := range []string{"vsock", "vsock-stream", "vsock-seqpacket", "vsock-dgram"} {
		if s, err := Listen(address(network, nobody)); err == nil {
			t.Errorf("listens at %v", s.Address())
		} else if !strings.HasPrefix(err.Error(), "listen on "+address(network, nobody)+": ") {
			t.Error(err)
		} else {
			t.Log(err)
		}
	}
	if fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		unix.Close(fd)
		t.Skip("this kernel has vsock with datagrams")
	}
	c, err := Open("vsock-dgram:1:20000")
	if err != nil {
		t.Fatal(err)
	}
	err = c.Send(context.Background(), Ready())
	if want := "send to vsock-dgram:1:20000: this kernel has no such vsock: socket: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s…", err, want)
	}
}

// connections returns a server like that of vsock, but at a Unix socket, which every
// kernel has, and a function that connects to it.
func connections(t *testing.T, kind int, network string) (s *Server, connect func() *net.UnixConn) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("@sdnotify-test-%d-%d", os.Getpid(), abstractNames.Add(1))
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		t.Fatal(err)
	}
	source, err := listenConnections(fd, name)
	if err != nil {
		t.Fatal(err)
	}
	s = &Server{address: Address{Network: "unix", Name: name}, source: source}
	t.Cleanup(func() { s.Close() })
	return s, func() *net.UnixConn {
		t.Helper()
		conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: name, Net: network})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

// TestConnections: what a server makes of connections, each of which is a message.
func TestConnections(t *testing.T) {
	t.Parallel()
	for network, kind := range map[string]int{"unix": unix.SOCK_STREAM, "unixpacket": unix.SOCK_SEQPACKET} {
		t.Run(network, func(t *testing.T) {
			t.Parallel() // each waits for Timeout
			s, connect := connections(t, kind, network)
			send := func(t *testing.T, pieces ...string) *net.UnixConn {
				t.Helper()
				conn := connect()
				for _, piece := range pieces {
					if _, err := conn.Write([]byte(piece)); err != nil {
						t.Fatal(err)
					}
				}
				if err := conn.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				return conn
			}
			// closed waits for the server's answer, which is an end.
			closed := func(t *testing.T, conn *net.UnixConn) {
				t.Helper()
				conn.SetReadDeadline(time.Now().Add(2 * Timeout))
				if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("read %d, %v, want an end", n, err)
				}
			}

			t.Run("the sender waits until it is received", func(t *testing.T) {
				conn := send(t, "READY=1\n")
				conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("before: %v", err)
				}
				assertReceives(t, s, Ready())
				closed(t, conn)
			})
			t.Run("in pieces", func(t *testing.T) {
				conn := send(t, "READY=1\nSTA", "TUS=up")
				assertReceives(t, s, Ready(), Status("up"))
				closed(t, conn)
			})
			t.Run("empty, which is none", func(t *testing.T) {
				closed(t, send(t))
				send(t, "STATUS=next")
				assertReceives(t, s, Status("next"))
			})
			for name, pieces := range map[string][]string{
				"too long":             {strings.Repeat("X", MaxSize+1)},
				"a megabyte in pieces": slices.Repeat([]string{strings.Repeat("X", 1024)}, 5),
			} {
				t.Run(name, func(t *testing.T) {
					conn := send(t, pieces...)
					if n, err := s.Receive(within(t, 5*time.Second)); !errors.Is(err, ErrInvalid) || n == nil {
						t.Errorf("got %v, %v, want ErrInvalid", n, err)
					}
					closed(t, conn)
				})
			}
			t.Run("one that does not end keeps nobody waiting, and is dropped", func(t *testing.T) {
				var slow []*net.UnixConn
				for range maxConnections / 2 {
					slow = append(slow, connect())
				}
				if _, err := slow[0].Write([]byte("READY=1\n")); err != nil {
					t.Fatal(err)
				}
				send(t, "STATUS=quick")
				assertReceives(t, s, Status("quick"))
				for _, conn := range slow {
					closed(t, conn)
				}
				if n, err := s.Receive(within(t, 100*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, %v, want nothing", n, err)
				}
			})
			t.Run("many at once", func(t *testing.T) {
				const many = 3 * maxConnections
				for range many {
					go func() {
						var conn *net.UnixConn
						for err := error(unix.EAGAIN); errors.Is(err, unix.EAGAIN); time.Sleep(time.Millisecond) { // the queue is full
							conn, err = net.DialUnix(network, nil, &net.UnixAddr{Name: s.Address().Name, Net: network})
						}
						defer conn.Close()
						conn.Write([]byte("WATCHDOG=1"))
						conn.CloseWrite()
						conn.Read(make([]byte, 1))
					}()
				}
				for range many {
					assertReceives(t, s, Watchdog())
				}
			})
			t.Run("Close lets everybody go", func(t *testing.T) {
				waiting, unfinished := send(t, "READY=1"), connect()
				received := make(chan error, 1)
				start := time.Now()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				go func() {
					_, err := s.Receive(context.Background())
					received <- err
				}()
				if err := <-received; !errors.Is(err, os.ErrClosed) {
					t.Errorf("Receive: %v, want ErrClosed", err)
				}
				closed(t, waiting)
				closed(t, unfinished)
				if took := time.Since(start); took > Timeout/2 {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}
