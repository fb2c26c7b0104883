// Package replace puts another container in the place of a unit's, as the unit's user,
// while the unit runs: systemctl reload of a unit with Reload=, oci-mainpid.unit(5).
//
// A unit has these commands for a reload. root's are those of notify-mainpid(8).
//
//  1. root makes the file for the new conmon's PID.
//  2. Start gives the old container another name, starts the new one, and waits until
//     it is ready. Then it writes the new conmon's PID into the file.
//  3. root verifies the process and makes it the main process.
//  4. Finish removes the container that is not the one of the main process. It runs
//     twice, because it may be killed.
//
// Which container stays is decided by one thing: whose conmon is the main process.
// With Reload=swap there is a process that stands in for it meanwhile, see swap.go.
package replace

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/internal/regular"
	"oci-mainpid-hook/sdnotify"
)

// Unit is the unit whose container is replaced.
type Unit struct {
	// Name is the unit's name.
	Name string
	// MainPID is the PID of the main process, as systemd says it ($MAINPID).
	MainPID int
	// Stderr is where podman's messages go.
	Stderr io.Writer

	dir string // of the user's, for what a reload has to remember
}

// Open returns the unit, with what systemd has set in the environment.
func Open(name string) (*Unit, error) {
	runtime := os.Getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(runtime) || name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("%s: XDG_RUNTIME_DIR=%s is no directory, or that is no unit", name, runtime)
	}
	pid, _ := strconv.Atoi(os.Getenv("MAINPID"))
	return &Unit{Name: name, MainPID: pid, Stderr: os.Stderr, dir: filepath.Join(runtime, "oci-mainpid", name)}, nil
}

// state is what a reload has to remember, also if it is cut off.
type state struct {
	// Old is the ID of the container that runs, Name its name before the reload, Aside
	// its name meanwhile.
	Old, Name, Aside string
	// CIDFile is the file that has the container's ID, "" for none.
	CIDFile string
	// Socket is the path that the new container's notifications are sent to, "" for
	// systemd's own.
	Socket string
	// Failed is why the reload failed, "" unless it has. Done says that nothing is left
	// to do.
	Failed string
	Done   bool

	// Swap is what a swap has to remember besides, nil for beside.
	Swap *swap
}

func (u *Unit) statePath() string { return filepath.Join(u.dir, "reload") }

// read returns the state, nil if there is none.
func (u *Unit) read() (*state, error) {
	b, err := regular.Read(u.statePath(), 1<<16)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	s := &state{}
	if err == nil {
		err = json.Unmarshal(b, s)
	}
	if err != nil {
		return nil, fmt.Errorf("read what the reload before has left (remove %s once it is clear which container is to stay): %w", u.statePath(), err)
	}
	return s, nil
}

// write writes the state, whole or not at all.
func (u *Unit) write(s *state) error {
	b, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(u.statePath()+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(u.statePath()+".new", u.statePath())
	}
	return err
}

// podman runs podman. The error has podman's last line.
func (u *Unit) podman(ctx context.Context, args ...string) (stdout string, err error) {
	cmd := exec.CommandContext(ctx, "podman", args...)
	var out bytes.Buffer
	tail := &tail{w: u.Stderr}
	cmd.Stdout, cmd.Stderr = &out, tail
	if err := cmd.Run(); err != nil {
		return "", tail.explain(err)
	}
	return strings.TrimSpace(out.String()), nil
}

// tail passes on what is written, and keeps the last line.
type tail struct {
	w    io.Writer
	last []byte
}

func (t *tail) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			t.last = bytes.Clone(line[:min(len(line), 500)])
		}
	}
	t.w.Write(b)
	return len(b), nil
}

func (t *tail) explain(err error) error {
	if len(t.last) > 0 {
		return fmt.Errorf("podman: %s (%w)", t.last, err)
	}
	return fmt.Errorf("podman: %w", err)
}

// containerOf returns the ID of the container whose conmon the process is, "" if it is
// no conmon.
func containerOf(pid int) string {
	if pid <= 1 {
		return ""
	}
	return conmonbridge.ContainerOf(pid).ID
}

