package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// programs are those that the trap stands in front of, by their names.
var programs = map[string]string{
	"podman":           "/usr/bin/podman",
	"conmon":           "/usr/bin/conmon",
	"crun":             "/usr/bin/crun",
	"runc":             "/usr/bin/runc",
	"oci-mainpid-hook": "/usr/libexec/oci/hooks.d/oci-mainpid-hook",
	"notify-mainpid":   "/usr/libexec/oci-mainpid/notify-mainpid",
	"oci-mainpid":      "/usr/bin/oci-mainpid",
}

// trap is told of each execution of the programs before it happens: the process
// waits in execve(2) until the trap lets it go on (FAN_OPEN_EXEC_PERM in
// fanotify(7)). So no process is too short-lived to be hit, at any time of its
// life.
type trap struct {
	fd int

	mutex sync.Mutex
	// executions of each program since set
	counts map[string]int
	snare  *snare
	// containers are the units by the IDs of the containers that their podmans
	// have had conmon make.
	containers map[string]string
}

// snare waits for one execution.
type snare struct {
	// "runtime" is crun or runc. conmon executes nothing of its own but once, and
	// forks then: "conmon" is its child that is about to execute the runtime.
	program string
	nth     int // from 1
	// act is called while the process waits; it exists until act returns.
	act func(pid int)
}

func newTrap() (*trap, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return nil, fmt.Errorf("fanotify_init: %w", err)
	}
	for _, path := range programs {
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_EXEC_PERM, unix.AT_FDCWD, path); err != nil {
			return nil, fmt.Errorf("fanotify_mark %s: %w", path, err)
		}
	}
	t := &trap{fd: fd, counts: map[string]int{}, containers: map[string]string{}}
	go t.serve()
	return t, nil
}

// set replaces the snare; nil for none.
func (t *trap) set(s *snare) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.snare = s
	clear(t.counts)
}

// unit returns the unit whose container has the ID, "" if unknown.
func (t *trap) unit(container string) string {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return t.containers[container]
}

func (t *trap) serve() {
	buffer := make([]byte, 16<<10)
	for {
		n, err := unix.Read(t.fd, buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "soak: read fanotify:", err)
			os.Exit(2)
		}
		for at := 0; at < n; {
			event := (*unix.FanotifyEventMetadata)(unsafe.Pointer(&buffer[at]))
			at += int(event.Event_len)
			// A process that is held holds up no other.
			go t.handle(int(event.Fd), int(event.Pid))
		}
	}
}

func (t *trap) handle(fd, pid int) {
	if s := t.seen(fd, pid); s != nil {
		s.act(pid)
	}
	response := unix.FanotifyResponse{Fd: int32(fd), Response: unix.FAN_ALLOW}
	// ENOENT: the process was killed meanwhile.
	unix.Write(t.fd, unsafe.Slice((*byte)(unsafe.Pointer(&response)), unsafe.Sizeof(response)))
	unix.Close(fd)
}

// seen counts the execution, and returns the snare if it is its.
func (t *trap) seen(fd, pid int) *snare {
	path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	name := filepath.Base(path)
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if name != "conmon" {
		t.counts[name]++
	}
	isRuntime := name == "crun" || name == "runc"
	if isRuntime {
		t.counts["runtime"]++
		// Until it executes the runtime, conmon's child is conmon.
		if c, ok := readConmon(pid); ok {
			name, t.counts["conmon"] = "conmon", t.counts["conmon"]+1
			t.containers[c.container] = environ(pid)[unitVariable]
		}
	}
	s := t.snare
	if s == nil || s.program != name && (s.program != "runtime" || !isRuntime) || t.counts[s.program] != s.nth {
		return nil
	}
	t.snare = nil
	return s
}

// conmon is what a conmon's command line says.
type conmon struct {
	container, name, pidFile, conmonPIDFile string
}

func readConmon(pid int) (conmon, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return conmon{}, false
	}
	args := strings.Split(string(text), "\x00")
	if filepath.Base(args[0]) != "conmon" {
		return conmon{}, false
	}
	var c conmon
	for i := 1; i+1 < len(args); i++ {
		switch args[i] {
		case "-c":
			c.container = args[i+1]
		case "-n":
			c.name = args[i+1]
		case "-p":
			c.pidFile = args[i+1]
		case "--conmon-pidfile":
			c.conmonPIDFile = args[i+1]
		case "--exit-command":
			return c, true
		}
	}
	return c, true
}

func environ(pid int) map[string]string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	all := map[string]string{}
	for _, assignment := range bytes.Split(text, []byte{0}) {
		name, value, _ := strings.Cut(string(assignment), "=")
		all[name] = value
	}
	return all
}

// signalAfter has do send the signal to the process when that has run on for a
// while; what do is given reports whether it was still there.
func signalAfter(pid int, delay time.Duration, signal unix.Signal, do func(send func() bool)) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		do(func() bool { return false })
		return
	}
	send := func() {
		do(func() bool { return unix.PidfdSendSignal(fd, signal, nil, 0) == nil })
		unix.Close(fd)
	}
	if delay == 0 {
		send()
		return
	}
	time.AfterFunc(delay, send)
}
