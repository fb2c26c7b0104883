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

// leastLife keeps this from making one pause process after another where each
// ends at once.
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
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil || pid <= 0 {
		return -1, nil // podman makes it anew, too
	}
	pidfd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, nil
	}
	// Another process that has the PID now is, most likely, in the same user
	// namespace as this one, which is none that podman could use.
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err == nil {
		var own string
		if own, err = os.Readlink("/proc/self/ns/user"); err == nil && its != own {
			return pidfd, nil
		}
	}
	unix.Close(pidfd)
	return -1, nil
}

// invalidStatus is what podman says where it takes containers for running whose
// conmons, and the pause process with them, were killed.
const invalidStatus = "invalid internal status"

// makePause has podman make the pause process.
func makePause(dir string, podman []string) error {
	out, err := unshare(podman)
	if err == nil {
		return nil
	}
	if alive, findErr := conmonLives(); alive || findErr != nil || !bytes.Contains(out, []byte(invalidStatus)) {
		return errors.Join(fmt.Errorf("%s: %w: %s", strings.Join(podman, " "), err, out), findErr)
	}
	// Of podman's nothing runs, and what containers have left behind in their
	// scopes will be nobody's.
	kill := exec.Command("systemctl", "--user", "kill", "--signal=KILL", "libpod-*.scope")
	if out, err := kill.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(kill.Args, " "), err, bytes.TrimSpace(out))
	}
	// It is as after a boot, which podman knows by the first.
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
	output, err = cmd.CombinedOutput()
	return bytes.TrimSpace(output), err
}

// conmonLives reports whether a conmon of the user's does.
func conmonLives() (bool, error) {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	for _, p := range processes {
		name, err := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
		if err != nil || string(bytes.TrimSpace(name)) != "conmon" {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", p.Name()), &st) == nil && int(st.Uid) == os.Getuid() {
			return true, nil
		}
	}
	return false, nil
}
