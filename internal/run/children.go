package run

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/proc"
)

// children are this process's children. It is a subreaper (PR_SET_CHILD_SUBREAPER in
// prctl(2)), so conmon and whatever else is orphaned below it become its children, too,
// and it waits for any of them.
type children struct {
	mutex   sync.Mutex
	waiting map[int]chan unix.WaitStatus
	ended   map[int]unix.WaitStatus // nobody has waited for these
	signals chan os.Signal
}

// maxEnded bounds the children that ended before anybody asked for them.
const maxEnded = 10_000

// newChildren makes this process wait for its children, and, if subreaper, for the
// orphans below it.
func newChildren(subreaper bool) (*children, error) {
	if subreaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("become a subreaper: %w", err)
		}
	}
	c := &children{waiting: map[int]chan unix.WaitStatus{}, ended: map[int]unix.WaitStatus{}, signals: make(chan os.Signal, 1)}
	signal.Notify(c.signals, unix.SIGCHLD)
	go func() {
		for range c.signals {
			c.reap()
		}
	}()
	return c, nil
}

// reap takes the exit status of every child that has ended.
func (c *children) reap() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if w := c.waiting[pid]; w != nil {
			w <- status
			delete(c.waiting, pid)
		} else if len(c.ended) < maxEnded {
			c.ended[pid] = status
		}
	}
}

// start starts a command with that standard output, nil for none, and with the other files
// from descriptor 3 on. Its exit status comes by the channel.
func (c *children) start(args, env []string, stdout *os.File, files ...*os.File) (pid int, ended <-chan unix.WaitStatus, err error) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return 0, nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	if stdout == nil {
		stdout = null
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	p, err := os.StartProcess(path, args, &os.ProcAttr{Env: env, Files: append([]*os.File{null, stdout, os.Stderr}, files...)})
	if err != nil {
		return 0, nil, err
	}
	pid = p.Pid
	p.Release() // reap waits for it
	w := make(chan unix.WaitStatus, 1)
	c.waiting[pid] = w
	return pid, w, nil
}

// wait returns a channel by which the exit status of a child comes, or has come before.
func (c *children) wait(pid int) <-chan unix.WaitStatus {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	w := make(chan unix.WaitStatus, 1)
	if status, ok := c.ended[pid]; ok {
		w <- status
		delete(c.ended, pid)
	} else {
		c.waiting[pid] = w
	}
	return w
}

// awaitCleanup waits until the programs that conmon has left have ended: podman, which
// removes the container. It reports whether that was within the time. Others may stay,
// such as the user's pause process.
func (c *children) awaitCleanup(within time.Duration) bool {
	late := time.After(within)
	for {
		pids, err := proc.Children(os.Getpid())
		if err != nil {
			return false
		}
		i := slices.IndexFunc(pids, func(pid int) bool {
			p, err := proc.Read(pid)
			if err != nil || p.Ended() {
				return false
			}
			return p.NamedConmon() || slices.Contains([]string{"podman", "crun", "runc"}, p.Comm)
		})
		if i < 0 {
			return true
		}
		select {
		case <-c.wait(pids[i]):
		case <-late:
			return false
		}
	}
}

// exitStatus returns an exit status as a shell does: 128 and the signal's number for a
// process that a signal ended.
func exitStatus(w unix.WaitStatus) int {
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}

// await returns a channel that is closed when the process of a pidfd ends. It is for a
// process that is not a child.
func await(pidfd int) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(poll, -1); err != unix.EINTR {
				return
			}
		}
	}()
	return ended
}
