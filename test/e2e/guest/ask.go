package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// ask connects to each address, a path or HOST:PORT, again and again, until it gets
// SIGTERM. Then it prints how many connections were answered, and how many were not.
// Between two there is a millisecond, for the others who need the processor.
func ask(ctx context.Context, addresses []string) error {
	var mutex sync.Mutex
	answered, lost, longest := 0, 0, time.Duration(0)
	var group sync.WaitGroup
	for _, address := range addresses {
		group.Add(1)
		go func() {
			defer group.Done()
			for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
				start := time.Now()
				err := question(address)
				mutex.Lock()
				longest = max(longest, time.Since(start))
				if answered++; err != nil {
					answered--
					lost++
					fmt.Printf("lost %s: %v\n", address, err)
				}
				mutex.Unlock()
			}
		}()
	}
	group.Wait()
	fmt.Printf("answered %d lost %d longest %v\n", answered, lost, longest.Round(time.Millisecond))
	return nil
}

// question asks once, on a connection of its own.
func question(address string) error {
	network := "tcp"
	if strings.HasPrefix(address, "/") {
		network = "unix"
	}
	conn, err := net.DialTimeout(network, address, 20*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err == nil && !strings.Contains(string(answer), "hello from") {
		err = fmt.Errorf("answer %q", answer)
	}
	return err
}
