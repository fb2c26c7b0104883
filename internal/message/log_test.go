package message

import (
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// journald is the two sockets of systemd-journald.
type journald struct {
	native *net.UnixConn
	stream string
}

func newJournald(t *testing.T) journald {
	t.Helper()
	dir := t.TempDir()
	defer func(native, stream string) {
		t.Cleanup(func() { nativeSocket, streamSocket = native, stream })
	}(nativeSocket, streamSocket)
	nativeSocket, streamSocket = filepath.Join(dir, "socket"), filepath.Join(dir, "stdout")
	native, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: nativeSocket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { native.Close() })
	return journald{native, streamSocket}
}

// read returns the next entry, "" if there is none.
func (j journald) read(t *testing.T) string {
	t.Helper()
	b := make([]byte, 65536)
	j.native.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	n, err := j.native.Read(b)
	if err != nil && !os.IsTimeout(err) {
		t.Fatal(err)
	}
	return string(b[:n])
}

// stderr returns a standard error that leads to the journal, or to a file, and
// what was written to it.
func (j journald) stderr(t *testing.T, toJournal bool) (f *os.File, written func() string) {
	t.Helper()
	if !toJournal {
		f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f, func() string {
			b, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: j.stream, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.DialUnix("unix", nil, listener.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	f, err = conn.File()
	if err != nil {
		t.Fatal(err)
	}
	peer, err := listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	return f, func() string {
		conn.Close()
		f.Close()
		b, err := io.ReadAll(peer)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestSay(t *testing.T) {
	entry := "MESSAGE=web.service: refused\nPRIORITY=3\nSYSLOG_IDENTIFIER=notify-mainpid\nMESSAGE_ID=" + Refused.ID + "\nDOCUMENTATION=man:notify-mainpid(8)\n"
	unit := "UNIT=web.service\nOBJECT_SYSTEMD_UNIT=web.service\n"
	line := "notify-mainpid: web.service: refused\n"
	for _, c := range []struct {
		name            string
		unit            string
		toJournal, gone bool // where standard error leads, whether journald is gone
		kind            Kind
		verbose         bool
		journal, stderr string
	}{
		{"a unit's, in its log", "web.service", true, false, Refused, false, entry + unit, ""},
		{"a unit's that logs to a file", "web.service", false, false, Refused, false, entry + unit, line},
		{"nobody's, in a log", "", true, false, Refused, false, entry, ""},
		{"nobody's, at a terminal", "", false, false, Refused, false, "", line},
		{"a unit's, without a journal", "web.service", false, true, Refused, false, "", line},
		{"a unit's, where the journal takes lines only", "web.service", true, true, Refused, false, "", line},
		{"good news, at a terminal", "", false, false, MainProcess, false, "", ""},
		{"good news, at a terminal, to be verbose", "", false, false, MainProcess, true, "", line},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newJournald(t)
			stderr, written := j.stderr(t, c.toJournal)
			if c.gone {
				j.native.Close()
				os.Remove(nativeSocket)
			}
			log := Log{Program: NotifyMainPID, Unit: c.unit, Stderr: stderr, Verbose: c.verbose}
			log.Say(c.kind, "web.service: refused", nil)
			if !c.gone {
				if got := j.read(t); got != c.journal {
					t.Errorf("the journal got %q, want %q", got, c.journal)
				}
			}
			if got := written(); got != c.stderr {
				t.Errorf("standard error got %q, want %q", got, c.stderr)
			}
		})
	}
}

func TestStep(t *testing.T) {
	for _, c := range []struct {
		name            string
		unit            string
		verbose         bool
		journal, stderr string
	}{
		{"not asked for", "web.service", false, "", ""},
		{"of a unit", "web.service", true, "MESSAGE=web.service: wrote 5\nPRIORITY=7\nSYSLOG_IDENTIFIER=oci-mainpid-hook\nUNIT=web.service\nOBJECT_SYSTEMD_UNIT=web.service\nCONMON_PID=5\n", ""},
		{"at a terminal", "", true, "", "oci-mainpid-hook: wrote 5\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newJournald(t)
			stderr, written := j.stderr(t, false)
			log := Log{Program: Hook, Unit: c.unit, Verbose: c.verbose, Stderr: stderr}
			log.Add(ConmonPID, "5")
			log.Add(ContainerName, "") // unknown
			log.Step("wrote %d", 5)
			if got := j.read(t); got != c.journal {
				t.Errorf("the journal got %q, want %q", got, c.journal)
			}
			if got := written(); got != c.stderr {
				t.Errorf("standard error got %q, want %q", got, c.stderr)
			}
		})
	}
}

// TestHostileText: what users choose makes no line, no field and no escape
// sequence of its own, and is not long.
func TestHostileText(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a field", "a\nMESSAGE_ID=" + NotStarted.ID, "a; MESSAGE_ID=" + NotStarted.ID},
		{"an escape sequence", "a\x1b[2Jb", `a\x1b[2Jb`},
		{"no UTF-8", "a\xffb", `a\xffb`},
		{"a NUL", "a\x00b", `a\x00b`},
		{"a carriage return", "a\rb", `a\x0db`},
		{"very long", strings.Repeat("x", 1<<20), strings.Repeat("x", maxText-48) + "... and 1,046,624 more bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newJournald(t)
			stderr, written := j.stderr(t, false)
			log := Log{Program: Hook, Unit: "u\nA=b.service", Stderr: stderr}
			log.Add(ContainerName, c.text)
			log.Say(HookFailed, c.text, nil)
			got := strings.Split(strings.TrimSuffix(j.read(t), "\n"), "\n")
			if len(got) != 8 || got[0] != "MESSAGE="+c.want || got[5] != "UNIT=u A=b.service" || len(got[7]) > len("CONTAINER_NAME=")+maxValue {
				t.Errorf("got %.3000q", got)
			}
			if got := written(); got != "oci-mainpid-hook: "+c.want+"\n" {
				t.Errorf("standard error got %q", got)
			}
		})
	}
}

