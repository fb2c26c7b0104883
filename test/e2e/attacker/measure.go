package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How long a process may take to end when it gets SIGTERM, and SIGKILL.
const (
	termTime = 5 * time.Second
	killTime = 3 * time.Second
)

// measure TIME FILE COMMAND... runs a command, which writes into the file, and
// prints how it ended, its exit status, its largest resident set in KiB, its time
// in ms, its processor time in ms, and the bytes and lines of the file.
//
// It ended by itself, or when it got SIGTERM after that time, or only by SIGKILL;
// or it is stuck, not even SIGKILL ends it.
func measure(args []string) error {
	limit, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	out, err := os.Create(args[1])
	if err != nil {
		return err
	}
	cmd := exec.Command(args[2], args[3:]...)
	cmd.Stdout, cmd.Stderr = out, out
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	how := ""
	for _, step := range []struct {
		how    string
		within time.Duration
		next   unix.Signal
	}{{"ended", limit, unix.SIGTERM}, {"terminated", termTime, unix.SIGKILL}, {"killed", killTime, 0}} {
		select {
		case <-done:
			how = step.how
		case <-time.After(step.within):
			if step.next != 0 {
				cmd.Process.Signal(step.next)
			}
		}
		if how != "" {
			break
		}
	}
	took := time.Since(start)
	text, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	lines := bytes.Count(text, []byte("\n"))
	if how == "" {
		fmt.Println("stuck", -1, 0, took.Milliseconds(), 0, len(text), lines)
		return nil
	}
	usage := cmd.ProcessState
	fmt.Println(how, usage.ExitCode(), usage.SysUsage().(*syscall.Rusage).Maxrss, took.Milliseconds(), (usage.UserTime() + usage.SystemTime()).Milliseconds(), len(text), lines)
	return nil
}

// mute SOCKET listens, and never answers who connects.
func mute(args []string) error {
	os.Remove(args[0])
	l, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	if err := os.Chmod(args[0], 0o666); err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		// Descriptors of connections that nothing refers to are closed.
		c, err := l.Accept()
		if err != nil {
			return errors.Join(err, l.Close())
		}
		go func() {
			defer c.Close()
			idle()
		}()
	}
}
