package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A manager is the other end: a bound socket, read like PID 1 reads its own.
type manager struct {
	t       *testing.T
	fd      int
	address string
}

type received struct {
	text  string
	files []*os.File
	ucred *unix.Ucred
}

var abstractNames atomic.Int64

func listen(t *testing.T, address string) *manager {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: address}); err != nil {
		t.Fatal(err)
	}
	return &manager{t, fd, address}
}

func listenAbstract(t *testing.T) *manager {
	t.Helper()
	return listen(t, fmt.Sprintf("@sdnotify-test-%d-%d", os.Getpid(), abstractNames.Add(1)))
}

func (m *manager) client() *Client {
	m.t.Helper()
	c, err := Open(m.address)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// receive takes the next datagram. The descriptors are closed at the latest
// when the test ends.
func (m *manager) receive() received {
	m.t.Helper()
	var (
		buf = make([]byte, MaxSize)
		oob = make([]byte, unix.CmsgSpace(4*MaxFiles)+unix.CmsgSpace(unix.SizeofUcred))
	)
	var n, oobn, flags int
	for {
		var err error
		n, oobn, flags, _, err = unix.Recvmsg(m.fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			m.t.Fatal("receive:", err)
		}
		break
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		m.t.Fatal("truncated datagram")
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		m.t.Fatal(err)
	}
	r := received{text: string(buf[:n])}
	for i := range messages {
		switch messages[i].Header.Type {
		case unix.SCM_RIGHTS:
			fds, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				m.t.Fatal(err)
			}
			for _, fd := range fds {
				f := os.NewFile(uintptr(fd), "received")
				m.t.Cleanup(func() { f.Close() })
				r.files = append(r.files, f)
			}
		case unix.SCM_CREDENTIALS:
			if r.ucred, err = unix.ParseUnixCredentials(&messages[i]); err != nil {
				m.t.Fatal(err)
			}
		}
	}
	return r
}

// idle fails the test if a datagram is waiting.
func (m *manager) idle() {
	m.t.Helper()
	buf := make([]byte, MaxSize)
	n, _, err := unix.Recvfrom(m.fd, buf, unix.MSG_DONTWAIT)
	if err != unix.EAGAIN {
		m.t.Errorf("manager got %q, %v, want nothing", buf[:max(n, 0)], err)
	}
}

// fill sends until the queue is full.
func (m *manager) fill() (queued int) {
	m.t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer unix.Close(fd)
	for {
		err := unix.Sendto(fd, []byte("WATCHDOG=1"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: m.address})
		if err == unix.EAGAIN && queued > 0 {
			return queued
		}
		if err != nil {
			m.t.Fatal(err)
		}
		queued++
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// sleeper is a process that is alive until the test ends.
func sleeper(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

// ended is the PID of a process that is no more.
func ended(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func pidfdOpen(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// unprivileged runs f without any capability.
func unprivileged(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	none := all
	none[0].Effective, none[1].Effective = 0, 0
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &all[0]); err != nil {
			panic(err) // the thread must not go on like this
		}
	}()
	f()
}

func TestOpen(t *testing.T) {
	for _, test := range []struct {
		name    string
		address string
		err     error
		text    string
	}{
		{name: "path", address: "/run/systemd/notify"},
		{name: "abstract name", address: "@/org/example"},
		{name: "longest path", address: "/" + strings.Repeat("x", 106)},
		{name: "longest abstract name", address: "@" + strings.Repeat("x", 106)},
		{name: "path too long", address: "/" + strings.Repeat("x", 107), err: ErrAddress, text: "108 bytes, sockaddr_un has room for 107"},
		{name: "abstract name too long", address: "@" + strings.Repeat("x", 107), err: ErrAddress, text: "108 bytes"},
		{name: "empty", address: "", err: ErrNoSocket},
		{name: "relative path", address: "run/notify", err: ErrAddress, text: "NOTIFY_SOCKET=run/notify: unsupported address"},
		{name: "dot path", address: "./notify", err: ErrAddress},
		{name: "vsock", address: "vsock:2:1234"},
		{name: "vsock without a CID", address: "vsock::1234", err: ErrAddress, text: "NOTIFY_SOCKET=vsock::1234: unsupported address: no CID to send to"},
		{name: "vsock without a port", address: "vsock:2", err: ErrAddress, text: "vsock:2:1234"},
		{name: "abstract without a name", address: "@", err: ErrAddress},
		{name: "NUL inside", address: "/run/a\x00b", err: ErrAddress},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, open := range []func() (*Client, error){
				func() (*Client, error) { return Open(test.address) },
				func() (*Client, error) {
					if strings.Contains(test.address, "\x00") {
						return Open(test.address) // no environment can hold it
					}
					t.Setenv("NOTIFY_SOCKET", test.address)
					return FromEnvironment()
				},
			} {
				c, err := open()
				if !errors.Is(err, test.err) || (err == nil) != (c != nil) {
					t.Fatalf("got %v, %v, want error %v", c, err, test.err)
				}
				if err != nil && !strings.Contains(err.Error(), test.text) {
					t.Errorf("error %q does not say %q", err, test.text)
				}
			}
		})
	}
}

func TestFromEnvironmentUnset(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "") // restores it afterwards
	os.Unsetenv("NOTIFY_SOCKET")
	c, err := FromEnvironment()
	if c != nil || !errors.Is(err, ErrNoSocket) {
		t.Fatalf("got %v, %v, want ErrNoSocket", c, err)
	}
}

