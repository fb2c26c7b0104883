package run

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/sdnotify"
)

// The container sees the directory of its socket here. It is read-only: the container
// can connect to the socket and do nothing else.
const (
	insideDir    = "/run/oci-mainpid"
	insideSocket = insideDir + "/notify"
)

// Bounds of how fast a container is heard. Whoever sends more has to wait: what is not
// read stays in the socket's queue, and the kernel lets no more in.
const (
	burst    = 200                   // messages
	interval = 20 * time.Millisecond // between two of them, afterwards
)

// listener is the container's notification socket.
type listener struct {
	server   *sdnotify.Server
	dir      *os.File // of a Unix socket; nil for one of AF_VSOCK
	messages chan *heard
	ctx      context.Context // is done when nobody listens any more
	cancel   context.CancelFunc
}

// heard is a message of the container's, whose sender is known to be in it.
type heard struct {
	message sdnotify.Message
	dropped int           // messages so far that were not believed
	done    chan struct{} // is closed when it has been taken in
}

// listen makes the socket, and has podman give it to the container.
func (r *runner) listen() error {
	if r.Listen != "" {
		server, err := sdnotify.Listen(r.Listen)
		if err != nil {
			return err
		}
		r.listener = newListener(server)
		return nil
	}
	dir := r.place.path("notify")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := isOwn(dir); err != nil {
		return err
	}
	// Anybody in the container may connect. On the host, the directories above keep
	// everybody else out.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	// The path may be longer than sockaddr_un has room for.
	address := "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/notify"
	server, err := sdnotify.Listen(address)
	if err == nil {
		err = os.Chmod(dir+"/notify", 0o666)
	}
	if err != nil {
		f.Close()
		return err
	}
	r.listener = newListener(server)
	r.listener.dir = f
	r.command.insert("--volume="+dir+":"+insideDir+":ro", "--env=NOTIFY_SOCKET="+insideSocket)
	if len(r.Ready) > 0 && os.Geteuid() != 0 {
		// So a reboot inside ends the container by SIGHUP and a power-off by SIGINT
		// (reboot(2)): exit statuses 129 and 130. In a user namespace the capability is
		// good for nothing else.
		r.command.insert("--cap-add=SYS_BOOT")
	}
	return nil
}

func newListener(server *sdnotify.Server) *listener {
	ctx, cancel := context.WithCancel(context.Background())
	return &listener{server: server, ctx: ctx, cancel: cancel, messages: make(chan *heard)}
}

func (l *listener) close() {
	l.cancel()
	l.server.Close()
	l.dir.Close()
}

// start hears the container whose conmon and first process these are. onlyFirst says
// that only the first process is believed: a systemd speaks for itself.
func (l *listener) start(conmon int, first *conmonbridge.Claim, onlyFirst bool) <-chan *heard {
	go func() {
		defer close(l.messages)
		dropped, credit, last := 0, burst, time.Now()
		for {
			n, err := l.server.Receive(l.ctx)
			if n == nil {
				return
			}
			believed := err == nil && len(n.Message) > 0 && (l.dir == nil || isBelow(n.Sender, conmon, first, onlyFirst))
			n.Close()
			if !believed {
				dropped++
			} else {
				h := &heard{n.Message, dropped, make(chan struct{})}
				select {
				case l.messages <- h:
					<-h.done
				case <-l.ctx.Done():
					return
				}
			}
			credit = min(burst, credit+int(time.Since(last)/interval)) - 1
			last = time.Now()
			if credit <= 0 {
				time.Sleep(interval)
			}
		}
	}()
	return l.messages
}

// maxDepth bounds how many processes are between a sender and conmon.
const maxDepth = 1000

// isBelow reports whether the sender of a message is the container's first process or,
// unless onlyFirst, a process below conmon. The kernel says which PID sent it. A sender
// that has ended may have left its PID to another process, so it is not believed, unless
// it is the first process and the kernel has a pidfd of it.
func isBelow(from sdnotify.Sender, conmon int, first *conmonbridge.Claim, onlyFirst bool) bool {
	if from.PID <= 1 {
		return false
	}
	if from.PID == first.PID {
		if from.PIDFD != nil && isSame(int(from.PIDFD.Fd()), first.PIDFD()) {
			return true
		}
		return first.Alive() == nil
	}
	if onlyFirst {
		return false
	}
	pidfd := -1
	if from.PIDFD != nil {
		pidfd = int(from.PIDFD.Fd())
	} else {
		fd, err := unix.PidfdOpen(from.PID, 0)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		pidfd = fd
	}
	below := false
	for pid, depth := from.PID, 0; pid > 1 && depth < maxDepth; depth++ {
		if pid == conmon {
			below = true
			break
		}
		p, err := proc.Read(pid)
		if err != nil {
			break
		}
		pid = p.PPID
	}
	// What was read under its PID counts only if it still lives.
	return below && unix.PidfdSendSignal(pidfd, 0, nil, 0) != unix.ESRCH
}

// isSame reports whether two pidfds refer to one process. Where pidfds have no inode
// numbers of their own (before Linux 6.9), it is false.
func isSame(a, b int) bool {
	var fs unix.Statfs_t
	var x, y unix.Stat_t
	return unix.Fstatfs(a, &fs) == nil && fs.Type == unix.PID_FS_MAGIC &&
		unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Ino == y.Ino && x.Dev == y.Dev
}

// save writes what is known of the container, for oci-mainpid status.
func (r *runner) save() {
	if r.listener == nil {
		return
	}
	b, err := json.Marshal(r.inside)
	if err == nil {
		err = writeWhole(r.place.path("state"), b, 0o600)
	}
	if err != nil {
		r.Log("%v", err)
	}
}
