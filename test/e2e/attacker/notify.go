package main

import (
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// send TIMES MESSAGE... sends each message to systemd that many times, fewer if
// that takes too long. A comma in a message stands for the end of a line.
func send(args []string) error {
	times, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		socket = "/run/systemd/notify"
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	for range times {
		for _, message := range args[1:] {
			if _, err := conn.Write([]byte(strings.ReplaceAll(message, ",", "\n"))); err != nil {
				return err
			}
		}
	}
	// systemd must still find this process, to tell whose messages they were.
	time.Sleep(100 * time.Millisecond)
	return nil
}
