package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	nobody     = 65534
	invocation = "6067e8af2cbe42328103eb816cfb3f3e"
)

// A stage is what the programs act on, in a directory of its own.
type stage struct {
	dir     string
	conmon  string // a program of that name
	closers []func()
}

func newStage() (*stage, error) {
	dir, err := os.MkdirTemp("", "oci-mainpid-bench-")
	if err != nil {
		return nil, err
	}
	s := &stage{dir: dir, conmon: filepath.Join(dir, "conmon")}
	s.onClose(func() { os.RemoveAll(dir) })
	// A shell by that name passes for conmon: it has one thread, too.
	shell, err := os.ReadFile("/bin/sh")
	if err == nil {
		err = os.WriteFile(s.conmon, shell, 0o755)
	}
	if err == nil {
		err = os.Chmod(dir, 0o711) // nobody runs it
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stage) onClose(f func()) { s.closers = append(s.closers, f) }

func (s *stage) close() {
	for len(s.closers) > 0 {
		last := len(s.closers) - 1
		s.closers[last]()
		s.closers = s.closers[:last]
	}
}

// write makes a file and returns its path.
func (s *stage) write(name, text string) (string, error) {
	path := filepath.Join(s.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// copyProgram copies a program of a build and returns the copy's path. Where a
// program is and how it was written may cost as much as what the comparison is
// to find: one program in two places differed by 5 %.
func (s *stage) copyProgram(b build, name string) (string, error) {
	program, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(s.dir, "build-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, program, 0o755)
}

// buildEmptyGo builds a Go program that does nothing, as the project's are built.
func (s *stage) buildEmptyGo(ctx context.Context) (string, error) {
	source, err := s.write("empty.go", "package main\n\nfunc main() {}\n")
	if err != nil {
		return "", err
	}
	program := filepath.Join(s.dir, "empty-go")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return program, run(cmd)
}

// buildEmptyC builds a static C program that does nothing.
func (s *stage) buildEmptyC(ctx context.Context) (string, error) {
	source, err := s.write("empty.c", "int main(void) { return 0; }\n")
	if err != nil {
		return "", err
	}
	program := filepath.Join(s.dir, "empty-c")
	err = run(exec.CommandContext(ctx, "gcc", "-O2", "-static", "-o", program, source))
	if errors.Is(err, exec.ErrNotFound) {
		err = errors.New("gcc is missing (on Debian: apt-get install gcc libc6-dev)")
	}
	return program, err
}

// conmonEnvironment is what podman, started from a login, leaves of its
// environment to conmon.
var conmonEnvironment = []string{
	"_OCI_SYNCPIPE=3", "_OCI_STARTPIPE=4", "SHELL=/bin/sh", "PWD=/", "LOGNAME=web",
	"XDG_SESSION_TYPE=tty", "HOME=/home/web", "LANG=C.UTF-8", "XDG_SESSION_CLASS=user", "USER=web",
	"SHLVL=1", "XDG_SESSION_ID=1", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
	"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus", "_=/usr/bin/podman",
	"_CONTAINERS_USERNS_CONFIGURED=done", "_CONTAINERS_ROOTLESS_UID=1000", "_CONTAINERS_ROOTLESS_GID=1000",
	"XDG_CONFIG_HOME=/home/web/.config", "TMPDIR=/var/tmp", "XDG_RUNTIME_DIR=/run/user/1000",
}

// A conmon is a process of nobody's by that name, and its child.
type conmon struct{ pid, container int }

func (s *stage) startConmon(environment ...string) (conmon, error) {
	// Both end when standard input does, at the latest with this process.
	cmd := exec.Command(s.conmon, "-c", `sh -c 'echo $$; exec cat'; :`)
	cmd.Env = append(environment, conmonEnvironment...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return conmon{}, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return conmon{}, err
	}
	if err := cmd.Start(); err != nil {
		return conmon{}, fmt.Errorf("start a stand-in for conmon: %w", err)
	}
	s.onClose(func() { stdin.Close(); cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return conmon{}, fmt.Errorf("stand-in for conmon: %w", err)
	}
	container, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return conmon{}, fmt.Errorf("stand-in for conmon: %w", err)
	}
	return conmon{cmd.Process.Pid, container}, nil
}

// A manager is a socket that takes sd_notify(3) messages as PID 1 does: it
// closes the descriptor of a barrier at once.
type manager struct {
	address string
	mu      sync.Mutex
	text    string // all since forget
}

func (s *stage) listen() (*manager, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	m := &manager{address: filepath.Join(s.dir, "notify")}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: m.address}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind %s: %w", m.address, err)
	}
	s.onClose(func() { unix.Shutdown(fd, unix.SHUT_RDWR) }) // ends serve
	go m.serve(fd)
	return m, nil
}

// serve blocks in recvmsg(2) rather than in the Go runtime's poller, which
// would add its own time to the answer.
func (m *manager) serve(fd int) {
	defer unix.Close(fd)
	data, control := make([]byte, 4096), make([]byte, 4096)
	for {
		n, controlN, _, _, err := unix.Recvmsg(fd, data, control, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		m.mu.Lock()
		m.text += string(data[:n]) + "\n"
		m.mu.Unlock()
		messages, _ := unix.ParseSocketControlMessage(control[:controlN])
		for _, message := range messages {
			fds, _ := unix.ParseUnixRights(&message)
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
}

func (m *manager) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.text = ""
}

// check fails unless exactly one PID was sent, this one, and a barrier.
func (m *manager) check(pid int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	mainPID := 0
	lines := strings.Split(m.text, "\n")
	barrier := false
	for _, line := range lines {
		if value, ok := strings.CutPrefix(line, "MAINPID="); ok {
			mainPID, _ = strconv.Atoi(value)
		}
		barrier = barrier || line == "BARRIER=1"
	}
	if mainPID != pid || !barrier {
		return fmt.Errorf("the manager got %q, not MAINPID=%d and BARRIER=1", m.text, pid)
	}
	return nil
}
