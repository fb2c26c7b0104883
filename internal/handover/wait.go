package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/regular"
)

// Handover is notify-mainpid's side of the two files: it waits for the PID in the
// mainpid file and writes what became of that into the result file.
type Handover struct {
	mainPID, result *os.File
}

// OpenHandover opens a unit's mainpid file, which must be there, and its
// result file.
//
// The result file stays open and locked until Answer or Close. When this process
// is killed, the kernel closes and unlocks it: that tells a hook, whether it
// watches the file already or comes later.
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
	return &Handover{mainPID, result}, nil
}

// Close closes both files.
func (h *Handover) Close() {
	h.mainPID.Close()
	h.result.Close()
}

// watch watches the mainpid file.
func (h *Handover) watch(written <-chan os.Signal) (*watch, error) {
	parent, err := openParent(h.mainPID.Name(), false)
	if err != nil {
		return nil, err
	}
	defer unix.Close(parent)
	dir, err := unix.Openat(parent, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	w, err := watchDirectory(dir, written)
	if err != nil {
		unix.Close(dir)
	}
	return w, err
}

// ErrNoMainPID says that nobody wrote a PID. The error that wraps it says why.
var ErrNoMainPID = errors.New("no PID in the mainpid file")

// ErrPodmanEnded says that the unit's main process, podman or already its conmon,
// ended before anybody wrote a PID into the mainpid file.
var ErrPodmanEnded = errors.New("podman or its container has ended")

// MainPID waits until the mainpid file holds a PID, and returns it. It stops
// waiting when ctx is done, and when podman ends: a pidfd (pidfd_open(2)), -1 if
// unknown. written gets this process' SIGIO (signal.Notify), by which the kernel tells
// of a write; the hook, which shares this package, need not import os/signal. Contents that cannot become a PID are an error at once.
func (h *Handover) MainPID(ctx context.Context, podman int, written <-chan os.Signal) (int, error) {
	var w *watch
	for armed, ended := false, false; ; {
		pid, err := h.readMainPID()
		switch {
		case !errors.Is(err, errIncomplete):
			return pid, err
		case ended:
			return 0, fmt.Errorf("%w %s: %w", ErrNoMainPID, h.mainPID.Name(), ErrPodmanEnded)
		case !armed:
			if w == nil { // most starts need none
				if w, err = h.watch(written); err != nil {
					return 0, fmt.Errorf("watch %s: %w", h.mainPID.Name(), err)
				}
				defer w.close()
			}
			// Read again after this: the PID may have come before the watch.
			if err := w.arm(); err != nil {
				return 0, fmt.Errorf("watch %s: %w", h.mainPID.Name(), err)
			}
			armed = true
		default:
			// Read again after this: the hook may have written before podman ended.
			if ended, err = w.wait(ctx, podman); err != nil {
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

// What a result file says. It is empty until notify-mainpid opens it. resultOK and
// resultError each overwrite resultWaiting.
const (
	resultWaiting = "\n" // notify-mainpid has an exclusive lock on the file, flock(2)
	resultOK      = "ok\n"
	resultError   = "error: "
)

// ErrAnswer is an error that notify-mainpid wrote into the result file. It has
// logged that error itself.
var ErrAnswer = errors.New("notify-mainpid")

// WaitResult waits, at most timeout, until notify-mainpid has written its answer
// into a unit's result file. It returns nil for "ok". The error is ErrAnswer with
// what notify-mainpid wrote, or says that none came.
func WaitResult(path string, timeout time.Duration) error {
	w, err := watchFile(path, unix.IN_CLOSE_WRITE|unix.IN_ATTRIB|unix.IN_DELETE_SELF|unix.IN_DONT_FOLLOW)
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
		b, err := regular.Read(path, 4096)
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
			continue // it may have answered between the two calls
		}
		if _, err := w.wait(ctx, -1); err != nil {
			return fmt.Errorf("no answer of notify-mainpid in %s: %w", path, err)
		}
	}
}

// isLocked reports whether somebody has an exclusive lock on the file, flock(2). It
// says true for a file that cannot be opened, too.
func isLocked(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) != nil
}
