// Command podman-pause is what oci-mainpid-pause@UID.service runs as a user, so
// that podman finds the user's namespaces: podman-pause(8).
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/internal/regular"
	"oci-mainpid-hook/sdnotify"
)

const usage = `Usage: podman-pause PODMAN [OPTION…]

Makes the pause process of the user's podman, with which all of the user's
podmans share their namespaces, whenever there is none.

See podman-pause(8).
`

func main() {
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	err := run(os.Getenv("XDG_RUNTIME_DIR"), os.Args[1:])
	// podman's own words may be several lines.
	fmt.Fprintf(os.Stderr, "podman-pause: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	os.Exit(1)
}

// leastLife bounds how often podman-pause makes a pause process: once in this time,
// also if each ends at once.
const leastLife = time.Second

// run makes the pause process whenever there is none, until it cannot.
func run(dir string, podman []string) error {
	if dir == "" {
		return errors.New("XDG_RUNTIME_DIR is not set")
	}
	for ready := false; ; {
		pidfd, err := openPause(dir)
		if err != nil {
			return err
		}
		if pidfd < 0 {
			if err := makePause(dir, podman); err != nil {
				return err
			}
			if pidfd, err = openPause(dir); err != nil {
				return err
			}
			if pidfd < 0 {
				return fmt.Errorf("%s has made no pause process in %s", podman[0], filepath.Join(dir, podmanDir))
			}
		}
		if !ready {
			tellReady()
			ready = true
		}
		since := time.Now()
		poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		for {
			if _, err = unix.Poll(poll, -1); err != unix.EINTR {
				break
			}
		}
		unix.Close(pidfd)
		if err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		time.Sleep(leastLife - time.Since(since))
	}
}

// tellReady tells the service manager, if one asks, that units may start.
func tellReady() {
	client, err := sdnotify.FromEnvironment()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := client.Send(ctx, sdnotify.Ready()); err != nil {
		fmt.Fprintf(os.Stderr, "podman-pause: %v\n", err)
	}
}

// podmanDir is where rootless podman keeps what must not outlive a boot, below
// the runtime directory.
const podmanDir = "libpod/tmp"

// openPause returns a pidfd of the pause process that podman would use, -1 where
// there is none.
func openPause(dir string) (pidfd int, err error) {
	path := filepath.Join(dir, podmanDir, "pause.pid")
	text, err := regular.Read(path, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil || pid <= 0 {
		return -1, nil // podman replaces such a file, too
	}
	pidfd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, nil
	}
	// Another process may have the PID now. Most likely it is in the same user
	// namespace as this one, which podman could not use.
	its, err := proc.UserNamespace(pid)
	if err == nil {
		var own string
		if own, err = proc.UserNamespace(os.Getpid()); err == nil && its != own {
			return pidfd, nil
		}
	}
	unix.Close(pidfd)
	return -1, nil
}

// invalidStatus is what podman says after the pause process and the conmons of all
// containers were killed: it still takes the containers for running.
const invalidStatus = "invalid internal status"

// makePause has podman make the pause process. podman 6 makes none as long as it finds
// its namespaces by ns_handles, which PODMAN_NO_PAUSE_PROCESS asks for. Without that
// file it finds those that are in use by the conmons that run.
func makePause(dir string, podman []string) error {
	if err := os.Remove(filepath.Join(dir, podmanDir, "ns_handles")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := unshare(podman)
	if err == nil {
		return nil
	}
	if alive, findErr := conmonLives(); alive || findErr != nil || !bytes.Contains(out, []byte(invalidStatus)) {
		return errors.Join(fmt.Errorf("%s: %w: %s", strings.Join(podman, " "), err, out), findErr)
	}
	// No conmon runs. Kill what is left of the containers in their scopes, because
	// nobody will watch or stop it.
	kill := exec.Command("systemctl", "--user", "kill", "--signal=KILL", "libpod-*.scope")
	if out, err := kill.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(kill.Args, " "), err, bytes.TrimSpace(out))
	}
	// Without the file "alive", podman starts as after a boot.
	for _, path := range []string{filepath.Join(dir, podmanDir, "alive"), fmt.Sprintf("/dev/shm/libpod_rootless_lock_%d", os.Getuid())} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if out, err = unshare(podman); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(podman, " "), err, out)
	}
	fmt.Fprintln(os.Stderr, "podman-pause: all of the user's containers had been killed, and podman did not know: made it look anew")
	return nil
}

// unshare runs the podman command that does nothing but enter the namespaces.
func unshare(podman []string) (output []byte, err error) {
	cmd := exec.Command(podman[0], append(podman[1:len(podman):len(podman)], "unshare", "true")...)
	cmd.Env = append(os.Environ(), "PODMAN_NO_PAUSE_PROCESS=0")
	output, err = cmd.CombinedOutput()
	return bytes.TrimSpace(output), err
}

// conmonLives reports whether a conmon of the user's does.
func conmonLives() (bool, error) {
	pids, err := proc.PIDs()
	if err != nil {
		return false, err
	}
	for _, pid := range pids {
		if p, err := proc.Read(pid); err != nil || !p.NamedConmon() || p.Ended() {
			continue
		}
		status, err := proc.ReadStatus(pid)
		if err != nil {
			continue
		}
		if uid, ok := status.UID(); ok && uid == os.Getuid() {
			return true, nil
		}
	}
	return false, nil
}
