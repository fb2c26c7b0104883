package main

import (
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// inside TIMES MESSAGE... is for the first process of a container that says it has a
// systemd. It sends each message, a comma of which stands for a newline and a ^ for a
// carriage return, with a descriptor, then a megabyte, then that multi-user.target is active. A child of it sends
// that evil.target is, and ends at once. Then it sends a STATUS= that many times, as fast
// as it can, and waits for SIGTERM.
func inside(args []string) error {
	times, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe", "say", "X_SYSTEMD_UNIT_ACTIVE=evil.target,MAINPID=1")
	if err := child.Run(); err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	rights := syscall.UnixRights(int(null.Fd()))
	socket, err := conn.File()
	if err != nil {
		return err
	}
	for _, message := range args[1:] {
		text := strings.NewReplacer(",", "\n", "^", "\r").Replace(message)
		if err := syscall.Sendmsg(int(socket.Fd()), []byte(text), rights, nil, 0); err != nil {
			return err
		}
	}
	// The kernel takes no datagram of a megabyte, but one of 200,000 bytes.
	for _, size := range []int{1 << 20, 200_000, 4097} {
		conn.Write([]byte("MAINPID=1\n" + strings.Repeat("x", size)))
	}
	if _, err := conn.Write([]byte("X_SYSTEMD_SIGNALS_LEVEL=2\nX_SYSTEMD_UNIT_ACTIVE=multi-user.target")); err != nil {
		return err
	}
	go func() {
		for i := range times {
			conn.Write([]byte("STATUS=" + strconv.Itoa(i) + "\nMAINPID=1"))
		}
	}()
	<-end
	return nil
}

// say MESSAGE sends a message and ends at once.
func say(args []string) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(strings.ReplaceAll(args[0], ",", "\n")))
	return err
}
