package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fake writes a podman of the test's, and returns its path.
func fake(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "podman")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFailures(t *testing.T) {
	for _, c := range []struct{ name, script, pause, want string }{
		{"podman fails", "echo no subuids; exit 125", "", "exit status 125: no subuids"},
		{"podman makes none", "exit 0", "", "has made no pause process"},
		{"what is no PID", "exit 0", "x", "has made no pause process"},
		{"a PID that no process has", "exit 0", "4194303", "has made no pause process"},
		{"a PID that another process has now", "exit 0", strconv.Itoa(os.Getpid()), "has made no pause process"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.pause != "" {
				write(t, dir, c.pause)
			}
			if err := run(dir, []string{fake(t, c.script)}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if err := run("", []string{"podman"}); err == nil || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("without a runtime directory: %v", err)
	}
}

func write(t *testing.T, dir, text string) {
	t.Helper()
	path := filepath.Join(dir, podmanDir, "pause.pid")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMadeAnew: systemd is told once, and each pause process that ends has a
// successor.
func TestMadeAnew(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "")
	file := filepath.Join(dir, podmanDir, "pause.pid")
	// As podman 6 does, which needs no pause process as long as it has such a file.
	handles := filepath.Join(dir, podmanDir, "ns_handles")
	if err := os.WriteFile(handles, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PODMAN_NO_PAUSE_PROCESS", "1")
	podman := fake(t, fmt.Sprintf(`[ "$*" = "--log-level=error unshare true" ] || exit 7
		[ "$PODMAN_NO_PAUSE_PROCESS" = 0 ] && [ ! -e %s ] || exit 0
		unshare --user sleep 1000 </dev/null >/dev/null 2>&1 &
		until [ "$(readlink /proc/$!/ns/user)" != "$(readlink /proc/$$/ns/user)" ]; do sleep 0.01; done
		echo $! >%s`, handles, file))
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	ended := make(chan error, 1)
	go func() { ended <- run(dir, []string{podman, "--log-level=error"}) }()

	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 100)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Fatalf("systemd was told %q, %v", b[:n], err)
	}
	last := 0
	for range 3 {
		pid := last
		for deadline := time.Now().Add(20 * time.Second); pid == last; time.Sleep(10 * time.Millisecond) {
			if text, err := os.ReadFile(file); err == nil {
				if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
					pid = n
				}
			}
			if time.Now().After(deadline) {
				t.Fatal("there is no other pause process")
			}
		}
		last = pid
		t.Cleanup(func() { unix.Kill(pid, unix.SIGKILL) })
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	// The last that ends has no successor where podman fails.
	if err := os.Rename(podman, podman+".gone"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !strings.Contains(err.Error(), podman) {
			t.Errorf("%v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
	}
}
