package handover

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watch waits for a change of one file, once for each arm.
type watch struct {
	fd    int // can be read once the file has changed
	arm   func() error
	close func()
}

// watchFile watches a file for the events of mask (inotify(7)). To close an inotify
// descriptor that still watches takes the kernel 10 ms and more, and podman would wait
// for that: so each arm is for one event.
func watchFile(path string, mask uint32) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &watch{
		fd: fd,
		arm: func() error {
			_, err := unix.InotifyAddWatch(fd, path, mask|unix.IN_ONESHOT)
			return err
		},
		close: func() { unix.Close(fd) },
	}, nil
}

// dnModify asks F_NOTIFY for a signal when a file in the directory is written or
// truncated (DN_MODIFY, fcntl(2)).
const dnModify = 0x2

// watchDirectory watches the files in a directory for writes (F_NOTIFY, fcntl(2)),
// and keeps the descriptor. All of root's processes share 128 instances of inotify
// (fs.inotify.max_user_instances), of which a notify-mainpid takes none: any number
// of units may wait at once. The kernel's signal, SIGIO, comes by the channel.
func watchDirectory(dir int, signals <-chan os.Signal) (*watch, error) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-signals:
				unix.Write(event, one)
			case <-stop:
				return
			}
		}
	}()
	return &watch{
		fd: event,
		arm: func() error {
			_, err := unix.FcntlInt(uintptr(dir), unix.F_NOTIFY, dnModify)
			return err
		},
		close: func() {
			unix.Close(dir)
			close(stop)
			<-stopped
			unix.Close(event)
		},
	}, nil
}

// one is what eventfd(2) takes for 1, on every machine more than nothing.
var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

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
		unix.Write(done, one)
		close(wake)
	})
	defer func() {
		if !stop() {
			<-wake
		}
		unix.Close(done)
	}()
	poll := []unix.PollFd{
		{Fd: int32(w.fd), Events: unix.POLLIN},
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
			if n, err := unix.Read(w.fd, events); err != nil || n == 0 {
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
