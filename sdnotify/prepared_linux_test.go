package sdnotify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/conmontest"
)

func prepare(t *testing.T, c *Client, assignments ...Assignment) *Prepared {
	t.Helper()
	p, err := c.Prepare(assignments...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestPrepared(t *testing.T) {
	t.Run("arrives each time", func(t *testing.T) {
		m := listenAbstract(t)
		p := prepare(t, m.client(), Errno(unix.ENOMEM), Status(`no\memory`))
		m.idle()
		for range 3 {
			if err := p.Send(); err != nil {
				t.Fatal(err)
			}
			if r := m.receive(); r.text != "ERRNO=12\nSTATUS=no\\\\memory" || int(r.ucred.Pid) != os.Getpid() {
				t.Errorf("got %q from %+v", r.text, r.ucred)
			}
		}
		m.idle()
	})
	t.Run("does not allocate", func(t *testing.T) {
		m := listenAbstract(t)
		p := prepare(t, m.client(), Watchdog())
		buf := make([]byte, MaxSize)
		if n := testing.AllocsPerRun(100, func() {
			if err := p.Send(); err != nil {
				panic(err)
			}
			if _, err := unix.Read(m.fd, buf); err != nil {
				panic(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
		unix.Close(m.fd)
		if n := testing.AllocsPerRun(100, func() {
			if err := p.Send(); err != unix.ECONNREFUSED {
				panic(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations when nobody listens", n)
		}
		m.fd = -1
	})
	t.Run("waits for room in the queue", func(t *testing.T) {
		m := listenAbstract(t)
		p := prepare(t, m.client(), Watchdog())
		queued := m.fill()
		start := time.Now()
		time.AfterFunc(20*time.Millisecond, func() {
			unix.Read(m.fd, make([]byte, MaxSize))
		})
		if err := p.Send(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 20*time.Millisecond {
			t.Errorf("took %v", took)
		}
		for range queued {
			m.receive()
		}
		m.idle()
	})
	t.Run("finds a new socket at the address", func(t *testing.T) {
		address := filepath.Join(t.TempDir(), "notify")
		m := listen(t, address)
		p := prepare(t, m.client(), Watchdog())
		unix.Close(m.fd)
		if err := os.Remove(address); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := p.Send(); err != unix.ENOENT {
				t.Errorf("without a socket: %v", err)
			}
		}
		next := listen(t, address)
		if err := p.Send(); err != nil {
			t.Fatal(err)
		}
		if r := next.receive(); r.text != "WATCHDOG=1" {
			t.Errorf("got %q", r.text)
		}
	})
	t.Run("when no descriptor can be opened", func(t *testing.T) {
		m := listenAbstract(t)
		p := prepare(t, m.client(), Stopping())
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		err, sent := m.client().Send(context.Background(), Stopping()), p.Send()
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("Client.Send: %v, want EMFILE", err)
		}
		if sent != nil {
			t.Fatal(sent)
		}
		if r := m.receive(); r.text != "STOPPING=1" {
			t.Errorf("got %q", r.text)
		}
	})
	t.Run("as another process, or as oneself", func(t *testing.T) {
		m := listenAbstract(t)
		pid := sleeper(t)
		p := prepare(t, m.client().As(pid, os.Getuid(), os.Getgid()).OrSelf(), Ready())
		if os.Getuid() == 0 {
			if err := p.Send(); err != nil {
				t.Fatal(err)
			}
			if r := m.receive(); int(r.ucred.Pid) != pid {
				t.Errorf("sent by %+v", r.ucred)
			}
		}
		unprivileged(t, func() {
			if err := p.Send(); err != nil {
				t.Error(err)
			}
		})
		if r := m.receive(); int(r.ucred.Pid) != os.Getpid() {
			t.Errorf("sent by %+v", r.ucred)
		}
	})
	t.Run("after Close", func(t *testing.T) {
		p := prepare(t, listenAbstract(t).client(), Ready())
		for range 2 {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := p.Send(); err != os.ErrClosed {
			t.Errorf("got %v", err)
		}
	})
}

func TestPrepareRefuses(t *testing.T) {
	c := listenAbstract(t).client()
	for _, test := range badMessages {
		if p, err := c.Prepare(test.in...); p != nil || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", test.name, err)
		}
	}
	if _, err := c.Prepare(FDStoreRemove("")...); !errors.Is(err, ErrInvalid) {
		t.Errorf("value that the manager would ignore: %v", err)
	}
	if _, err := (*Client)(nil).Prepare(Ready()); err != ErrNoSocket {
		t.Errorf("nil client: %v", err)
	}
	absent, err := Open("@sdnotify-test-absent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := absent.Prepare(Ready()); !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), absent.address.Name) {
		t.Errorf("no listener: %v", err)
	}
}

func TestPreparedGivesUp(t *testing.T) {
	t.Parallel()
	m := listenAbstract(t)
	p := prepare(t, m.client(), Watchdog())
	m.fill()
	start := time.Now()
	if err := p.Send(); err != unix.ETIMEDOUT {
		t.Errorf("on a manager that does not read: %v", err)
	}
	if took := time.Since(start); took < Timeout || took > 2*Timeout {
		t.Errorf("took %v", took)
	}
}

// starving has the address of the manager of a process that this test starts.
const starving = "SDNOTIFY_TEST_STARVING"

// TestPreparedWithoutMemory starts a process whose address space may not grow. Before
// each piece of memory that it takes it sends the same message, until a piece cannot be
// had, which ends a Go program. So the last message was sent when no memory was left.
func TestPreparedWithoutMemory(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	if address := os.Getenv(starving); address != "" {
		starve(address)
	}
	m := listenAbstract(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPreparedWithoutMemory$")
	// One processor, so that no other thread takes the last piece.
	cmd.Env = append(os.Environ(), starving+"="+m.address, "GOMAXPROCS=1", "GOTRACEBACK=none")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	c := m.client()
	ended := make(chan error, 1)
	go func() {
		err := cmd.Run()
		ended <- errors.Join(err, c.Send(context.Background(), Stopping())) // the last message
	}()
	messages := 0
	for {
		r := m.receive()
		if r.text == "STOPPING=1" {
			break
		}
		if r.text != "ERRNO=12" {
			t.Fatalf("got %q", r.text)
		}
		messages++
	}
	err := <-ended
	pieces := stdout.Len()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(stderr.String(), "out of memory") && !strings.Contains(stderr.String(), "cannot allocate memory") {
		t.Errorf("the process did not run out of memory: %v\n%s", err, &stderr)
	}
	if pieces == 0 || messages != pieces+1 {
		t.Errorf("%d messages for %d pieces of memory, want one more", messages, pieces)
	}
	t.Logf("%d messages, the last one after %d pieces of 8 KiB and before %.60q", messages, pieces, stderr.String())
}

// kept keeps the memory that starve takes.
var kept [][]byte

func starve(address string) {
	c, err := Open(address)
	if err != nil {
		panic(err)
	}
	p, err := c.Prepare(Errno(unix.ENOMEM))
	if err != nil {
		panic(err)
	}
	debug.SetGCPercent(-1)
	kept = make([][]byte, 0, 1<<20)
	runtime.GC()
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: 0, Max: 0}); err != nil {
		panic(err)
	}
	one := []byte{'.'}
	for {
		if err := p.Send(); err != nil {
			fmt.Println("not sent:", err)
			os.Exit(3)
		}
		kept = append(kept, make([]byte, 8<<10))
		unix.Write(1, one)
	}
}
