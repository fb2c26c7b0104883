package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Outcomes of a fault: it was not reached, it came too late for the process, or
// it came.
const (
	notReached int32 = iota
	tooLate
	hit
)

// injection is a step's fault under way.
type injection struct {
	outcome atomic.Int32
	undo    func() error // once

	mutex sync.Mutex // while the fault comes
	over  bool       // its step, so that it does not come any more
}

// badTime is how long the surroundings are bad, at most. They are good again
// even if this program gets no answer meanwhile: where systemd gets no PID, it
// starts a pod that a container needs again and again, without a pause.
const badTime = 3 * time.Second

// came notes that the moment of the fault has come, and whether it did anything.
func (in *injection) came(did bool) {
	in.outcome.Store(tooLate)
	if did {
		in.outcome.Store(hit)
	}
}

// do has the fault come, by act, which reports whether it did anything; it does
// not come when its step is over.
func (in *injection) do(act func() bool) {
	in.mutex.Lock()
	defer in.mutex.Unlock()
	if !in.over {
		in.came(act())
	}
}

// inject arms the fault of a step, or makes the surroundings bad.
func (d *driver) inject(s *step) (*injection, error) {
	in := &injection{undo: func() error { return nil }}
	set := func(act func(pid int)) { d.trap.set(&snare{s.program, s.nth, act}) }
	// later has something done at the moment, not to the process.
	later := func(act func() bool) {
		set(func(int) {
			if s.delay == 0 {
				in.do(act) // while the process is held
				return
			}
			time.AfterFunc(s.delay, func() { in.do(act) })
		})
	}
	var err error
	switch s.fault {
	case faultSignal:
		set(func(pid int) {
			pid = aim(s, pid)
			signalAfter(pid, s.delay, s.signal, in.do)
			if s.signal == unix.SIGSTOP {
				signalAfter(pid, s.delay+s.pause, unix.SIGCONT, func(send func() bool) { send() })
			}
		})
	case faultMain:
		later(func() bool {
			states := map[string]state{s.units[0].Name: {}}
			if d.agent.details(states) != nil {
				return false
			}
			pid := states[s.units[0].Name].mainPID
			return pid > 1 && unix.Kill(pid, unix.SIGKILL) == nil
		})
	case faultManager:
		later(func() bool {
			service := fmt.Sprintf("user@%d.service", s.units[0].user.UID)
			manager := func() int {
				states := map[string]state{service: {}}
				if d.agent.details(states) != nil {
					return 0
				}
				return states[service].mainPID
			}
			pid := manager()
			if pid <= 1 || unix.Kill(pid, unix.SIGKILL) != nil {
				return false
			}
			// Until systemd has noticed, all that was the manager's looks well.
			for deadline := time.Now().Add(badTime); manager() == pid && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(100 * time.Millisecond)
			return true
		})
	case faultReexec:
		// As daemon-reexec, systemd(1).
		later(func() bool { return unix.Kill(1, unix.SIGTERM) == nil && d.agent.await() == nil })
	case faultReload:
		later(func() bool { return d.agent.reload() == nil })
	case faultRlimit:
		set(func(pid int) {
			pid = aim(s, pid)
			limit := unix.Rlimit{Cur: uint64(s.amount), Max: uint64(s.amount)}
			in.came(unix.Prlimit(pid, unix.RLIMIT_AS, &limit, nil) == nil)
		})
	case faultMemory:
		if d.memory == "" {
			break
		}
		dir := filepath.Join(d.memory, fmt.Sprintf("soak-%d-%d", os.Getpid(), s.number))
		if err = os.Mkdir(dir, 0o755); err != nil {
			break
		}
		if err = os.WriteFile(dir+"/memory.limit_in_bytes", []byte(fmt.Sprint(s.amount)), 0); err != nil {
			break
		}
		set(func(pid int) {
			pid = aim(s, pid)
			in.came(os.WriteFile(dir+"/cgroup.procs", []byte(fmt.Sprint(pid)), 0) == nil)
		})
		in.undo = func() error { return d.leaveMemory(dir) }
	case faultRun:
		in.undo, err = fill("/run", s.amount)
		in.outcome.Store(hit)
	case faultUserRun:
		dir := fmt.Sprintf("/run/user/%d", s.units[0].user.UID)
		if _, statErr := os.Stat(dir); statErr == nil {
			in.undo, err = fill(dir, s.amount)
			in.outcome.Store(hit)
		}
	case faultPIDs:
		in.undo, err = fewPIDs(s.amount)
		in.outcome.Store(hit)
	}
	if err == nil {
		in.undo = sync.OnceValue(in.undo)
		if s.surroundings() {
			time.AfterFunc(badTime, func() { in.undo() })
		}
	}
	return in, err
}