func TestNilClient(t *testing.T) {
	var c *Client
	ctx := context.Background()
	for name, err := range map[string]error{
		"Send":      c.Send(ctx, Ready()),
		"SendFiles": c.SendFiles(ctx, []int{0}, Ready()),
		"Barrier":   c.Barrier(ctx),
		"As":        c.As(1, 0, 0).OrSelf().Send(ctx, Ready()),
	} {
		if !errors.Is(err, ErrNoSocket) {
			t.Errorf("%s: %v, want ErrNoSocket", name, err)
		}
	}
}

func TestSend(t *testing.T) {
	for _, test := range []struct {
		name    string
		manager func(t *testing.T) *manager
	}{
		{"path", func(t *testing.T) *manager { return listen(t, filepath.Join(t.TempDir(), "notify")) }},
		{"abstract name", listenAbstract},
		{"longest abstract name", func(t *testing.T) *manager {
			name := fmt.Sprintf("@%d-%d-", os.Getpid(), abstractNames.Add(1))
			return listen(t, name+strings.Repeat("x", 107-len(name)))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := test.manager(t)
			t.Setenv("NOTIFY_SOCKET", m.address)
			c, err := FromEnvironment()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Send(context.Background(), Ready(), Status(`dev-disk\x2done`)); err != nil {
				t.Fatal(err)
			}
			r := m.receive()
			if want := "READY=1\nSTATUS=dev-disk\\\\x2done"; r.text != want {
				t.Errorf("got %q, want %q", r.text, want)
			}
			if len(r.files) != 0 {
				t.Errorf("got %d descriptors", len(r.files))
			}
			if r.ucred == nil || int(r.ucred.Pid) != os.Getpid() || int(r.ucred.Uid) != os.Getuid() || int(r.ucred.Gid) != os.Getgid() {
				t.Errorf("credentials %+v are not this process's", r.ucred)
			}
			m.idle()
		})
	}
}

