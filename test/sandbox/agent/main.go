// Command agent runs commands in a whole machine for the sandbox on the host. Each
// virtio port that it finds takes one command at a time, in lines of JSON both ways:
// see Frame. It needs nothing but Go's standard library, because the sandbox builds
// it from this one file.
package main

import (
	"bufio"
	"encoding/json"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A Frame is one line. The host sends Args first, then Input until Closed; an
// Interrupt kills the command's process group. The agent answers with Output and
// Errors, then Exit. A frame whose Session is not that of the last Args is left over
// from a host process that was killed, and counts for nothing.
type Frame struct {
	Session       string
	Args, Env     []string `json:",omitempty"`
	Input         []byte   `json:",omitempty"`
	Closed        bool     `json:",omitempty"`
	Interrupt     bool     `json:",omitempty"`
	Output, Error []byte   `json:",omitempty"`
	Exit          *int     `json:",omitempty"` // 128 and the signal's number, if one ended it
}

// cgroup is outside of every unit, as commands in other machines are.
const cgroup = "/sys/fs/cgroup/sandbox-commands"

func main() {
	var ports []string
	for len(ports) == 0 { // udev names them
		ports, _ = filepath.Glob("/dev/virtio-ports/sandbox.*")
		time.Sleep(50 * time.Millisecond)
	}
	if err := os.Mkdir(cgroup, 0o755); err != nil && !os.IsExist(err) {
		log.Fatal(err)
	}
	var all sync.WaitGroup
	for _, path := range ports {
		all.Add(1)
		go func() {
			defer all.Done()
			log.Print(path, ": ", serve(path))
		}()
	}
	all.Wait()
}

// port is a port, to which one goroutine writes at a time.
type port struct {
	sync.Mutex
	file *os.File
}

func (p *port) send(f Frame) {
	line, _ := json.Marshal(f)
	p.Lock()
	defer p.Unlock()
	p.file.Write(append(line, '\n'))
}

// serve runs the commands of a port.
func serve(path string) error {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	p := &port{file: os.NewFile(uintptr(fd), path)}
	var c *command
	var rest []byte // of a line whose end is still to come
	unconnected := 0
	for {
		lines := bufio.NewReader(p.file)
		for {
			line, err := lines.ReadBytes('\n')
			rest = append(rest, line...)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			line, rest, unconnected = rest, nil, 0
			var f Frame
			if json.Unmarshal(line, &f) != nil {
				continue // the rest of what a killed process wrote
			}
			if f.Args != nil {
				c.kill()
				c = start(p, f)
			} else if c != nil && f.Session == c.session {
				c.take(f)
			}
		}
		// Nobody is connected: reading does not wait. Without KVM, to ask more often
		// takes a fifth of a processor. The kernel says so for a moment, too, when
		// somebody has connected: that comes by another queue than what they wrote.
		if unconnected++; unconnected == 10 {
			c.kill()
			c = nil
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// command is a command that runs.
type command struct {
	session string
	process *os.Process
	input   chan []byte
	ended   atomic.Bool
}

func start(p *port, f Frame) *command {
	c := &command{session: f.Session}
	cmd := exec.Command(f.Args[0], f.Args[1:]...)
	cmd.Dir = "/"
	cmd.Env = f.Env
	dir, err := os.Open(cgroup)
	if err == nil {
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	cmd.Stdout = writer(func(b []byte) { p.send(Frame{Session: f.Session, Output: b}) })
	cmd.Stderr = writer(func(b []byte) { p.send(Frame{Session: f.Session, Error: b}) })
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		status := 127
		p.send(Frame{Session: f.Session, Error: []byte(err.Error() + "\n")})
		p.send(Frame{Session: f.Session, Exit: &status})
		return nil
	}
	c.process = cmd.Process
	c.input = make(chan []byte, 1<<16) // a command that does not read keeps no interrupt waiting
	go func() {
		for b := range c.input {
			if b == nil {
				stdin.Close()
			} else {
				stdin.Write(b)
			}
		}
	}()
	go func() {
		cmd.Wait()
		c.ended.Store(true)
		status := cmd.ProcessState.ExitCode()
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			status = 128 + int(ws.Signal())
		}
		p.send(Frame{Session: f.Session, Exit: &status})
	}()
	return c
}

func (c *command) take(f Frame) {
	if f.Interrupt {
		c.kill()
	}
	if len(f.Input) > 0 {
		c.input <- f.Input
	}
	if f.Closed {
		c.input <- nil
	}
}

// kill ends the command and what it started in its process group. What a command that
// has ended left in the background goes on.
func (c *command) kill() {
	if c != nil && !c.ended.Load() {
		syscall.Kill(-c.process.Pid, syscall.SIGKILL)
	}
}

// writer has a function called for each part of an output.
type writer func([]byte)

func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}
