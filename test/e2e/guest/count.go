package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// count asks an early-service every 10 ms, until it gets SIGTERM. It writes a line to the
// file for each: when, how long it took, in microseconds since the boot, and the counter or
// the error.
func count(ctx context.Context, socket, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	ticker := time.NewTicker(10 * time.Millisecond)
	for {
		start := uptime()
		n, err := counter(socket)
		if err != nil {
			fmt.Fprintln(f, start, uptime()-start, "error:", err)
		} else {
			fmt.Fprintln(f, start, uptime()-start, n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// uptime returns the microseconds of CLOCK_MONOTONIC.
func uptime() int64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano() / 1000
}

func counter(socket string) (n int64, err error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintln(conn, "get_counter")
	_, err = fmt.Fscan(conn, &n)
	return n, err
}