func TestErrno(t *testing.T) {
	j := newJournald(t)
	stderr, _ := j.stderr(t, false)
	log := Log{Program: Hook, Unit: "web.service", Stderr: stderr}
	log.Say(HookFailed, "open /x", fmt.Errorf("web.service: %w", &fs.PathError{Op: "open", Path: "/x", Err: unix.EACCES}))
	if got := j.read(t); !strings.Contains(got, "\nERRNO=13\n") {
		t.Errorf("%q", got)
	}
}

// TestNobodyReads: a journald that hangs holds nobody up.
func TestNobodyReads(t *testing.T) {
	j := newJournald(t)
	stderr, written := j.stderr(t, false)
	log := Log{Program: Hook, Unit: "web.service", Stderr: stderr}
	start := time.Now()
	for log.Send(HookFailed, "once more", nil) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("the queue never fills")
		}
	}
	start = time.Now()
	log.Say(HookFailed, "said", nil)
	log.Flush()
	if took := time.Since(start); took > 5*flushTimeout {
		t.Errorf("took %v", took)
	}
	if got := written(); got != "oci-mainpid-hook: said\n" {
		t.Errorf("standard error got %q", got)
	}
	if got := j.read(t); got == "" {
		t.Error("nothing was sent before")
	}
}

// TestFlush: it returns when the entry was read and the reader came back for
// more.
func TestFlush(t *testing.T) {
	j := newJournald(t)
	stderr, _ := j.stderr(t, false)
	log := Log{Program: Hook, Unit: "web.service", Stderr: stderr}
	log.Flush() // of nothing, at once
	log.Say(HookFailed, "said", nil)
	const busy = 30 * time.Millisecond
	done := make(chan error, 1)
	go func() {
		b := make([]byte, 4096)
		time.Sleep(busy)
		_, err := j.native.Read(b)
		time.Sleep(busy) // it reads /proc
		if err == nil {
			_, err = j.native.Read(b)
		}
		done <- err
	}()
	start := time.Now()
	log.Flush()
	if took := time.Since(start); took < 2*busy {
		t.Errorf("took %v", took)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
