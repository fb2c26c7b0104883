package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/examples/early-service/fdpass"
)

// The handover, as the process that takes over sees it:
//
//	> pass_state_and_terminate
//	< 42 "" "get_c"     and files: the listening socket, each client's connection
//	> taken
//	< ended
//
// 42 is the number to come. Then comes what each client has sent of an unfinished
// command. Whoever passes does not count from the first line to the last. If "taken" does
// not come, nobody has taken over, and it counts on. Whoever takes over does not count
// before "ended" has come. So each number is counted once.
const (
	passTimeout = 5 * time.Second
	takeTimeout = 2 * passTimeout // so that there is one who ends
	maxState    = maxClients * (4*maxLine + 8)
)

// passTo hands everything over to a client, and reports whether it has taken it. If not,
// all is as it was, without that client.
func (s *service) passTo(to *client) bool {
	s.pause()
	state, files := strconv.FormatInt(s.next, 10), []syscall.Conn{s.listener}
	for c := range s.clients {
		if c != to {
			state += " " + strconv.QuoteToASCII(c.unanswered)
			files = append(files, c)
		}
	}
	log.Printf("passing the socket and %d clients on", len(files)-1)
	to.SetDeadline(time.Now().Add(passTimeout))
	err := fdpass.Send(to.UnixConn, state, files...)
	if err == nil {
		err = expect(to.UnixConn, "taken")
	}
	if err == nil {
		err = fdpass.Send(to.UnixConn, "ended")
	}
	if err == nil {
		log.Print("ended: another process counts on")
		return true
	}
	log.Printf("counting on, because nobody has taken over: %v", err)
	s.drop(to)
	s.resume()
	return false
}

// expect receives a line that can only be this one.
func expect(conn *net.UnixConn, want string) error {
	got, files, err := fdpass.Receive(conn, maxLine)
	for _, f := range files {
		f.Close()
	}
	if err == nil && got != want {
		err = fmt.Errorf("received %q, not %q", got, want)
	}
	return err
}

// takeOver takes everything over from the process that serves the path.
func (s *service) takeOver() (err error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: s.path})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(takeTimeout))
	log.Printf("taking over %s", s.path)
	if err := fdpass.Send(conn, passCommand); err != nil {
		return err
	}
	state, files, err := fdpass.Receive(conn, maxState)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close() // net has copies
		}
	}()
	if err := s.adopt(strings.Fields(state), files); err != nil {
		return fmt.Errorf("received %.80q with %d files: %w", state, len(files), err)
	}
	err = fdpass.Send(conn, "taken")
	if err == nil {
		err = expect(conn, "ended")
	}
	if err != nil {
		return err
	}
	log.Printf("taken over with %d clients: counting from %d on", len(s.clients), s.next)
	return nil
}

// adopt makes what was passed this service's own.
func (s *service) adopt(state []string, files []*os.File) (err error) {
	if len(files) == 0 || len(state) != len(files) || len(files) > maxClients {
		return fmt.Errorf("not a counter, its socket and at most %d clients", maxClients-1)
	}
	if s.next, err = parseCounter(state[0]); err != nil {
		return err
	}
	listener, err := net.FileListener(files[0])
	if err != nil {
		return fmt.Errorf("the first file is no socket: %w", err)
	}
	var ok bool
	if s.listener, ok = listener.(*net.UnixListener); !ok || s.listener.Addr().String() != s.path {
		return fmt.Errorf("the first file is not the socket, but %s", listener.Addr())
	}
	raw, err := s.listener.SyscallConn()
	if err != nil {
		return err
	}
	listens := 0
	raw.Control(func(fd uintptr) { listens, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN) })
	if listens != 1 {
		return fmt.Errorf("the first file is no listening socket (%v)", err)
	}
	for i, f := range files[1:] {
		unanswered, err := strconv.Unquote(state[1+i])
		if err != nil {
			return err
		}
		conn, err := net.FileConn(f)
		if err != nil {
			return err
		}
		client := &client{unanswered: unanswered}
		if client.UnixConn, ok = conn.(*net.UnixConn); !ok {
			return fmt.Errorf("file %d is no Unix socket", 2+i)
		}
		s.clients[client] = true
	}
	return nil
}
