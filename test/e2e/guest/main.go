// Command guest is what the end-to-end tests run in containers: it serves HTTP
// on every socket that it was passed, says READY=1 and ends with SIGTERM, once it has
// answered what it has accepted. "guest ask ADDRESS..." and "guest count SOCKET" are
// clients, see ask and count.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"oci-mainpid-hook/sdnotify"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	do := run
	if len(os.Args) > 1 && os.Args[1] == "ask" {
		do = func(ctx context.Context) error { return ask(ctx, os.Args[2:]) }
	}
	if len(os.Args) == 4 && os.Args[1] == "count" {
		do = func(ctx context.Context) error { return count(ctx, os.Args[2], os.Args[3]) }
	}
	if err := do(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var all servers
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	for i := range n {
		name := "unnamed"
		if i < len(names) {
			name = names[i]
		}
		l, err := net.FileListener(os.NewFile(uintptr(3+i), name))
		if err != nil {
			return fmt.Errorf("descriptor %d, %s: %w", 3+i, name, err)
		}
		all.serve(l, name)
	}
	if len(os.Args) > 1 { // serves on this address, too
		l, err := net.Listen("tcp", os.Args[1])
		if err != nil {
			return err
		}
		all.serve(l, os.Args[1])
	}
	client, err := sdnotify.FromEnvironment()
	if err == nil {
		err = client.Send(ctx, sdnotify.Ready())
	}
	if err != nil && !errors.Is(err, sdnotify.ErrNoSocket) {
		return err
	}
	fmt.Println("ready")
	<-ctx.Done()
	if err == nil {
		err = client.Send(context.Background(), sdnotify.Stopping())
	} else {
		err = nil
	}
	all.drain()
	return err
}

// servers answer what they accept. Those of net/http would not do: their Shutdown closes
// a connection that is accepted and whose request is not read yet (Go 1.24).
type servers struct {
	listeners []net.Listener
	accepting sync.WaitGroup
	answering sync.WaitGroup
}

// serve answers each connection to the listener once.
func (s *servers) serve(l net.Listener, name string) {
	s.listeners = append(s.listeners, l)
	s.accepting.Add(1)
	go func() {
		defer s.accepting.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.answering.Add(1)
			go func() {
				defer s.answering.Done()
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					body := answer(name)
					fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				}
			}()
		}
	}()
}

// drain accepts no more, and returns when all that was accepted is answered.
func (s *servers) drain() {
	for _, l := range s.listeners {
		l.Close()
	}
	s.accepting.Wait()
	s.answering.Wait()
}

// answer tells by which socket the question came, and which regular files
// this process has open.
func answer(name string) string {
	var text strings.Builder
	fmt.Fprintln(&text, "hello from", name)
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "/") {
			fmt.Fprintln(&text, target)
		}
	}
	return text.String()
}