func TestSendRefuses(t *testing.T) {
	m := listenAbstract(t)
	tests := slices.Clone(badMessages)
	for name, in := range map[string]Message{
		"BARRIER=1 with others":            {Ready(), {"BARRIER", "1"}},
		"BARRIER=1 without a descriptor":   {{"BARRIER", "1"}},
		"descriptor name with a colon":     FDStore("a:b"),
		"descriptor name with a control":   FDStore("a\tb"),
		"descriptor name not ASCII":        FDStore("ä"),
		"descriptor name too long":         FDStore(strings.Repeat("x", 256)),
		"descriptors to remove not named":  FDStoreRemove(""),
		"main PID zero":                    {{"MAINPID", "0"}},
		"main PID negative":                {{"MAINPID", "-1"}},
		"main PID not a number":            {{"MAINPID", "1x"}},
		"main PID too large":               {{"MAINPID", "4294967297"}},
		"pidfd number that is none":        {{"MAINPIDFDID", ""}},
		"watchdog time negative":           {WatchdogTimeout(-time.Second)},
		"extension of a timeout, negative": {ExtendTimeout(-1 * time.Microsecond)},
		"time that is no number":           {{"MONOTONIC_USEC", "now"}},
	} {
		tests = append(tests, struct {
			name string
			in   Message
		}{name, in})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if err := m.client().Send(context.Background(), test.in...); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
			m.idle()
		})
	}
}

func TestSendWithoutListener(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: dead}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	stream := filepath.Join(dir, "stream")
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: stream}); err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		name    string
		address string
		err     error
	}{
		{"nobody listens", dead, unix.ECONNREFUSED},
		{"no such path", filepath.Join(dir, "absent"), os.ErrNotExist},
		{"no such abstract name", "@sdnotify-test-absent", unix.ECONNREFUSED},
		{"not a socket", dir, unix.ECONNREFUSED},
		{"stream socket", stream, unix.EPROTOTYPE},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := Open(test.address)
			if err != nil {
				t.Fatal(err)
			}
			for name, err := range map[string]error{
				"Send":    c.Send(context.Background(), Ready()),
				"Barrier": c.Barrier(context.Background()),
			} {
				if !errors.Is(err, test.err) || !strings.Contains(err.Error(), test.address) {
					t.Errorf("%s: %v, want %v at %s", name, err, test.err, test.address)
				}
			}
		})
	}
}

