package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/sdnotify"
)

// teller tells whoever started this program about the container. Only systemd takes more
// than that it is ready.
type teller struct {
	client *sdnotify.Client // nil without NOTIFY_SOCKET
	plain  bool             // READY=1 is all that is understood
	file   *os.File         // gets a line
	stop   bool             // SIGSTOP to itself
}

// newTeller returns the teller for a value of --notify=. It fails if nobody can be told.
func newTeller(how string) (*teller, error) {
	switch how {
	case "auto":
		if os.Getenv("NOTIFY_SOCKET") == "" {
			return &teller{}, nil
		}
		return newTeller("systemd")
	case "systemd", "socket":
		client, err := sdnotify.FromEnvironment()
		if errors.Is(err, sdnotify.ErrNoSocket) {
			return nil, usage("--notify=%s: NOTIFY_SOCKET is not set; write NotifyAccess=all and Type=notify into the unit, or --notify=none", how)
		}
		if err != nil {
			return nil, usage("--notify=%s: %v", how, err)
		}
		t := &teller{client: client, plain: how == "socket"}
		err = t.probe()
		// OpenRC removes its socket once the first start is ready, and has the variable set
		// for every further one.
		if t.plain && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)) {
			return &teller{}, nil
		}
		if err != nil {
			return nil, err
		}
		return t, nil
	case "stop":
		return &teller{stop: true}, nil
	case "none":
		return &teller{}, nil
	}
	number, ok := strings.CutPrefix(how, "fd:")
	if !ok {
		return nil, usage("--notify=%.40s is none of auto, systemd, fd:N, socket, stop, none", how)
	}
	fd, err := strconv.Atoi(number)
	if err != nil || fd < 0 {
		return nil, usage("--notify=%.40s: no number of a descriptor, as in fd:3", how)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, usage("--notify=%s: descriptor %d is not open", how, fd)
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return nil, usage("--notify=%s: descriptor %d is not open for writing", how, fd)
	}
	// podman and conmon must not keep it open.
	if fd > 2 {
		unix.CloseOnExec(fd)
	}
	return &teller{file: os.NewFile(uintptr(fd), how)}, nil
}

// probe fails if nobody listens at the socket, or, for one of AF_VSOCK, if the kernel has
// none.
func (t *teller) probe() error {
	address, err := sdnotify.ParseAddress(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if address.IsVsock() {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return usage("NOTIFY_SOCKET=%s: this kernel has no vsock: %v", address, err)
		}
		return unix.Close(fd)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: address.Name}); err != nil {
		return fmt.Errorf("NOTIFY_SOCKET=%s: nobody listens there: %w", address, err)
	}
	return nil
}

// ready says that the container is ready.
func (t *teller) ready(status string) error {
	switch {
	case t.client != nil:
		m := sdnotify.Message{sdnotify.Ready()}
		if !t.plain {
			m = append(m, sdnotify.Status(status))
		}
		return t.client.Send(context.Background(), m...)
	case t.file != nil:
		_, err := t.file.WriteString("ready\n")
		return errors.Join(err, t.file.Close())
	case t.stop:
		return unix.Kill(os.Getpid(), unix.SIGSTOP)
	}
	return nil
}

// send passes assignments on, to systemd only. What cannot be sent is lost: the container
// does not depend on it.
func (t *teller) send(m ...sdnotify.Assignment) {
	if t.client != nil && !t.plain && len(m) > 0 {
		t.client.Send(context.Background(), m...)
	}
}
