package replace

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/internal/regular"
	"oci-mainpid-hook/sdnotify"
)

// command is the podman that starts the new container.
type command struct {
	unit    *Unit
	cmd     *exec.Cmd
	tail    *tail
	mainPID string // the file that the hook writes conmon's PID into

	notify *net.UnixConn // nil unless the container is ready with READY=1
	socket string        // path of notify
	group  *os.File      // the control group that podman starts in
}

// command prepares podman's command, which gets the sockets.
func (u *Unit) command(ctx context.Context, o Options, held sockets) (c *command, err error) {
	c = &command{unit: u, tail: &tail{w: u.Stderr}, mainPID: u.mainPIDPath()}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	args := o.Args
	set := map[string]string{handover.EnvMainPIDFile: c.mainPID}
	if err := os.WriteFile(c.mainPID, nil, 0o600); err != nil {
		return nil, err
	}
	// The hook must not wait for notify-mainpid: that comes later. systemd must not hear
	// of a container that is not verified.
	unset := []string{handover.EnvResultFile, "NOTIFY_SOCKET", "MAINPID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID"}
	if o.Notify {
		if err := c.listen(); err != nil {
			return nil, err
		}
		set["NOTIFY_SOCKET"] = c.socket
	}
	if len(held.files) > 0 {
		set["LISTEN_FDS"], set["LISTEN_FDNAMES"] = strconv.Itoa(len(held.files)), held.names
		args = podmancmd.Activated(args)
	}
	c.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(unix.SIGTERM) }
	c.cmd.WaitDelay = undoTimeout / 2
	c.cmd.Stderr, c.cmd.ExtraFiles = c.tail, held.files
	c.cmd.Env = environment(os.Environ(), set, unset)
	return c, c.enterGroup()
}

func (u *Unit) mainPIDPath() string { return filepath.Join(u.dir, "mainpid") }

// environment returns the variables with changes.
func environment(all []string, set map[string]string, unset []string) (changed []string) {
	gone := map[string]bool{}
	for _, name := range unset {
		gone[name] = true
	}
	for name := range set {
		gone[name] = true
	}
	for _, variable := range all {
		if name, _, _ := strings.Cut(variable, "="); !gone[name] {
			changed = append(changed, variable)
		}
	}
	for name, value := range set {
		changed = append(changed, name+"="+value)
	}
	return changed
}

// enterGroup makes podman start in a control group of its own in the unit's. Otherwise
// it would be in the one of the unit's commands, .control, and with it conmon and, with
// Cgroup=service, the container. There is nothing to do where the unit's control group
// is not the user's.
func (c *command) enterGroup() error {
	own, err := proc.Cgroup(os.Getpid())
	if err != nil {
		return err
	}
	unit, delegated := strings.CutSuffix(own, "/.control")
	if !delegated {
		return nil
	}
	path := filepath.Join("/sys/fs/cgroup", unit, groupPrefix+strconv.Itoa(os.Getpid()))
	removeGroups(filepath.Dir(path))
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if c.group, err = os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.group.Fd())}
	return nil
}

const groupPrefix = "reload-"

// removeGroups removes the control groups of reloads before, once nothing is in them.
func removeGroups(unit string) {
	entries, _ := os.ReadDir(unit)
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), groupPrefix) {
			path := filepath.Join(unit, e.Name())
			below, _ := os.ReadDir(path)
			for _, b := range below {
				if b.IsDir() {
					unix.Rmdir(filepath.Join(path, b.Name()))
				}
			}
			unix.Rmdir(path)
		}
	}
}

// run starts podman, and returns the conmon of the new container.
func (c *command) run() (conmon int, err error) {
	if err := c.cmd.Run(); err != nil {
		return 0, c.tail.explain(err)
	}
	if conmon = claimed(c.mainPID); conmon == 0 {
		err = errors.New("no hook has told the PID of the new container's conmon: type oci-mainpid check " + c.unit.Name)
	}
	return conmon, err
}

