package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// journal TIMES SIZE MESSAGE [FIELD=VALUE...] sends an entry that many times to
// the journal. It has as many more messages as make it that large; each is as long
// as journalctl(1) shows a field at most, and has bytes that take three or more
// there.
func sendJournal(args []string) error {
	times, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var entry bytes.Buffer
	field := func(name, value string) {
		// The journal's native protocol, with which a value may have any byte.
		entry.WriteString(name + "\n")
		binary.Write(&entry, binary.LittleEndian, uint64(len(value)))
		entry.WriteString(value + "\n")
	}
	field("PRIORITY", "5")
	field("MESSAGE", args[2])
	// Each differs: journald keeps one of those that are alike.
	for entry.Len() < size {
		field("MESSAGE", fmt.Sprintf("%d%s", entry.Len(), strings.Repeat("\x01", 4000)))
	}
	for _, arg := range args[3:] {
		name, value, _ := strings.Cut(arg, "=")
		field(name, value)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: "/run/systemd/journal/socket", Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	for range times {
		if entry.Len() < 180_000 {
			_, err = conn.Write(entry.Bytes())
		} else {
			err = sendMemory(conn, entry.Bytes())
		}
		if err != nil {
			return err
		}
	}
	// journald must still find this process.
	time.Sleep(300 * time.Millisecond)
	return nil
}

// sendMemory sends an entry that is too large for a datagram: as sealed memory,
// memfd_create(2).
func sendMemory(conn *net.UnixConn, entry []byte) error {
	fd, err := unix.MemfdCreate("entry", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, entry); err != nil {
		return err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal memory: %w", err)
	}
	_, _, err = conn.WriteMsgUnix(nil, unix.UnixRights(fd), nil)
	return err
}
