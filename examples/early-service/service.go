package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxLine    = 64          // bytes of a command
	maxClients = 64          // at a time
	patience   = time.Second // for a client that does not read its answer
)

// service is the counter and those who ask for it.
type service struct {
	path     string
	listener *net.UnixListener // nil without a socket

	mutex    sync.Mutex
	next     int64 // the number to come
	clients  map[*client]bool
	deadline time.Time // past during a handover

	readers sync.WaitGroup
	passing chan *client // those whose first command is passCommand
	failed  chan error
}

// client is a connection, and what it has sent and nobody has answered yet.
type client struct {
	*net.UnixConn
	unanswered string
}

// newService returns a service that listens on the path, or has taken over what another
// process had there.
func newService(path string, take bool) (*service, error) {
	s := &service{path: path, clients: map[*client]bool{}, passing: make(chan *client, maxClients), failed: make(chan error, 1)}
	if path == "" {
		log.Print("listening on no socket")
		return s, nil
	}
	if take {
		err := s.takeOver()
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("take over %s: %w", path, err)
		}
		log.Printf("nobody serves %s: counting from 0", path)
	}
	address := &net.UnixAddr{Net: "unix", Name: path}
	var err error
	s.listener, err = net.ListenUnix("unix", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("listen: %s is no socket: type another --server_socket_path", path)
		}
		conn, dialErr := net.DialUnix("unix", nil, address)
		if dialErr == nil {
			conn.Close()
			return nil, fmt.Errorf("listen on %s: another process serves it: type --takeover_existing_socket to take it over", path)
		}
		if errors.Is(dialErr, syscall.ECONNREFUSED) { // left by a process that was killed
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			s.listener, err = net.ListenUnix("unix", address)
		}
	}
	if err != nil {
		return nil, err
	}
	log.Printf("listening on %s", path)
	return s, nil
}

// run counts, and serves clients, until another process has taken over or ctx is done.
func (s *service) run(ctx context.Context, delay time.Duration) error {
	s.resume()
	ticker := time.NewTicker(delay)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			if s.listener != nil {
				s.listener.SetUnlinkOnClose(true)
				s.listener.Close()
			}
			return nil
		case err := <-s.failed:
			return err
		case <-ticker.C:
			s.mutex.Lock()
			log.Print(s.next)
			s.next++
			s.mutex.Unlock()
		case c := <-s.passing:
			if s.passTo(c) {
				return nil
			}
		}
	}
}

// resume serves those who connect and those who have.
func (s *service) resume() {
	if s.listener == nil {
		return
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.setDeadline(time.Time{})
	s.readers.Add(1 + len(s.clients))
	go s.accept()
	for c := range s.clients {
		go s.read(c)
	}
}

// setDeadline ends all waiting for others, or lets it begin; the caller has the mutex.
func (s *service) setDeadline(t time.Time) {
	s.deadline = t
	s.listener.SetDeadline(t)
	for c := range s.clients {
		c.SetReadDeadline(t)
	}
}

// pause stops what resume has started. What a client has sent stays in the socket, or
// unanswered. New clients wait in the kernel's queue.
func (s *service) pause() {
	s.mutex.Lock()
	s.setDeadline(time.Unix(1, 0))
	s.mutex.Unlock()
	s.readers.Wait()
	for len(s.passing) > 0 {
		<-s.passing // the command is still unanswered
	}
}

func (s *service) accept() {
	defer s.readers.Done()
	for {
		conn, err := s.listener.AcceptUnix()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.failed <- err
			return
		}
		s.mutex.Lock()
		c := &client{UnixConn: conn}
		if full := len(s.clients) == maxClients; full {
			c.answer(fmt.Sprintf("error: there are %d clients already: ask again later", maxClients))
			c.Close()
		} else {
			c.SetReadDeadline(s.deadline)
			s.clients[c] = true
			s.readers.Add(1)
			go s.read(c)
		}
		s.mutex.Unlock()
	}
}

const passCommand = "pass_state_and_terminate"

// read answers a client until it goes, or until a handover.
func (s *service) read(c *client) {
	defer s.readers.Done()
	b := make([]byte, maxLine)
	for {
		if line, rest, found := strings.Cut(c.unanswered, "\n"); found {
			if strings.TrimSpace(line) == passCommand {
				s.passing <- c
				return
			}
			if c.answer(s.obey(line)) != nil {
				break
			}
			c.unanswered = rest
			continue
		}
		if len(c.unanswered) > maxLine {
			c.answer(fmt.Sprintf("error: a command has at most %d bytes", maxLine))
			break
		}
		n, err := c.Read(b)
		c.unanswered += string(b[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err == io.EOF && c.unanswered != "" { // the last line may lack its end
			c.unanswered += "\n"
		} else if err != nil {
			break
		}
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.drop(c)
}

// drop forgets a client; the caller has the mutex.
func (s *service) drop(c *client) {
	delete(s.clients, c)
	c.Close()
}

func (c *client) answer(line string) error {
	c.SetWriteDeadline(time.Now().Add(patience))
	_, err := io.WriteString(c, line+"\n")
	return err
}

// obey obeys a command, and returns the answer.
func (s *service) obey(command string) string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	words := strings.Fields(command)
	switch {
	case len(words) == 1 && words[0] == "get_counter":
		return strconv.FormatInt(s.next, 10)
	case len(words) == 2 && words[0] == "set_counter":
		n, err := parseCounter(words[1])
		if err != nil {
			return "error: " + err.Error() + ": type set_counter N"
		}
		log.Printf("setting the counter from %d to %d", s.next, n)
		defer func() { s.next = n }()
		return fmt.Sprintf("previous value %d", s.next)
	}
	return fmt.Sprintf("error: %.40q is no command: type get_counter, set_counter N or %s", command, passCommand)
}

// parseCounter leaves room to count for ever.
func parseCounter(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/2 {
		return 0, fmt.Errorf("counter %.40q: not a number from 0 to %d", text, int64(math.MaxInt64/2))
	}
	return n, nil
}