// aim returns the process of the step's program, of which pid is one that
// has been caught.
func aim(s *step, pid int) int {
	if s.program == "conmon" {
		if p, ok := readProcess(pid, nil); ok {
			return p.parent
		}
	}
	return pid
}

// end disarms the fault, waits for one that is under way, and undoes what it did
// to the surroundings.
func (d *driver) end(in *injection) error {
	d.trap.set(nil)
	in.mutex.Lock()
	in.over = true
	in.mutex.Unlock()
	return in.undo()
}

// fill leaves so many pages free of a tmpfs: it has no more room than what is
// used, tmpfs(5).
func fill(mount string, pages int) (undo func() error, err error) {
	var now unix.Statfs_t
	if err := unix.Statfs(mount, &now); err != nil {
		return nil, err
	}
	resize := func(bytes uint64) error {
		if err := unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d", bytes)); err != nil {
			return fmt.Errorf("resize %s to %d bytes: %w", mount, bytes, err)
		}
		return nil
	}
	size := uint64(now.Bsize)
	undo = func() error {
		// With the user's manager its tmpfs goes.
		if err := resize(now.Blocks * size); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	}
	return undo, resize((now.Blocks - now.Bfree + uint64(pages)) * size)
}

const pidMaxFile = "/proc/sys/kernel/pid_max"

// fewPIDs leaves room for so many more processes. Since Linux 6.14 pid_max is
// each PID namespace's own.
func fewPIDs(free int) (undo func() error, err error) {
	old, err := os.ReadFile(pidMaxFile)
	if err != nil {
		return nil, err
	}
	// The kernel gives PIDs from 300 on, RESERVED_PIDS, and takes no maximum below.
	const reserved = 300
	top := reserved
	for taken := free; taken >= 0 && top < reserved+4096; top++ {
		if unix.Kill(top, 0) == unix.ESRCH {
			taken--
		}
	}
	err = os.WriteFile(pidMaxFile, []byte(fmt.Sprint(max(top, reserved+1))), 0)
	return func() error { return os.WriteFile(pidMaxFile, old, 0) }, err
}

// mountMemory makes the memory controller of cgroups(7), version 1, usable,
// whose hierarchy holds the machine. It returns "" where there is none.
func mountMemory() string {
	const dir = "/run/soak-memory"
	if os.MkdirAll(dir, 0o755) != nil || unix.Mount("soak", dir, "cgroup", 0, "memory") != nil {
		return ""
	}
	return dir
}

// leaveMemory moves all processes out of a control group and removes it.
func (d *driver) leaveMemory(dir string) error {
	var err error
	for range 100 {
		// Those that are at the limit get on.
		os.WriteFile(dir+"/memory.limit_in_bytes", []byte("-1"), 0)
		text, _ := os.ReadFile(dir + "/cgroup.procs")
		for _, pid := range strings.Fields(string(text)) {
			os.WriteFile(d.memory+"/cgroup.procs", []byte(pid), 0)
		}
		if err = unix.Rmdir(dir); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove %s: %w", dir, err)
}
