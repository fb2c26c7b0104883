package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lease FILE takes a lease (F_SETLEASE in fcntl(2)) on the file as soon as it is
// there, and gives it up when nobody asks for it any more: never.
func lease(args []string) error {
	signal.Ignore(syscall.SIGIO) // somebody wants to open it
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Microsecond) {
		fd, err := unix.Open(args[0], unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
			return fmt.Errorf("lease of %s: %w", args[0], err)
		}
		fmt.Println("held")
		idle()
	}
	return fmt.Errorf("%s: %w", args[0], os.ErrNotExist)
}

// put PID FD LINE writes a line into a descriptor of another process.
func put(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	fd, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open of process %d: %w", pid, err)
	}
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return fmt.Errorf("pidfd_getfd of descriptor %d of process %d: %w", fd, pid, err)
	}
	_, err = unix.Pwrite(own, []byte(args[2]+"\n"), 0)
	return err
}

// scribble FD TEXT writes the text to the beginning of a descriptor, again and
// again.
func scribble(args []string) error {
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for {
		if _, err := unix.Pwrite(fd, []byte(args[1]), 0); err != nil {
			return err
		}
	}
}
