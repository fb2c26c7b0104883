// Package confine takes from this process what it does not need, because it
// reads what a user controls: it bounds its time and memory, and gives up its
// privileges.
package confine

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What this process may use at most. Both are many times what it ever needs.
const (
	maxCPU  = 10        // seconds
	maxData = 256 << 20 // bytes; a Go program that does nothing maps 40 MiB
)

// Bound has the kernel bound this process' processor time and memory, and forbid
// core dumps (setrlimit(2)). A process that exceeds a bound ends.
func Bound() error {
	for _, limit := range []struct {
		name     string
		resource int
		max      uint64
	}{
		{"RLIMIT_CORE", unix.RLIMIT_CORE, 0},
		{"RLIMIT_CPU", unix.RLIMIT_CPU, maxCPU},
		{"RLIMIT_DATA", unix.RLIMIT_DATA, maxData},
	} {
		// A limit that is lower already stays: only root may raise it.
		var have unix.Rlimit
		err := unix.Getrlimit(limit.resource, &have)
		if err == nil && have.Max > limit.max {
			err = unix.Setrlimit(limit.resource, &unix.Rlimit{Cur: limit.max, Max: limit.max})
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", limit.name, err)
		}
	}
	return nil
}

// Privileges gives up, for good, all capabilities(7) of this process but those to
// keep, a bit each (1<<unix.CAP_…), and the way to new ones, no_new_privs.
//
// The Go runtime has several threads already. The kernel keeps both for each
// thread, so Privileges changes all of them.
func Privileges(keep uint32) error {
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		// ENOTSUP: built with cgo, whose threads the runtime does not know.
		return fmt.Errorf("give up new privileges: %w", errno)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	kept := keep & have[0].Permitted
	data := [2]unix.CapUserData{{Effective: kept, Permitted: kept}}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return fmt.Errorf("give up capabilities: %w", errno)
	}
	return nil
}
