//go:build vsock

package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vsockPorts counts the ports of this test.
var vsockPorts atomic.Int64

// loopback returns the address of a server at this machine's own CID 1, which only the
// kernel's module vsock_loopback has.
func loopback(t *testing.T, network string) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal("this kernel has no vsock: ", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: unix.VMADDR_PORT_ANY}); err != nil {
		t.Fatal("this kernel has no vsock loopback, or it is not loaded; type modprobe vsock_loopback: ", err)
	}
	return fmt.Sprintf("%s:%d:%d", network, unix.VMADDR_CID_LOCAL, 20000+os.Getpid()%10000*4+int(vsockPorts.Add(1)))
}

func TestVsock(t *testing.T) {
	for _, network := range []string{"vsock", "vsock-seqpacket", "vsock-stream"} {
		t.Run(network, func(t *testing.T) {
			s := listenAt(t, loopback(t, network))
			c, err := Open(s.Address().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Run("one message after the other", func(t *testing.T) {
				sent := make(chan error, 1)
				go func() {
					err := c.Send(context.Background(), Status("first"))
					sent <- errors.Join(err, c.Send(context.Background(), Ready(), Status(`second\`)))
				}()
				from := assertReceives(t, s, Status("first"))
				if want := (Sender{UID: -1, GID: -1, CID: unix.VMADDR_CID_LOCAL}); from != want {
					t.Errorf("from %+v, want %+v", from, want)
				}
				assertReceives(t, s, Ready(), Status(`second\`))
				if err := <-sent; err != nil {
					t.Error(err)
				}
			})
			t.Run("as long as can be", func(t *testing.T) {
				long := Status(strings.Repeat("x", MaxSize-len("STATUS=")))
				sent := make(chan error, 1)
				go func() { sent <- c.Send(context.Background(), long) }()
				assertReceives(t, s, long)
				if err := <-sent; err != nil {
					t.Error(err)
				}
			})
			t.Run("neither descriptors nor credentials", func(t *testing.T) {
				for name, err := range map[string]error{
					"SendFiles": c.SendFiles(context.Background(), []int{0}, FDStore("")...),
					"Barrier":   c.Barrier(context.Background()),
					"As":        c.As(os.Getpid(), os.Getuid(), os.Getgid()).Send(context.Background(), Ready()),
				} {
					if !errors.Is(err, unix.EOPNOTSUPP) {
						t.Errorf("%s: %v, want EOPNOTSUPP", name, err)
					}
				}
				sent := make(chan error, 1)
				go func() {
					sent <- c.As(os.Getpid(), os.Getuid(), os.Getgid()).OrSelf().Send(context.Background(), Ready())
				}()
				assertReceives(t, s, Ready())
				if err := <-sent; err != nil {
					t.Error(err)
				}
				if _, err := c.Prepare(Ready()); !errors.Is(err, ErrAddress) {
					t.Errorf("Prepare: %v, want ErrAddress", err)
				}
			})
			t.Run("systemd-notify", func(t *testing.T) {
				program, err := exec.LookPath("systemd-notify")
				if err != nil {
					t.Fatal("systemd-notify is not installed: ", err)
				}
				cmd := exec.Command(program, "--no-block", "--ready", "--status=hello")
				cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+s.Address().String())
				out := make(chan string, 1)
				go func() {
					text, err := cmd.CombinedOutput()
					out <- fmt.Sprintf("%s%v", text, err)
				}()
				assertReceives(t, s, Ready(), Status("hello"))
				if got := <-out; got != "<nil>" {
					t.Error(got)
				}
			})
			// It comes last: when a sender has given up, a reset by the kernel may meet the
			// next one, who has the same port of root's.
			t.Run("a manager that does not receive", func(t *testing.T) {
				if err := c.Send(within(t, 2*time.Second), Ready()); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v", err)
				}
				// It is a message all the same.
				assertReceives(t, s, Ready())
			})
			s.Close()
			if err := c.Send(context.Background(), Ready()); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("nobody listens: %v", err)
			}
		})
	}
}
