package main

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
)

// harden gives up, for good, what waiting and verifying do not need: all
// capabilities(7) but those to read the process of another user and the mainpid
// file that belongs to him, the way to new ones, and core dumps.
//
// The Go runtime has threads already: what the kernel keeps for each thread is
// changed in all of them.
func harden() error {
	if err := conmonbridge.Bound(); err != nil {
		return err
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		// ENOTSUP: built with cgo, whose threads the runtime does not know.
		return fmt.Errorf("give up new privileges: %w", errno)
	}
	const keep = 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH
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
