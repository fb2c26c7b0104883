package conmonbridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Handover is notify-mainpid's side of the two files: it waits for the PID in
// the one and writes what became of it into the other.
type Handover struct {
	mainPID, result *os.File
	watch           *watch
}

// OpenHandover opens a unit's mainpid file, which must be there, and its
// result file.
//
// The result file stays open and locked until Answer or Close, so that a hook
// that watches it, or comes later, learns of it too when this process is killed.
func OpenHandover(mainPIDFile, resultFile string) (*Handover, error) {
	mainPID, err := openMainPID(mainPIDFile)
	if err != nil {
		return nil, err
	}
	result, err := openResult(resultFile)
	if err != nil {
		mainPID.Close()
		return nil, err
	}
	// The link leads to the very file that is open, whatever its name is now.
	watch, err := newWatch(fmt.Sprintf("/proc/self/fd/%d", mainPID.Fd()), unix.IN_MODIFY|unix.IN_CLOSE_WRITE)
	if err != nil {
		mainPID.Close()
		result.Close()
		return nil, fmt.Errorf("watch %s: %w", mainPIDFile, err)
	}
	return &Handover{mainPID, result, watch}, nil
}

// Close closes both files.
func (h *Handover) Close() {
	h.mainPID.Close()
	h.result.Close()
	h.watch.close()
}

// ErrNoMainPID says that no PID came, and wraps why.
var ErrNoMainPID = errors.New("no PID in the mainpid file")

// ErrPodmanEnded says that podman, or the conmon that systemd took from it
// already, ended without a PID in the mainpid file.
var ErrPodmanEnded = errors.New("podman or its container has ended")

// MainPID waits until the mainpid file holds a PID, and returns it. It waits
// no longer than ctx lasts and podman lives, a pidfd (pidfd_open(2)) or -1
// where nobody knows it. Contents that can be no PID are an error at once.
func (h *Handover) MainPID(ctx context.Context, podman int) (int, error) {
	for armed, ended := false, false; ; {
		pid, err := h.readMainPID()
		switch {
		case !errors.Is(err, errIncomplete):
			return pid, err
		case ended:
			return 0, fmt.Errorf("%w %s: %w", ErrNoMainPID, h.mainPID.Name(), ErrPodmanEnded)
		case !armed:
			// What comes before this is read once more.
			if err := h.watch.arm(); err != nil {
				return 0, fmt.Errorf("watch %s: %w", h.mainPID.Name(), err)
			}
			armed = true
		default:
			// So is what podman wrote before it ended.
			if ended, err = h.watch.wait(ctx, podman); err != nil {
				return 0, fmt.Errorf("%w %s: %w", ErrNoMainPID, h.mainPID.Name(), err)
			}
			armed = false
		}
	}
}

func (h *Handover) readMainPID() (int, error) {
	b := make([]byte, maxMainPID+1)
	n, err := h.mainPID.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return 0, fmt.Errorf("read mainpid file: %w", err)
	}
	pid, err := parseMainPID(b[:n])
	if err != nil && !errors.Is(err, errIncomplete) {
		err = fmt.Errorf("mainpid file %s: %w", h.mainPID.Name(), err)
	}
	return pid, err
}

// Answer writes what became of the PID into the result file, "ok" or
// "error: …", and closes it: one write(2), one close(2).
func (h *Handover) Answer(err error) error {
	text := resultOK
	if err != nil {
		text = fmt.Sprintf("%s%.2000s\n", resultError, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	_, writeErr := h.result.WriteAt([]byte(text), 0)
	if closeErr := h.result.Close(); writeErr == nil {
		writeErr = closeErr
	}
	if writeErr != nil {
		return fmt.Errorf("write result file: %w", writeErr)
	}
	return nil
}

// What a result file says; an empty one says that notify-mainpid has not begun.
// Each overwrites resultWaiting as a whole.
const (
	resultWaiting = "\n" // whoever wrote it has an exclusive lock, flock(2)
	resultOK      = "ok\n"
	resultError   = "error: "
)

// ErrAnswer is an error that notify-mainpid wrote into the result file, and so
// has said itself already.
var ErrAnswer = errors.New("notify-mainpid")

// WaitResult waits until notify-mainpid has written its answer into a unit's
// result file, at most as long as asked. It returns nil for "ok"; else the
// error is that of notify-mainpid, ErrAnswer, or says that it ended without an
// answer.
func WaitResult(path string, timeout time.Duration) error {
	w, err := newWatch(path, unix.IN_CLOSE_WRITE|unix.IN_ATTRIB|unix.IN_DELETE_SELF|unix.IN_DONT_FOLLOW)
	if err == nil {
		defer w.close()
		err = w.arm()
	}
	if err != nil {
		return fmt.Errorf("watch result file %s: %w", path, err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, fmt.Errorf("nothing came within %v", timeout))
	defer cancel()
	for ended := false; ; ended = true {
		b, err := readBounded(path, 4096)
		switch text := string(b); {
		case err != nil:
			return fmt.Errorf("result file: %w", err)
		case text == resultOK:
			return nil
		case strings.HasPrefix(text, resultError) && strings.HasSuffix(text, "\n"):
			return fmt.Errorf("%w: %s", ErrAnswer, strings.TrimSpace(strings.TrimPrefix(text, resultError)))
		case ended:
			return fmt.Errorf("notify-mainpid ended without an answer in %s", path)
		case text == resultWaiting && !isLocked(path):
			continue // it may have answered just now
		}
		if _, err := w.wait(ctx, -1); err != nil {
			return fmt.Errorf("no answer of notify-mainpid in %s: %w", path, err)
		}
	}
}

// isLocked reports whether somebody has an exclusive lock on the file, flock(2);
// also where that cannot be seen.
func isLocked(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) != nil
}

// watch waits for a change of one file (inotify(7)). Once that has come it does
// not watch any more until it is armed again: to close an inotify descriptor
// that still watches takes the kernel 10 ms and more, for which podman would wait.
type watch struct {
	inotify int
	path    string
	mask    uint32
}

func newWatch(path string, mask uint32) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &watch{fd, path, mask}, nil
}

func (w *watch) arm() error {
	_, err := unix.InotifyAddWatch(w.inotify, w.path, w.mask|unix.IN_ONESHOT)
	return err
}

func (w *watch) close() {
	unix.Close(w.inotify)
}

// wait returns when the file has changed or, with true, when the process of
// pidfd has ended (-1: none). The error is the cause of ctx, when that is done.
func (w *watch) wait(ctx context.Context, pidfd int) (ended bool, err error) {
	if ctx.Err() != nil { // even while events keep coming
		return false, context.Cause(ctx)
	}
	done, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return false, err
	}
	wake := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Write(done, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		close(wake)
	})
	defer func() {
		if !stop() {
			<-wake
		}
		unix.Close(done)
	}()
	poll := []unix.PollFd{
		{Fd: int32(w.inotify), Events: unix.POLLIN},
		{Fd: int32(pidfd), Events: unix.POLLIN},
		{Fd: int32(done), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
			return false, fmt.Errorf("poll: %w", err)
		} else if err == nil {
			break
		}
	}
	if poll[0].Revents != 0 {
		// What happened does not matter: the file itself is read.
		events := make([]byte, 4096)
		for {
			if n, err := unix.Read(w.inotify, events); err != nil || n == 0 {
				break
			}
		}
		return false, nil
	}
	if poll[1].Revents != 0 {
		return true, nil
	}
	return false, context.Cause(ctx)
}
