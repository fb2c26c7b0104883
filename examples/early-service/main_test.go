package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"oci-mainpid-hook/examples/early-service/fdpass"
	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/sdnotify"
)

// asProgram makes the test's program early-service itself.
const asProgram = "TEST_EARLY_SERVICE"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// limit is for what is to happen at once, on a machine that has other things to do.
const limit = 30 * time.Second

// output is what a program has written so far.
type output struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.text.String()
}

// program is an early-service that runs.
type program struct {
	t *testing.T
	*exec.Cmd
	said  *output
	ended chan struct{}
}

func start(t *testing.T, args ...string) *program {
	t.Helper()
	return startWith(t, "NOTIFY_SOCKET=", args...)
}

// startWith is start with more environment.
func startWith(t *testing.T, environment string, args ...string) *program {
	t.Helper()
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	p := &program{t, exec.Command(os.Args[0], args...), &output{}, make(chan struct{})}
	p.Env = append(os.Environ(), asProgram+"=1", environment)
	p.Stdout, p.Stderr = p.said, p.said
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.ended
	})
	return p
}

// await waits until the program has said what matches.
func (p *program) await(pattern string) {
	p.t.Helper()
	expression := regexp.MustCompile(pattern)
	for end := time.Now().Add(limit); !expression.MatchString(p.said.String()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("%q does not say %q: %s", p.Args[1:], pattern, p.said)
		}
	}
}

// end waits for the end of the program, and returns its status.
func (p *program) end() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(limit):
		p.t.Fatalf("%q runs on: %s", p.Args[1:], p.said)
	}
	return p.ProcessState.ExitCode()
}

func (p *program) stop() {
	p.t.Helper()
	p.Process.Signal(syscall.SIGTERM)
	if status := p.end(); status != 0 {
		p.t.Errorf("%q: status %d: %s", p.Args[1:], status, p.said)
	}
}

// contiguous checks that programs have counted from a number on, one after the other,
// and returns the number after the last.
func contiguous(t *testing.T, from int, programs ...*program) int {
	t.Helper()
	for _, p := range programs {
		for line := range strings.Lines(p.said.String()) {
			if n, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
				if n != from {
					t.Fatalf("%d comes where %d should: %s", n, from, p.said)
				}
				from++
			}
		}
	}
	return from
}

// dial connects to the program.
func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(limit))
	return c
}

