package fdpass

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pair returns two ends of a connection.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.UnixConn{a, b} {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		t.Cleanup(func() { c.Close() })
	}
	return a, b
}

func TestFiles(t *testing.T) {
	a, b := pair(t)
	var sent []syscall.Conn
	for range MaxFiles {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		sent = append(sent, f)
	}
	for _, n := range []int{0, 1, MaxFiles} {
		if err := Send(a, "as many", sent[:n]...); err != nil {
			t.Fatal(err)
		}
		line, files, err := Receive(b, 100)
		if err != nil || line != "as many" || len(files) != n {
			t.Fatalf("%d files: received %q with %d files, %v", n, line, len(files), err)
		}
		for i, f := range files {
			want, _ := sent[i].(*os.File).Stat()
			if got, err := f.Stat(); err != nil || !os.SameFile(got, want) {
				t.Errorf("file %d of %d is another one (%v)", i, n, err)
			}
			f.Close()
		}
	}
	if err := Send(a, "too many", append(sent, sent[0])...); err == nil || !strings.Contains(err.Error(), "254 files") {
		t.Error(err)
	}
}

// TestTaken: what was sent is the same socket, and still open at the sender's.
func TestTaken(t *testing.T) {
	a, b := pair(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := Send(a, "", l); err != nil {
		t.Fatal(err)
	}
	_, files, err := Receive(b, 0)
	if err != nil || len(files) != 1 {
		t.Fatal(len(files), err)
	}
	taken, err := net.FileListener(files[0])
	if err != nil {
		t.Fatal(err)
	}
	files[0].Close()
	defer taken.Close()
	for _, l := range []net.Listener{taken, l} {
		if c, err := net.Dial("unix", path); err != nil {
			t.Error(err)
		} else {
			defer c.Close()
		}
		l.(*net.UnixListener).SetDeadline(time.Now().Add(10 * time.Second))
		if c, err := l.Accept(); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
	}
}

func TestWrong(t *testing.T) {
	for name, c := range map[string]struct {
		text, want string
		is         error
	}{
		"nothing":                 {text: "", is: io.EOF},
		"half a line":             {text: "ha", is: io.ErrUnexpectedEOF},
		"more than a line":        {text: "a\nb\n", want: "not one line"},
		"a line and half of one":  {text: "a\nb", want: "not one line"},
		"a line that is too long": {text: "0123456789\n", want: "at most 9 bytes"},
		"a line without end":      {text: "0123456789", want: "at most 9 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			if c.text != "" {
				if _, _, err := a.WriteMsgUnix([]byte(c.text), syscall.UnixRights(0), nil); err != nil {
					t.Fatal(err)
				}
			}
			a.Close()
			line, files, err := Receive(b, 9)
			if err == nil || files != nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("received %q with %d files, %v", line, len(files), err)
			}
		})
	}
}

// TestManyBytes: a line that needs more than one read and more than the socket holds.
func TestManyBytes(t *testing.T) {
	a, b := pair(t)
	long := strings.Repeat("x", 1<<20)
	failed := make(chan error, 1)
	go func() { failed <- Send(a, long, b) }()
	line, files, err := Receive(b, len(long))
	if err != nil || line != long || len(files) != 1 {
		t.Errorf("received %d bytes with %d files, %v", len(line), len(files), err)
	}
	for _, f := range files {
		f.Close()
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
}
