package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/sdnotify"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	conmontest.Main()
	os.Exit(m.Run())
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string // in the error, "" for none
	}{
		{"all flags", []string{"--user=web", "--timeout=2m", "--require=kube", "--unit=web.service", "--conmon=/opt/conmon", "/m", "/r"}, ""},
		{"without an end", []string{"--user=web", "--timeout=infinity", "/m", "/r"}, ""},
		{"prepare without a user", []string{"--prepare", "/m", "/r"}, ""},
		{"forget", []string{"--forget", "/m", "/r"}, ""},
		{"version", []string{"--version"}, ""},
		{"nothing", nil, "0 arguments"},
		{"one file", []string{"--user=web", "/m"}, "1 arguments"},
		{"three files", []string{"--user=web", "/m", "/r", "/x"}, "3 arguments"},
		{"the same file twice", []string{"--user=web", "/m", "/m"}, "/m is both"},
		{"no user", []string{"/m", "/r"}, "--user is missing"},
		{"two actions", []string{"--prepare", "--forget", "/m", "/r"}, "exclude each other"},
		{"timeout that is none", []string{"--user=web", "--timeout=soon", "/m", "/r"}, `"soon"`},
		{"negative timeout", []string{"--user=web", "--timeout=-1s", "/m", "/r"}, "not longer than 0"},
		{"no timeout", []string{"--user=web", "--timeout=0s", "/m", "/r"}, "not longer than 0"},
		{"requirement that is none", []string{"--user=web", "--require=root", "/m", "/r"}, "not conmon, kube or user"},
		{"unknown flag", []string{"--force", "/m", "/r"}, "-force"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(c.args)
			assertFailure(t, err, exitUsage, c.want)
		})
	}
	if _, err := parse([]string{"--help"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}

// assertFailure checks the error's text and exit status; want "" is none.
func assertFailure(t *testing.T, err error, status int, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	f := failure{status: exitRefused}
	errors.As(err, &f)
	if err == nil || !strings.Contains(err.Error(), want) || f.status != status {
		t.Errorf("got %v (exit status %d), want %q (%d)", err, f.status, want, status)
	}
}

// manager is systemd's end of NOTIFY_SOCKET. It closes the descriptors that it
// gets, and so ends each barrier.
type manager struct {
	conn     *net.UnixConn
	messages chan sdnotify.Message
	tracers  []string // of the main PID, while the manager has the message
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	m := &manager{conn: conn, messages: make(chan sdnotify.Message, 10)}
	go func() {
		for {
			b, oob := make([]byte, 4096), make([]byte, 4096)
			n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
			if err != nil {
				close(m.messages)
				return
			}
			control, _ := unix.ParseSocketControlMessage(oob[:oobn])
			for _, c := range control {
				fds, _ := unix.ParseUnixRights(&c)
				for _, fd := range fds {
					unix.Close(fd)
				}
			}
			message, err := sdnotify.Parse(b[:n])
			if err != nil {
				message = sdnotify.Message{{Name: "malformed", Value: err.Error()}}
			}
			for _, a := range message {
				if a.Name == "MAINPID" {
					status, _ := os.ReadFile("/proc/" + a.Value + "/status")
					_, tracer, _ := strings.Cut(string(status), "TracerPid:\t")
					tracer, _, _ = strings.Cut(tracer, "\n")
					m.tracers = append(m.tracers, tracer)
				}
			}
			m.messages <- message
		}
	}()
	return m
}

// got returns the names of all that came, in order.
func (m *manager) got() (names []string, first sdnotify.Message) {
	m.conn.Close()
	for message := range m.messages {
		if first == nil {
			first = message
		}
		for _, a := range message {
			names = append(names, a.Name)
		}
	}
	return names, first
}

const invocation = "0123456789abcdef0123456789abcdef"

// prepared is a unit whose files are prepared, and what its ExecStartPost=
// says. The unit's user is this one, who plays root too.
func prepared(t *testing.T) config {
	t.Helper()
	t.Setenv("INVOCATION_ID", invocation)
	t.Setenv("MAINPID", "")
	dir := filepath.Join(t.TempDir(), "web.service")
	c, err := parse([]string{"--user=" + strconv.Itoa(os.Getuid()), filepath.Join(dir, "mainpid"), filepath.Join(dir, "result")})
	if err != nil {
		t.Fatal(err)
	}
	prepare := c
	prepare.user, prepare.action = "", "prepare"
	if err := run(prepare); err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func assertResult(t *testing.T, c config, want string) {
	t.Helper()
	if b, err := os.ReadFile(c.resultFile); !strings.HasPrefix(string(b), want) || err != nil {
		t.Errorf("the result file holds %q, %v; want %q", b, err, want)
	}
}

func TestNotify(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root, whom conmon's executable must belong to")
	}
	c := prepared(t)
	m := newManager(t)
	conmon := conmontest.Start(t, conmontest.Options{Env: []string{"INVOCATION_ID=" + invocation}})
	c.executables = []string{conmon.Executable}
	go func() {
		time.Sleep(20 * time.Millisecond)
		os.WriteFile(c.mainPIDFile, fmt.Appendf(nil, "%d\n", conmon.PID), 0o600)
	}()
	if err := run(c); err != nil {
		t.Fatal(err)
	}
	assertResult(t, c, "ok\n")
	names, first := m.got()
	if pid, _ := first.Get("MAINPID"); pid != strconv.Itoa(conmon.PID) {
		t.Errorf("MAINPID=%s, want %d", pid, conmon.PID)
	}
	if !slices.Equal(names, []string{"MAINPID", "MAINPIDFDID", "BARRIER"}) && !slices.Equal(names, []string{"MAINPID", "BARRIER"}) {
		t.Errorf("sent %v", names)
	}

	forget := c
	forget.action = "forget"
	if err := run(forget); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Dir(c.mainPIDFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unit's directory is left: %v", err)
	}
}

// TestNothingIsSent has reasons for each of which systemd must not hear a word.
func TestNothingIsSent(t *testing.T) {
	for _, c := range []struct {
		name   string
		spoil  func(t *testing.T, c *config)
		status int
		want   string
	}{
		{"a stranger's PID", func(t *testing.T, c *config) {
			c.user = "4711"
			write(t, c.mainPIDFile, fmt.Sprintf("%d\n", os.Getpid()))
		}, exitRefused, "refused: process " + strconv.Itoa(os.Getpid()) + ": runs as UID"},
		{"a PID that no process has", func(t *testing.T, c *config) { write(t, c.mainPIDFile, "4194303\n") }, exitRefused, "no such process"},
		{"what is no PID", func(t *testing.T, c *config) { write(t, c.mainPIDFile, "conmon\n") }, exitRefused, "is no PID"},
		{"no PID", func(t *testing.T, c *config) { c.timeout = 30 * time.Millisecond }, exitNoPID, "nothing came within 30ms"},
		{"podman has ended", func(t *testing.T, c *config) { t.Setenv("MAINPID", "4194303") }, exitNoPID, "podman or its container has ended"},
		{"INVOCATION_ID unset", func(t *testing.T, c *config) { t.Setenv("INVOCATION_ID", "") }, exitRefused, "INVOCATION_ID is not set"},
		{"unknown user", func(t *testing.T, c *config) { c.user = "nobody-of-that-name" }, exitRefused, `user "nobody-of-that-name" does not exist`},
		{"a unit whose NOTIFY_SOCKET is not systemd's", func(t *testing.T, c *config) { c.unit = "web.service" }, exitRefused, "refused: NOTIFY_SOCKET="},
		{"user of the largest UID, which is none", func(t *testing.T, c *config) { c.user = "4294967295" }, exitRefused, `user "4294967295" does not exist`},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := prepared(t)
			m := newManager(t)
			c.spoil(t, &config)
			assertFailure(t, run(config), c.status, c.want)
			assertResult(t, config, "error: ")
			if names, _ := m.got(); names != nil {
				t.Errorf("sent %v", names)
			}
		})
	}
}

