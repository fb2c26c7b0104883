package sandbox

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A command of a whole machine is a process of the host that speaks to the agent: this
// program once more, under another name, with the machine's directory and the command
// as arguments.
const clientName = "sandbox-client"

func init() {
	if os.Args[0] != clientName {
		return
	}
	status, err := client(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		status = 255
	}
	os.Exit(status)
}

// wholeCommand is command for a whole machine.
func (m *Machine) wholeCommand(ctx context.Context, name string, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{clientName, m.dir(), name}, args...)
	cmd.Env = []string{searchPath, "HOME=/root", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The client has the agent kill the command, and ends with it.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = killTimeout
	if !m.Supervisor.alive() {
		cmd.Err = fmt.Errorf("run %s in machine %s: %w", name, m.Name, errNotRunning)
	}
	return cmd
}

// frame is what the agent calls Frame.
type frame struct {
	Session       string
	Args, Env     []string `json:",omitempty"`
	Input         []byte   `json:",omitempty"`
	Closed        bool     `json:",omitempty"`
	Interrupt     bool     `json:",omitempty"`
	Output, Error []byte   `json:",omitempty"`
	Exit          *int     `json:",omitempty"`
}

// client runs a command in the machine with the directory, and returns its exit status.
func client(dir string, args []string) (int, error) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	conn, err := connect(dir, stop)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	session := rand.Text()
	var mutex sync.Mutex
	send := func(f frame) error {
		f.Session = session
		line, err := json.Marshal(f)
		if err != nil {
			return err
		}
		mutex.Lock()
		defer mutex.Unlock()
		_, err = conn.Write(append(line, '\n'))
		return err
	}
	// The empty line ends what a killed client wrote.
	if _, err := io.WriteString(conn, "\n"); err != nil {
		return 0, err
	}
	if err := send(frame{Args: args, Env: os.Environ()}); err != nil {
		return 0, err
	}
	go func() {
		<-stop
		send(frame{Interrupt: true})
		// Of an agent that is gone there is no answer.
		time.Sleep(killTimeout / 4)
		os.Exit(128 + int(unix.SIGTERM))
	}()
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := os.Stdin.Read(b)
			if n > 0 && send(frame{Input: b[:n]}) != nil {
				return
			}
			if err != nil {
				send(frame{Closed: true})
				return
			}
		}
	}()
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return 0, fmt.Errorf("the machine is gone: %w", err)
		}
		var f frame
		if json.Unmarshal(line, &f) != nil || f.Session != session {
			continue // another client's
		}
		os.Stdout.Write(f.Output)
		os.Stderr.Write(f.Error)
		if f.Exit != nil {
			return *f.Exit, nil
		}
	}
}

// connect takes one of the machine's ports that nobody else has, and keeps it until
// this process ends.
func connect(dir string, stop <-chan os.Signal) (net.Conn, error) {
	for {
		ports, err := filepath.Glob(filepath.Join(dir, "port?"))
		if err != nil {
			return nil, err
		}
		for _, path := range ports {
			// The descriptor is the lock, and stays open.
			lock, err := unix.Open(strings.Replace(path, "port", "lock", 1), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
			if err != nil {
				return nil, err
			}
			if err := unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
				unix.Close(lock)
				if errors.Is(err, unix.EWOULDBLOCK) {
					continue
				}
				return nil, err
			}
			conn, err := net.Dial("unix", path)
			if err != nil {
				return nil, err
			}
			return conn, nil
		}
		select {
		case <-stop:
			return nil, errors.New("interrupted while all ports were taken")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
