// Command guest is what the end-to-end tests run in containers: it serves HTTP
// on every socket that it was passed, says READY=1 and ends with SIGTERM, once it has
// answered what it has accepted. "guest ask ADDRESS..." is a client, see ask.
package main

import (
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

	"oci-mainpid-hook/sdnotify"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	do := run
	if len(os.Args) > 1 && os.Args[1] == "ask" {
		do = func(ctx context.Context) error { return ask(ctx, os.Args[2:]) }
	}
	if err := do(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var servers sync.WaitGroup
	var all []*http.Server
	serve := func(l net.Listener, name string) {
		server := &http.Server{Handler: answer(name)}
		all = append(all, server)
		servers.Add(1)
		go func() {
			defer servers.Done()
			server.Serve(l)
		}()
	}
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
		serve(l, name)
	}
	if len(os.Args) > 1 { // serves on this address, too
		l, err := net.Listen("tcp", os.Args[1])
		if err != nil {
			return err
		}
		serve(l, os.Args[1])
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
	for _, server := range all {
		server.SetKeepAlivesEnabled(false)
		server.Shutdown(context.Background()) // accepts no more
	}
	// A connection may have been accepted that the server did not know yet.
	servers.Wait()
	for _, server := range all {
		server.Shutdown(context.Background())
	}
	return nil
}

// answer tells by which socket the question came, and which regular files
// this process has open.
func answer(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "hello from", name)
		links, _ := filepath.Glob("/proc/self/fd/*")
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "/") {
				fmt.Fprintln(w, target)
			}
		}
	})
}