// TestHolds: the PID cannot be reused while systemd has the message, whatever a
// user's EnvironmentFile= says that systemd knows.
func TestHolds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root, who may trace")
	}
	for name, value := range map[string]string{"an environment as systemd sets it": "", "a forged MAINPIDFDID": "1"} {
		t.Run(name, func(t *testing.T) {
			c := prepared(t)
			m := newManager(t)
			t.Setenv("MAINPIDFDID", value)
			claimAnything(t, &c)
			if err := run(c); err != nil {
				t.Fatal(err)
			}
			m.got()
			if len(m.tracers) != 1 || m.tracers[0] == "0" || m.tracers[0] == "" {
				t.Errorf("the process was traced by %q", m.tracers)
			}
		})
	}
}

// claimAnything claims a process of the user's that is no conmon, which is what
// is required then.
func claimAnything(t *testing.T, c *config) {
	t.Helper()
	conmontest.NotEmulated(t, "PTRACE_SEIZE")
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	c.require = conmonbridge.RequireUser
	write(t, c.mainPIDFile, fmt.Sprintf("%d\n", cmd.Process.Pid))
}

func TestManagerIsNotThere(t *testing.T) {
	for _, c := range []struct{ name, address, want string }{
		{"NOTIFY_SOCKET unset", "", "NOTIFY_SOCKET is not set"},
		{"too long", "/" + strings.Repeat("x", 200), "NOTIFY_SOCKET"},
		{"of another kind", "vsock:2:1", "unsupported address"},
		{"without a listener", "/nowhere/notify", "/nowhere/notify"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := prepared(t)
			claimAnything(t, &config)
			t.Setenv("NOTIFY_SOCKET", c.address)
			assertFailure(t, run(config), exitManager, c.want)
			assertResult(t, config, "error: ")
		})
	}
	t.Run("it never ends the barrier", func(t *testing.T) {
		defer func(d time.Duration) { managerTimeout = d }(managerTimeout)
		managerTimeout = 50 * time.Millisecond
		config := prepared(t)
		claimAnything(t, &config)
		path := filepath.Join(t.TempDir(), "notify")
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		t.Setenv("NOTIFY_SOCKET", path)
		assertFailure(t, run(config), exitManager, "deadline")
		assertResult(t, config, "error: ")
	})
}

func TestPrepareForUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: cannot give a file away")
	}
	c := prepared(t)
	c.action, c.user = "prepare", "4711"
	if err := run(c); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(c.mainPIDFile, &st); err != nil || st.Uid != 4711 {
		t.Errorf("the mainpid file belongs to %d, %v", st.Uid, err)
	}
	if err := unix.Lstat(c.resultFile, &st); err != nil || st.Uid != 0 {
		t.Errorf("the result file belongs to %d, %v", st.Uid, err)
	}
}

func TestKind(t *testing.T) {
	for _, c := range []struct {
		name   string
		err    error
		want   message.Kind
		status int
	}{
		{"a refused process", fmt.Errorf("%w: process 5: has no container", errRefused), message.Refused, exitRefused},
		{"a refused process, and no room for the answer", errors.Join(fmt.Errorf("%w: process 5", errRefused), unix.ENOSPC), message.Refused, exitRefused},
		{"no PID", failure{exitNoPID, handover.ErrNoMainPID}, message.NoMainPID, exitNoPID},
		{"systemd is not there", failure{exitManager, sdnotify.ErrNoSocket}, message.NotTold, exitManager},
		{"a wrong command line", failure{exitUsage, errors.New("--user is missing")}, message.HelperFailed, exitUsage},
		{"a file", unix.EACCES, message.HelperFailed, exitRefused},
	} {
		if got, status := kind(c.err); got != c.want || status != c.status {
			t.Errorf("%s: %v, %d", c.name, got, status)
		}
	}
}