func TestSendToFullQueue(t *testing.T) {
	t.Run("gives up at the deadline", func(t *testing.T) {
		m := listenAbstract(t)
		m.fill()
		start := time.Now()
		err := m.client().Send(within(t, 50*time.Millisecond), Ready())
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), m.address) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took < 50*time.Millisecond || took > 3*time.Second {
			t.Errorf("took %v", took)
		}
	})
	t.Run("gives up when canceled", func(t *testing.T) {
		m := listenAbstract(t)
		m.fill()
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(20*time.Millisecond, cancel)
		if err := m.client().Send(ctx, Ready()); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("barrier gives up too", func(t *testing.T) {
		m := listenAbstract(t)
		m.fill()
		if err := m.client().Barrier(within(t, 20*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("goes on when the manager reads", func(t *testing.T) {
		m := listenAbstract(t)
		queued := m.fill()
		sent := make(chan error, 1)
		c := m.client()
		go func() { sent <- c.Send(context.Background(), Ready()) }()
		time.Sleep(20 * time.Millisecond)
		for range queued {
			if r := m.receive(); r.text != "WATCHDOG=1" {
				t.Fatalf("got %q", r.text)
			}
		}
		if r := m.receive(); r.text != "READY=1" {
			t.Errorf("got %q", r.text)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
	t.Run("sends nothing when canceled before", func(t *testing.T) {
		m := listenAbstract(t)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := m.client().Send(ctx, Ready()); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if err := m.client().Barrier(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("barrier: got %v", err)
		}
		m.idle()
	})
	t.Run("a context without a deadline gets one", func(t *testing.T) {
		ctx, cancel := bounded(context.Background())
		defer cancel()
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > Timeout {
			t.Errorf("deadline %v, %v", deadline, ok)
		}
	})
}

func TestSendFiles(t *testing.T) {
	m := listenAbstract(t)
	var files []*os.File
	var fds []int
	for i := range 3 {
		f, err := os.Create(filepath.Join(t.TempDir(), strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, fds = append(files, f), append(fds, int(f.Fd()))
	}

	t.Run("they arrive, in order, and stay open", func(t *testing.T) {
		m.t = t
		if err := m.client().SendFiles(context.Background(), fds, append(FDStore("db"), FDNoPoll())...); err != nil {
			t.Fatal(err)
		}
		r := m.receive()
		if want := "FDSTORE=1\nFDNAME=db\nFDPOLL=0"; r.text != want {
			t.Errorf("got %q, want %q", r.text, want)
		}
		if len(r.files) != len(fds) {
			t.Fatalf("got %d descriptors, want %d", len(r.files), len(fds))
		}
		for i, f := range r.files {
			var sent, got unix.Stat_t
			if err := unix.Fstat(int(files[i].Fd()), &sent); err != nil {
				t.Fatal(err)
			}
			if err := unix.Fstat(int(f.Fd()), &got); err != nil {
				t.Fatal(err)
			}
			if sent.Dev != got.Dev || sent.Ino != got.Ino {
				t.Errorf("descriptor %d is another file", i)
			}
		}
	})
	t.Run("as many as can be", func(t *testing.T) {
		m.t = t
		if err := m.client().SendFiles(context.Background(), slices.Repeat(fds[:1], MaxFiles), FDStore("")...); err != nil {
			t.Fatal(err)
		}
		if r := m.receive(); len(r.files) != MaxFiles || r.text != "FDSTORE=1" {
			t.Errorf("got %q with %d descriptors", r.text, len(r.files))
		}
	})
	t.Run("one too many", func(t *testing.T) {
		m.t = t
		err := m.client().SendFiles(context.Background(), slices.Repeat(fds[:1], MaxFiles+1), FDStore("")...)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "254 descriptors") {
			t.Errorf("got %v", err)
		}
		m.idle()
	})
	t.Run("not open", func(t *testing.T) {
		m.t = t
		if err := m.client().SendFiles(context.Background(), []int{1 << 20}, FDStore("")...); !errors.Is(err, unix.EBADF) {
			t.Errorf("got %v", err)
		}
		m.idle()
	})
}

func TestBarrier(t *testing.T) {
	t.Run("waits until the manager closes the descriptor", func(t *testing.T) {
		m := listenAbstract(t)
		c := m.client()
		if err := c.Send(context.Background(), Ready()); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- c.Barrier(context.Background()) }()
		if r := m.receive(); r.text != "READY=1" {
			t.Fatalf("got %q first", r.text)
		}
		r := m.receive()
		if r.text != "BARRIER=1" || len(r.files) != 1 {
			t.Fatalf("got %q with %d descriptors", r.text, len(r.files))
		}
		select {
		case err := <-done:
			t.Fatalf("returned %v while the descriptor was held", err)
		case <-time.After(50 * time.Millisecond):
		}
		r.files[0].Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("gives up at the deadline", func(t *testing.T) {
		m := listenAbstract(t)
		err := m.client().Barrier(within(t, 300*time.Millisecond))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), m.address) {
			t.Errorf("got %v", err)
		}
		if r := m.receive(); r.text != "BARRIER=1" || len(r.files) != 1 {
			t.Errorf("got %q with %d descriptors", r.text, len(r.files))
		}
	})
	t.Run("gives up when canceled", func(t *testing.T) {
		m := listenAbstract(t)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		c := m.client()
		go func() { done <- c.Barrier(ctx) }()
		m.receive()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("manager writes into it", func(t *testing.T) {
		m := listenAbstract(t)
		done := make(chan error, 1)
		c := m.client()
		go func() { done <- c.Barrier(context.Background()) }()
		if _, err := m.receive().files[0].Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Error("taken for an answer")
		}
	})
	t.Run("for another process", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("not root: the kernel lets nobody else send as another process")
		}
		m := listenAbstract(t)
		pid := sleeper(t)
		c := m.client().As(pid, 0, 0)
		done := make(chan error, 1)
		go func() { done <- c.Barrier(context.Background()) }()
		r := m.receive()
		if r.text != "BARRIER=1" || len(r.files) != 1 || int(r.ucred.Pid) != pid {
			t.Fatalf("got %q with %d descriptors from %+v", r.text, len(r.files), r.ucred)
		}
		r.files[0].Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAs(t *testing.T) {
	uid, gid := os.Getuid(), os.Getgid()
	t.Run("oneself", func(t *testing.T) {
		m := listenAbstract(t)
		if err := m.client().As(os.Getpid(), uid, gid).Send(context.Background(), Ready()); err != nil {
			t.Fatal(err)
		}
		if r := m.receive(); int(r.ucred.Pid) != os.Getpid() {
			t.Errorf("sent by %+v", r.ucred)
		}
	})
	t.Run("another process and user, with a descriptor", func(t *testing.T) {
		if uid != 0 {
			t.Skip("not root: the kernel lets nobody else send as another process")
		}
		m, pid := listenAbstract(t), sleeper(t)
		c := m.client()
		if err := c.As(pid, 1234, 5678).SendFiles(context.Background(), []int{m.fd}, Ready()); err != nil {
			t.Fatal(err)
		}
		r := m.receive()
		if want := (unix.Ucred{Pid: int32(pid), Uid: 1234, Gid: 5678}); *r.ucred != want || len(r.files) != 1 || r.text != "READY=1" {
			t.Errorf("got %q with %d descriptors from %+v, want from %+v", r.text, len(r.files), r.ucred, want)
		}
		if err := c.Send(context.Background(), Ready()); err != nil {
			t.Fatal(err)
		}
		if r := m.receive(); int(r.ucred.Pid) != os.Getpid() {
			t.Error("As changed the client that it was called on")
		}
	})
	t.Run("process that is no more", func(t *testing.T) {
		if uid != 0 {
			t.Skip("not root: not permitted before it is looked up")
		}
		m := listenAbstract(t)
		pid := ended(t)
		err := m.client().As(pid, 0, 0).OrSelf().Send(context.Background(), Ready())
		if !errors.Is(err, unix.ESRCH) || !strings.Contains(err.Error(), fmt.Sprintf("PID %d", pid)) {
			t.Errorf("got %v", err)
		}
		m.idle()
	})
	t.Run("not permitted", func(t *testing.T) {
		m, pid := listenAbstract(t), sleeper(t)
		c := m.client().As(pid, uid, gid)
		unprivileged(t, func() {
			err := c.Send(context.Background(), Ready())
			if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), fmt.Sprintf("as PID %d, user %d", pid, uid)) {
				t.Errorf("got %v", err)
			}
		})
		m.idle()
	})
	t.Run("not permitted, or as oneself", func(t *testing.T) {
		m, pid := listenAbstract(t), sleeper(t)
		c := m.client().As(pid, uid, gid).OrSelf()
		unprivileged(t, func() {
			if err := c.SendFiles(context.Background(), []int{m.fd}, Ready()); err != nil {
				t.Error(err)
			}
		})
		if r := m.receive(); int(r.ucred.Pid) != os.Getpid() || len(r.files) != 1 {
			t.Errorf("sent by %+v with %d descriptors", r.ucred, len(r.files))
		}
		m.idle()
	})
}

func TestMainPID(t *testing.T) {
	t.Run("of a process", func(t *testing.T) {
		pid := sleeper(t)
		pidfd := pidfdOpen(t, pid)
		got, err := MainPID(pidfd, pid)
		if err != nil {
			t.Fatal(err)
		}
		want := Message{{"MAINPID", strconv.Itoa(pid)}}
		var fs unix.Statfs_t
		if err := unix.Fstatfs(pidfd, &fs); err != nil {
			t.Fatal(err)
		}
		if fs.Type == unix.PID_FS_MAGIC && strconv.IntSize == 64 {
			var st unix.Stat_t
			if err := unix.Fstat(pidfd, &st); err != nil {
				t.Fatal(err)
			}
			want = append(want, Assignment{"MAINPIDFDID", fmt.Sprint(st.Ino)})
		} else {
			t.Log("pidfds have no inode numbers of their own here: MAINPIDFDID= is not sent")
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}

		again, err := MainPID(pidfdOpen(t, pid), pid)
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("by another pidfd: %q, %v", again, err)
		}
		m := listenAbstract(t)
		if err := m.client().Send(context.Background(), got...); err != nil {
			t.Error(err)
		}
	})
	t.Run("without permission to signal it", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("not root: cannot make another user's process")
		}
		cmd := exec.Command("sleep", "600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		pidfd := pidfdOpen(t, cmd.Process.Pid)
		unprivileged(t, func() {
			if _, err := MainPID(pidfd, cmd.Process.Pid); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("process that is no more", func(t *testing.T) {
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pidfd := pidfdOpen(t, cmd.Process.Pid)
		cmd.Process.Kill()
		cmd.Wait()
		if got, err := MainPID(pidfd, cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("descriptor that is no pidfd", func(t *testing.T) {
		if got, err := MainPID(listenAbstract(t).fd, os.Getpid()); !errors.Is(err, unix.EBADF) {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("descriptor that is not open", func(t *testing.T) {
		if got, err := MainPID(1<<20, os.Getpid()); !errors.Is(err, unix.EBADF) {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestWellKnown(t *testing.T) {
	for want, got := range map[string]Message{
		"READY=1":                        {Ready()},
		"STOPPING=1":                     {Stopping()},
		"STATUS=66% done…":               {Status("66% done…")},
		"NOTIFYACCESS=all":               {NotifyAccess("all")},
		"ERRNO=2":                        {Errno(unix.ENOENT)},
		"BUSERROR=org.example.TimedOut":  {BusError("org.example.TimedOut")},
		"VARLINKERROR=org.example.Bad":   {VarlinkError("org.example.Bad")},
		"EXIT_STATUS=125":                {ExitStatus(125)},
		"MAINPIDFD=1":                    {MainPIDFD()},
		"WATCHDOG=1":                     {Watchdog()},
		"WATCHDOG=trigger":               {WatchdogTrigger()},
		"WATCHDOG_USEC=20000000":         {WatchdogTimeout(20 * time.Second)},
		"EXTEND_TIMEOUT_USEC=1500":       {ExtendTimeout(1500 * time.Microsecond)},
		"RESTART_RESET=1":                {RestartReset()},
		"FDSTORE=1":                      FDStore(""),
		"FDSTORE=1\nFDNAME=my fd":        FDStore("my fd"),
		"FDSTOREREMOVE=1\nFDNAME=my fd":  FDStoreRemove("my fd"),
		"FDPOLL=0":                       {FDNoPoll()},
		"X_EXAMPLE_ANYTHING=what = ever": {{"X_EXAMPLE_ANYTHING", "what = ever"}},
	} {
		t.Run(want, func(t *testing.T) {
			m := listenAbstract(t)
			if err := m.client().Send(context.Background(), got...); err != nil {
				t.Fatal(err)
			}
			r := m.receive()
			if r.text != want {
				t.Errorf("got %q", r.text)
			}
			if back, err := Parse([]byte(r.text)); err != nil || !reflect.DeepEqual(back, got) {
				t.Errorf("reads back as %q, %v", back, err)
			}
		})
	}
}

func TestReloading(t *testing.T) {
	now := func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			t.Fatal(err)
		}
		return ts.Nano() / 1000
	}
	before := now()
	m := Reloading()
	after := now()
	if v, _ := m.Get("RELOADING"); v != "1" {
		t.Errorf("got %q", m)
	}
	v, _ := m.Get("MONOTONIC_USEC")
	if usec, err := strconv.ParseInt(v, 10, 64); err != nil || usec < before || usec > after {
		t.Errorf("MONOTONIC_USEC=%s is not between %d and %d", v, before, after)
	}
}