// exists returns the ID of the container with that name or ID, "" if there is none.
func (u *Unit) exists(ctx context.Context, name string) string {
	cmd := exec.CommandContext(ctx, "podman", "container", "inspect", "--format={{.Id}}", name)
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// remove stops and removes a container, if there is one.
func (u *Unit) remove(ctx context.Context, name string, options ...string) error {
	args := append([]string{"rm", "--volumes", "--force", "--ignore"}, options...)
	_, err := u.podman(ctx, append(args, name)...)
	if err != nil && ctx.Err() == nil {
		// podman 5.4 fails the first time if the container's conmon was killed.
		_, err = u.podman(ctx, append(args, name)...)
	}
	return err
}

// Options say how the new container is started.
type Options struct {
	// Args is the command line of podman that starts the container: the unit's own.
	Args []string
	// NextFile is the file for the PID of the new container's conmon.
	NextFile string
	// Notify: the container is ready when READY=1 comes, rather than when podman has
	// started it.
	Notify bool
	// Sockets: the container gets the sockets that the old one has.
	Sockets bool
	// Swap: the old container ends first. NextFile has the PID of its conmon.
	Swap bool
}

// Start starts the new container beside the old one, or in its place, and returns when
// the new one is ready. After an error, or if ctx is done, the old container is what it
// was, or another one is that was started in the same way.
func (u *Unit) Start(ctx context.Context, o Options) error {
	if err := os.MkdirAll(u.dir, 0o700); err != nil {
		return err
	}
	s, err := u.read()
	if err != nil {
		return err
	}
	if s != nil && !s.Done { // a reload was cut off
		before := *u
		if o.Swap {
			before.MainPID = claimed(o.NextFile)
		}
		if err := before.settle(ctx, s); err != nil {
			return err
		}
	}
	s = &state{Failed: "it did not begin", Done: true}
	if o.Swap {
		s.Swap = &swap{StandIn: u.MainPID}
	}
	if err := u.write(s); err != nil {
		return err
	}
	stopped := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if pidfd, err := unix.PidfdOpen(max(u.MainPID, 1), 0); err == nil {
		defer unix.Close(pidfd)
		watched := make(chan struct{})
		defer func() { cancel(nil); <-watched }()
		go func() {
			defer close(watched)
			if ended(ctx, pidfd) == nil {
				cancel(errOldEnded)
			}
		}()
	}
	var held sockets
	defer func() { held.close() }()
	if o.Swap {
		err = u.swap(ctx, o, s, &held)
	} else {
		err = u.start(ctx, o, s, &held)
	}
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	s.Failed = err.Error()
	// ctx may be done, and this must be.
	undo, stop := context.WithTimeout(context.Background(), undoTimeout)
	defer stop()
	switch {
	case !o.Swap || s.Done:
		return errors.Join(err, u.settle(undo, s))
	case errors.Is(stopped.Err(), context.Canceled) || errors.Is(err, errOldEnded): // the unit ends
		return errors.Join(err, u.write(s))
	}
	return errors.Join(err, u.back(undo, s, held, o.NextFile))
}

var errOldEnded = errors.New("the main process has ended meanwhile")

// names parses the command that starts the container.
func (o Options) names() (p podmancmd.Podman, name, cidFile string, err error) {
	p, ok := podmancmd.ParseArguments(o.Args[0], o.Args[1:])
	name, _ = p.Last("name")
	if !ok || name == "" {
		err = errors.New("ExecStart= is no podman run with --name=")
	}
	cidFile, _ = p.Last("cidfile")
	return p, name, cidFile, err
}

func (u *Unit) start(ctx context.Context, o Options, s *state, held *sockets) error {
	_, name, cidFile, err := o.names()
	if err != nil {
		return err
	}
	old := containerOf(u.MainPID)
	if old == "" {
		return fmt.Errorf("main process %d is no conmon of a container", u.MainPID)
	}
	if o.Sockets {
		if *held, err = takeSockets(u.MainPID); err != nil {
			return err
		}
	}
	c, err := u.command(ctx, o, *held)
	if err != nil {
		return err
	}
	defer c.close()
	*s = state{Old: old, Name: name, Aside: name + "-" + old[:12], CIDFile: cidFile, Socket: c.socket}
	if err := u.write(s); err != nil {
		return err
	}
	if _, err := u.podman(ctx, "rename", old, s.Aside); err != nil {
		return err
	}
	conmon, err := c.ready(ctx, s.CIDFile)
	if err != nil {
		return err
	}
	return claim(o.NextFile, conmon)
}

// ready starts podman, waits until the new container is ready, and returns its conmon.
func (c *command) ready(ctx context.Context, cidFile string) (conmon int, err error) {
	// podman makes that file, and fails if it is there.
	if cidFile != "" {
		if err := os.Remove(cidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
	}
	conmon, err = c.run()
	if err == nil {
		err = c.awaitReady(ctx, conmon)
	}
	if err == nil {
		err = c.passOn()
	}
	return conmon, err
}

// claim writes the PID for root.
func claim(next string, conmon int) error {
	return os.WriteFile(next, fmt.Appendf(nil, "%d\n", conmon), 0o600)
}

// settle ends a reload: the container of the main process stays, the other one goes.
func (u *Unit) settle(ctx context.Context, s *state) error {
	if s.Done {
		return u.write(s)
	}
	main := containerOf(u.MainPID)
	if s.Swap != nil {
		return u.settleSwap(ctx, s, main)
	}
	switch main {
	case s.Old:
		if s.Socket != "" {
			os.Remove(s.Socket) // systemd would hear STOPPING=1 of the new container
		}
		if other := u.exists(ctx, s.Name); other != "" && other != s.Old {
			if err := u.remove(ctx, other, "--time=5"); err != nil {
				return fmt.Errorf("remove the new container: %w", err)
			}
		}
		if u.exists(ctx, s.Aside) == s.Old {
			if _, err := u.podman(ctx, "rename", s.Old, s.Name); err != nil {
				return fmt.Errorf("give the old container its name again: %w", err)
			}
		}
		if s.Failed == "" {
			s.Failed = "the new container did not become the main process"
		}
	case "":
		if _, err := proc.Read(u.MainPID); !errors.Is(err, proc.ErrNoProcess) {
			return fmt.Errorf("main process %d is no conmon of a container", u.MainPID)
		}
		// The unit ends.
		if _, err := u.podman(ctx, "rm", "--volumes", "--force", "--ignore", "--time=5", s.Name, s.Old); err != nil {
			return fmt.Errorf("remove both containers: %w", err)
		}
		if s.Failed == "" {
			s.Failed = errOldEnded.Error()
		}
		s.Done = true
		return u.write(s)
	default:
		if err := u.remove(ctx, s.Old); err != nil {
			return fmt.Errorf("remove the old container: %w", err)
		}
		s.Failed = ""
		u.removeSockets(s.Socket)
	}
	return u.done(s, main)
}

// done writes down that nothing is left to do. The container with the ID main stays.
func (u *Unit) done(s *state, main string) error {
	if s.CIDFile != "" {
		// podman removed the file with the container that is gone.
		if err := os.WriteFile(s.CIDFile, []byte(main), 0o644); err != nil {
			return err
		}
	}
	s.Done = true
	return u.write(s)
}

// ErrFailed says that the reload has failed, and that Start has said why.
var ErrFailed = errors.New("the reload has failed")

// Finish removes the container that is not the main process's, and returns the ID of the
// one that stays, in its first 12 digits. With last it forgets the reload.
func (u *Unit) Finish(ctx context.Context, last bool) (container string, err error) {
	s, err := u.read()
	if err != nil {
		return "", err
	}
	if s == nil {
		return "", ErrFailed
	}
	// Who sets Failed says it.
	done, said := s.Done, s.Failed != ""
	defer s.endStandIn()
	if err := u.settle(ctx, s); err != nil {
		return "", err
	}
	sayReady(ctx)
	if last {
		err = os.RemoveAll(u.dir)
	}
	switch {
	case s.Failed != "" && (said || done):
		return "", ErrFailed
	case s.Failed != "":
		return "", errors.New(s.Failed)
	case done:
		return "", err
	}
	main := containerOf(u.MainPID)
	return main[:min(12, len(main))], err
}

// sayReady makes a systemd before 254 forget that the container that is gone said
// STOPPING=1. See notStopping in cmd/notify-mainpid.
func sayReady(ctx context.Context) {
	if client, err := sdnotify.FromEnvironment(); err == nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		client.Send(ctx, sdnotify.Ready())
	}
}

// Stop removes both containers if a reload was cut off. The unit stops, or has stopped.
func (u *Unit) Stop(ctx context.Context) error {
	s, err := u.read()
	if err != nil {
		return err
	}
	if u.MainPID == 0 {
		u.removeSockets("")
	}
	if s == nil {
		return nil
	}
	if !s.Done {
		if _, err := u.podman(ctx, "rm", "--volumes", "--force", "--ignore", s.Name, s.Old); err != nil {
			return err
		}
	}
	return os.RemoveAll(u.dir)
}

// ended waits for the end of a process, at most until ctx is done.
func ended(ctx context.Context, pidfd int) error {
	done, wake, err := os.Pipe()
	if err != nil {
		return err
	}
	defer done.Close()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { wake.Close(); close(woken) })
	defer func() {
		if stop() {
			wake.Close()
		} else {
			<-woken
		}
	}()
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: int32(done.Fd())}}
	for {
		if _, err := unix.Poll(poll, -1); err != unix.EINTR {
			if err == nil && poll[0].Revents == 0 {
				err = context.Cause(ctx)
			}
			return err
		}
	}
}
