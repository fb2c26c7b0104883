package handover

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// watch waits for a change of one file (inotify(7)), once for each arm. To close an
// inotify descriptor that still watches takes the kernel 10 ms and more, and podman
// would wait for that.
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

// wait returns when the file has changed. It returns true when the process of pidfd
// (-1 for none) has ended, and the cause of ctx when ctx is done.
func (w *watch) wait(ctx context.Context, pidfd int) (ended bool, err error) {
	if ctx.Err() != nil { // poll(2) would prefer the events of a writer that never stops
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
		// The events themselves do not matter: the caller reads the file.
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