// ask sends a text and returns the line that is answered.
func ask(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	if text != "" {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatalf("after %q: %v", text, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// first starts a program that listens, and returns it and its flags.
func first(t *testing.T, more ...string) (p *program, path string, flags []string) {
	path = filepath.Join(t.TempDir(), "socket")
	flags = []string{"--server_socket_path=" + path, "--timer_delay_ms=5"}
	p = start(t, append(flags, more...)...)
	p.await("listening on ")
	return p, path, flags
}

func TestTakeOver(t *testing.T) {
	t.Parallel()
	one, path, flags := first(t)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	one.await(`(?m)^20$`)
	two := start(t, append(flags, "--takeover_existing_socket")...)
	two.await(`(?m)^\d+$`)
	if status := one.end(); status != 0 {
		t.Errorf("status %d: %s", status, one.said)
	}
	// What has been taken over can be taken over.
	three := start(t, append(flags, "--takeover_existing_socket")...)
	three.await(`(?m)^\d+$`)
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it is another socket (%v)", err)
	}
	three.stop()
	if n := contiguous(t, 0, one, two, three); n < 22 {
		t.Errorf("counted to %d", n)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// TestBetween: clients that connect, have connected, and have sent half a command.
func TestBetween(t *testing.T) {
	t.Parallel()
	one, path, flags := first(t)
	idle, half, quiet := dial(t, path), dial(t, path), dial(t, path)
	ask(t, idle, "get_counter\n")
	ask(t, half, "get_counter\nget_c")
	done, asked := make(chan struct{}), make(chan error, 1)
	go func() {
		for last := 0; ; {
			n, err := question(path)
			if err == nil && n < last {
				err = fmt.Errorf("%d comes after %d", n, last)
			}
			last = n
			select {
			case <-done:
				asked <- err
				return
			default:
			}
			if err != nil {
				asked <- err
				return
			}
		}
	}()
	all := []*program{one}
	for range 10 {
		p := start(t, append(flags, "--takeover_existing_socket")...)
		p.await(`(?m)^\d+$`)
		all = append(all, p)
	}
	close(done)
	if err := <-asked; err != nil {
		t.Error(err)
	}
	fmt.Fprint(quiet, "get_counter") // and no more
	quiet.CloseWrite()
	for c, command := range map[net.Conn]string{half: "ounter\n", idle: "get_counter\n", quiet: ""} {
		if got := ask(t, c, command); got == "0" || strings.Trim(got, "0123456789") != "" {
			t.Errorf("after %q: %q", command, got)
		}
	}
	all[10].stop()
	contiguous(t, 0, all...)
}

// question asks for the counter once, on a connection of its own.
func question(path string) (n int, err error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	fmt.Fprintln(c, "get_counter")
	_, err = fmt.Fscan(c, &n)
	return n, err
}

func TestSecond(t *testing.T) {
	t.Parallel()
	one, path, flags := first(t)
	two := start(t, flags...)
	if status := two.end(); status != 1 || !strings.Contains(two.said.String(), path+": another process serves it: type --takeover_existing_socket") {
		t.Errorf("status %d: %s", status, two.said)
	}
	if _, err := question(path); err != nil {
		t.Error(err)
	}
	// One that was killed leaves its socket.
	for _, more := range []string{"--timer_delay_ms=4", "--takeover_existing_socket"} {
		one.Process.Kill()
		one.end()
		one = start(t, append(flags, more)...)
		one.await(`(?m)^1$`)
		contiguous(t, 0, one)
	}
	one.stop()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	one = start(t, append(flags, "--takeover_existing_socket")...)
	one.await("nobody serves " + path + ": counting from 0\nlistening on ")
}

// TestNotTaken: whoever asks for everything and does not take it changes nothing.
func TestNotTaken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(c *net.UnixConn) error
		says string
	}{
		"it goes":                    {(*net.UnixConn).Close, "EOF"},
		"it says something else":     {func(c *net.UnixConn) error { return fdpass.Send(c, "get_counter") }, `received "get_counter", not "taken"`},
		"it says too much":           {func(c *net.UnixConn) error { return fdpass.Send(c, strings.Repeat("taken ", 99)) }, "at most 64 bytes"},
		"it says nothing, but stays": {func(*net.UnixConn) error { return nil }, "i/o timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one, path, _ := first(t)
			other, taker, second := dial(t, path), dial(t, path), dial(t, path)
			ask(t, other, "get_counter\n")
			ask(t, second, "get_counter\n")
			if err := fdpass.Send(taker, passCommand); err != nil {
				t.Fatal(err)
			}
			state, files, err := fdpass.Receive(taker, maxState)
			if err != nil || len(files) != 3 || !strings.HasSuffix(state, ` "" ""`) {
				t.Fatal(state, files, err)
			}
			for _, f := range files {
				f.Close()
			}
			// Meanwhile somebody else wants it, too, and somebody asks.
			fmt.Fprintln(second, passCommand)
			fmt.Fprintln(other, "get_counter")
			if err := c.do(taker); err != nil {
				t.Fatal(err)
			}
			one.await("counting on, because nobody has taken over: .*" + c.says)
			if got := ask(t, other, ""); strings.Trim(got, "0123456789") != "" {
				t.Error(got)
			}
			state, files, err = fdpass.Receive(second, maxState)
			if err != nil || len(files) != 2 {
				t.Error(state, files, err)
			}
			for _, f := range files {
				f.Close()
			}
			second.Close()
			one.await(`(?s)counting on.*counting on.*\n\d+\n`)
			if _, err := question(path); err != nil {
				t.Error(err)
			}
			one.stop()
			contiguous(t, 0, one)
		})
	}
}

// TestWrongState: nobody counts on with what is not a counter and its socket.
func TestWrongState(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		state  string
		files  func(l *net.UnixListener, c *net.UnixConn) []syscall.Conn
		answer string // to "taken"
		says   string
	}{
		"no file":                       {"1", none, "", "not a counter, its socket"},
		"no counter":                    {"", listener, "", "not a counter, its socket"},
		"a counter that is none":        {"-1", listener, "", `counter "-1": not a number`},
		"an error":                      {"error: busy", none, "", `received "error: busy" with 0 files`},
		"more files than it says":       {"1", func(l *net.UnixListener, c *net.UnixConn) []syscall.Conn { return []syscall.Conn{l, c} }, "", "not a counter, its socket"},
		"a file that is no socket":      {"1", func(*net.UnixListener, *net.UnixConn) []syscall.Conn { return []syscall.Conn{os.Stdin} }, "", "is no socket"},
		"a socket that does not listen": {"1", func(_ *net.UnixListener, c *net.UnixConn) []syscall.Conn { return []syscall.Conn{c} }, "", "is no listening socket"},
		"text without quotes":           {"1 x", func(l *net.UnixListener, c *net.UnixConn) []syscall.Conn { return []syscall.Conn{l, c} }, "", "invalid syntax"},
		"no end":                        {"1", listener, "", "EOF"},
		"another end":                   {"1", listener, "not yet", `received "not yet", not "ended"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "socket")
			l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			l.SetDeadline(time.Now().Add(limit))
			p := start(t, "--server_socket_path="+path, "--takeover_existing_socket")
			conn, err := l.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(limit))
			err = expect(conn, passCommand)
			if err == nil {
				err = fdpass.Send(conn, c.state, c.files(l, conn)...)
			}
			if err != nil {
				t.Fatal(err)
			}
			if expect(conn, "taken") == nil && c.answer != "" {
				fdpass.Send(conn, c.answer)
			}
			conn.Close()
			if status := p.end(); status != 1 || !strings.Contains(p.said.String(), "early-service: take over "+path+": ") || !strings.Contains(p.said.String(), c.says) {
				t.Errorf("status %d: %s", status, p.said)
			}
			contiguous(t, 0)
		})
	}
}

func none(*net.UnixListener, *net.UnixConn) []syscall.Conn { return nil }

func listener(l *net.UnixListener, _ *net.UnixConn) []syscall.Conn { return []syscall.Conn{l} }

func TestCommands(t *testing.T) {
	t.Parallel()
	one, path, _ := first(t, "--timer_delay_ms=3600000")
	c := dial(t, path)
	for _, test := range []struct{ command, want string }{
		{"get_counter", "0"},
		{"set_counter 100", "previous value 0"},
		{" get_counter\r", "100"},
		{"set_counter 4611686018427387903", "previous value 100"},
		{"set_counter 4611686018427387904", `error: counter "4611686018427387904": not a number from 0 to 4611686018427387903: type set_counter N`},
		{"set_counter -1", `error: counter "-1": not a number from 0 to 4611686018427387903: type set_counter N`},
		{"set_counter 1x", `error: counter "1x": not a number from 0 to 4611686018427387903: type set_counter N`},
		{"set_counter", `error: "set_counter" is no command: type get_counter, set_counter N or pass_state_and_terminate`},
		{"", `error: "" is no command: type get_counter, set_counter N or pass_state_and_terminate`},
		{"pass_state_and_terminate now", `error: "pass_state_and_terminate now" is no command: type get_counter, set_counter N or pass_state_and_terminate`},
		{"\x1b[2J", `error: "\x1b[2J" is no command: type get_counter, set_counter N or pass_state_and_terminate`},
		{"get_counter", "4611686018427387903"},
		{strings.Repeat("x", 1000), "error: a command has at most 64 bytes"},
	} {
		if got := ask(t, c, test.command+"\n"); got != test.want {
			t.Errorf("after %.70q: %q, not %q", test.command, got, test.want)
		}
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("who sends too much may go on")
	}
	// Many who say nothing, and one more.
	var many []*net.UnixConn
	for range maxClients {
		c := dial(t, path)
		ask(t, c, "get_counter\n")
		many = append(many, c)
	}
	if got := ask(t, dial(t, path), ""); got != "error: there are 64 clients already: ask again later" {
		t.Error(got)
	}
	// One who goes makes room for one, once that is noticed.
	answers := func() {
		t.Helper()
		for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
			if _, err := question(path); err == nil {
				return
			} else if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	many[0].Close()
	answers()
	// One that reads no answer keeps nobody waiting.
	if _, err := many[1].Write([]byte(strings.Repeat("get_counter\n", 8000))); err != nil {
		t.Log(err)
	}
	began := time.Now()
	if answers(); time.Since(began) > patience {
		t.Errorf("the answer took %v", time.Since(began))
	}
	one.stop()
}

func TestFlags(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"now"}, `argument "now": there are only flags, see --help`},
		{[]string{"--timer_delay_ms=0"}, "--timer_delay_ms=0: type a number from 1 to 86400000"},
		{[]string{"--timer_delay_ms=soon"}, `invalid value "soon" for flag -timer_delay_ms`},
		{[]string{"--takeover_existing_socket"}, "--takeover_existing_socket: say which one by --server_socket_path=PATH"},
		{[]string{"--server_socket_path=/nowhere/socket"}, "listen unix /nowhere/socket: bind: no such file or directory"},
		{[]string{"--server_socket_path=" + file}, file + " is no socket"},
		{[]string{"--server_socket_path=" + file, "--takeover_existing_socket"}, file + " is no socket"},
	} {
		p := start(t, test.args...)
		if status := p.end(); status != 1 || !strings.Contains(p.said.String(), test.says) {
			t.Errorf("%q: status %d: %s", test.args, status, p.said)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "mine" {
		t.Errorf("the file that was there has %q, %v", text, err)
	}
}

// TestSurvive: others see the @. It is the process that was started that says READY=1.
func TestSurvive(t *testing.T) {
	t.Parallel()
	address := filepath.Join(t.TempDir(), "notify")
	systemd, err := sdnotify.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	p := startWith(t, "NOTIFY_SOCKET="+address, "--survive_systemd_kill_signal", "--timer_delay_ms=5")
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	n, err := systemd.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if ready, _ := n.Message.Get("READY"); ready != "1" || n.Sender.PID != p.Process.Pid {
		t.Errorf("process %d has sent %v, not %d", n.Sender.PID, n.Message, p.Process.Pid)
	}
	p.await(`(?m)^1$`)
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Process.Pid))
	if want := "@" + os.Args[0] + "\x00--survive_systemd_kill_signal\x00--timer_delay_ms=5\x00"; err != nil || string(line) != want {
		t.Errorf("%q, not %q (%v)", line, want, err)
	}
	p.stop()
}

// TestJournalGone: what reads the numbers may go.
func TestJournalGone(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "socket")
	cmd := exec.Command(os.Args[0], "--timer_delay_ms=5", "--server_socket_path="+path)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	w.Close()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil { // it listens
		t.Fatal(err)
	}
	r.Close()
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		if n, err := question(path); err != nil || time.Now().After(end) {
			t.Fatal(n, err)
		} else if n > 20 {
			break
		}
	}
}