// claimed returns the PID in a file, 0 if there is none.
func claimed(path string) int {
	text, _ := regular.Read(path, 100)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return max(pid, 0)
}

// steady is how long a container that says nothing must run until it counts as ready.
const steady = time.Second

// socketPrefix is how the paths of the unit's notification sockets begin. A path of a
// socket has room for 107 bytes, so the unit's name is not in it.
func (u *Unit) socketPrefix() string {
	h := fnv.New32a()
	h.Write([]byte(u.Name))
	return filepath.Join(filepath.Dir(u.dir), fmt.Sprintf("notify-%08x-", h.Sum32()))
}

// removeSockets removes the notification sockets of the unit's containers, but one.
func (u *Unit) removeSockets(except string) {
	paths, _ := filepath.Glob(u.socketPrefix() + "*")
	for _, path := range paths {
		if path != except {
			os.Remove(path)
		}
	}
}

// listen makes the socket for the new container's READY=1.
func (c *command) listen() (err error) {
	c.socket = c.unit.socketPrefix() + strconv.Itoa(os.Getpid())
	os.Remove(c.socket)
	c.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: c.socket, Net: "unixgram"})
	return err
}

// awaitReady waits for READY=1. Without READY=1 it waits until the container has run for
// a moment: a container that ends at once must not replace one that runs.
func (c *command) awaitReady(ctx context.Context, conmon int) error {
	pidfd, err := unix.PidfdOpen(conmon, 0)
	if err != nil {
		return errEnded
	}
	defer unix.Close(pidfd)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if ended(ctx, pidfd) == nil {
			cancel(errEnded)
		}
	}()
	if c.notify == nil {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(steady):
			return nil
		}
	}
	stop := context.AfterFunc(ctx, func() { c.notify.Close() })
	defer stop()
	b := make([]byte, 8<<10)
	for {
		n, err := c.notify.Read(b)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return err
		}
		if m, err := sdnotify.Parse(b[:n]); err == nil {
			if ready, _ := m.Get("READY"); ready == "1" {
				return nil
			}
		}
	}
}

// passOn has what the container sends go to systemd.
func (c *command) passOn() error {
	if c.notify == nil {
		return nil
	}
	// conmon sends to this path, each time.
	link := c.socket + ".new"
	os.Remove(link)
	if err := os.Symlink(os.Getenv("NOTIFY_SOCKET"), link); err != nil {
		return err
	}
	return os.Rename(link, c.socket)
}

var errEnded = errors.New("the new container ended before it was ready")

// sockets are those that systemd passed for the unit's start.
type sockets struct {
	files []*os.File
	names string
}

// takeSockets copies the unit's sockets from conmon, which holds them.
func takeSockets(conmon int) (s sockets, err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	env, err := proc.Environ(conmon, proc.MaxStrings)
	if err != nil {
		return s, err
	}
	n, _ := strconv.Atoi(env.Get("LISTEN_FDS"))
	if n <= 0 || n > sdnotify.MaxFiles {
		return s, fmt.Errorf("conmon %d holds no sockets of the unit", conmon)
	}
	pidfd, err := unix.PidfdOpen(conmon, 0)
	if err != nil {
		return s, err
	}
	defer unix.Close(pidfd)
	const first = 3 // SD_LISTEN_FDS_START, sd_listen_fds(3)
	for i := range n {
		fd, err := unix.PidfdGetfd(pidfd, first+i, 0)
		if err != nil {
			return s, fmt.Errorf("take descriptor %d from conmon %d: %w", first+i, conmon, err)
		}
		s.files = append(s.files, os.NewFile(uintptr(fd), "socket"))
	}
	s.names = env.Get("LISTEN_FDNAMES")
	return s, nil
}

func (s sockets) close() {
	for _, f := range s.files {
		f.Close()
	}
}

func (c *command) close() {
	if c.notify != nil {
		c.notify.Close()
	}
	if c.group != nil {
		c.group.Close()
	}
}
