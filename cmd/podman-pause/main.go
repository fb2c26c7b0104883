// Command podman-pause is what a unit runs as its user, ExecStartPre=, so that
// podman finds the user's namespaces: podman-pause(8).
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const usage = `Usage: podman-pause PODMAN [OPTION…]

Makes the pause process of the user's podman, with which all of the user's
podmans share their namespaces, if there is none. PODMAN and its options are
those with which the container will be run.

See podman-pause(8).
`

func main() {
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if pauses(dir) {
		return
	}
	if err := makePause(dir, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "podman-pause: %v\n", err)
		os.Exit(1)
	}
}

// podmanDir is where rootless podman keeps what must not outlive a boot, below
// the runtime directory.
const podmanDir = "libpod/tmp"

// pauses reports whether the pause process that podman would use lives. It is
// all that most starts need, so it costs them one file and two links.
func pauses(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, podmanDir, "pause.pid"))
	if err != nil {
		return false
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil || pid <= 0 {
		return false
	}
	// Another process that has the PID now is, most likely, in the same user
	// namespace as this one, which is none that podman could use.
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return false
	}
	own, err := os.Readlink("/proc/self/ns/user")
	return err == nil && its != own
}

// makePause has podman make the pause process, one unit of the user's after
// another.
func makePause(dir string, podman []string) error {
	// The directory itself is what there is at any time to lock.
	lock, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("runtime directory: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	if pauses(dir) {
		return nil
	}
	out, err := unshare(podman)
	if err == nil {
		return nil
	}
	if alive, findErr := conmonLives(); alive || findErr != nil {
		return errors.Join(fmt.Errorf("%s: %w: %s", strings.Join(podman, " "), err, out), findErr)
	}
	// podman has containers that it takes for running, looks for the namespaces
	// of one of their conmons, and gives up where all were killed, and the pause
	// process with them. Of podman's nothing runs then, and what containers have
	// left behind in their scopes will be nobody's.
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
