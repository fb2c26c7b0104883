package replace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/proc"
)

// A swap is for a container that cannot exist twice: the old one ends before the new one
// starts.
//
//  1. root makes a process that does nothing, which stands in for the container as the
//     main process, and writes the PID of the old conmon into the file.
//  2. Start ends the old container, starts the new one, and waits until it is ready. If
//     it is not, Start starts the old one again. The conmon's PID is in the file.
//  3. Back starts the old one again if Start was killed.
//  4. root verifies the process in the file and makes it the main process.
//  5. Finish ends the process that stood in.

// swap is what a swap has to remember.
type swap struct {
	// StandIn is the PID of the process that is the main process meanwhile, Conmon that
	// of the old container.
	StandIn, Conmon int
	// Again is the command that starts the old container again, Notify and Sockets are
	// those of Options.
	Again           []string
	Notify, Sockets bool
	// Ending says that the old container is being ended, or has ended.
	Ending bool
	// Next is the conmon of the container that is ready, 0 until then.
	Next int
}

// swap ends the old container and starts the new one.
func (u *Unit) swap(ctx context.Context, o Options, s *state, held *sockets) error {
	p, name, cidFile, err := o.names()
	if err != nil {
		return err
	}
	conmon := claimed(o.NextFile)
	old := containerOf(conmon)
	switch {
	case conmon == 0 || containerOf(u.MainPID) != "":
		return errors.New("no process stands in for the container; notify-mainpid has said why")
	case old == "":
		return fmt.Errorf("process %d is no conmon of a container", conmon)
	}
	again, err := u.again(ctx, old)
	if err == nil {
		err = u.pull(ctx, p)
	}
	if err == nil && o.Sockets {
		*held, err = takeSockets(conmon)
	}
	if err != nil {
		return err
	}
	c, err := u.command(ctx, o, *held)
	if err != nil {
		return err
	}
	defer c.close()
	*s = state{Old: old, Name: name, CIDFile: cidFile, Socket: c.socket, Swap: &swap{
		StandIn: u.MainPID, Conmon: conmon, Again: again, Notify: o.Notify, Sockets: o.Sockets, Ending: true,
	}}
	if err := u.write(s); err != nil {
		s.Done = true
		return err
	}
	if err := u.remove(ctx, old); err != nil {
		return err
	}
	if conmon, err = c.ready(ctx, s.CIDFile); err != nil {
		return err
	}
	return u.offer(s, conmon, o.NextFile)
}

// offer writes the PID of the conmon that is to be the main process.
func (u *Unit) offer(s *state, conmon int, next string) error {
	s.Swap.Next = conmon
	if err := u.write(s); err != nil {
		return err
	}
	return claim(next, conmon)
}

// again returns the command that the container was started with, for the same image
// whatever the image's name means now.
func (u *Unit) again(ctx context.Context, container string) ([]string, error) {
	out, err := u.podman(ctx, "container", "inspect", "--format={{.Image}} {{json .Config.CreateCommand}}", container)
	if err != nil {
		return nil, err
	}
	image, text, _ := strings.Cut(out, " ")
	var args []string
	if err := json.Unmarshal([]byte(text), &args); err != nil || len(args) == 0 {
		return nil, fmt.Errorf("podman does not say how container %.12s was started: CreateCommand is %.200s", container, text)
	}
	p, ok := podmancmd.ParseArguments(args[0], args[1:])
	if !ok || !p.CreatesContainer() {
		return nil, fmt.Errorf("container %.12s was not started by podman run, but by %.200q", container, args)
	}
	if _, rootfs := p.Last("rootfs"); rootfs || len(p.Arguments()) == 0 {
		return args, nil
	}
	at := len(args) - len(p.Arguments())
	var more []string
	if id, err := u.podman(ctx, "image", "inspect", "--format={{.Id}}", args[at]); err != nil || id != image {
		args[at] = image
		more = append(more, noAutoUpdate)
	}
	if args[at-1] == "--" {
		at--
	}
	if args[at-1] != neverPull {
		more = append(more, neverPull)
	}
	return slices.Insert(args, at, more...), nil
}

const (
	neverPull = "--pull=never"
	// noAutoUpdate is the last word on that label. podman runs no image by its ID with
	// AutoUpdate=registry.
	noAutoUpdate = "--label=io.containers.autoupdate=disabled"
)

// pullOptions are those of podman run that podman pull has, too.
var pullOptions = []string{"arch", "authfile", "cert-dir", "creds", "decryption-key", "os", "platform", "retry", "retry-delay", "tls-verify", "variant"}

// pull pulls the image if it is not there: not once the old container has ended.
func (u *Unit) pull(ctx context.Context, p podmancmd.Podman) error {
	if _, rootfs := p.Last("rootfs"); rootfs || len(p.Arguments()) == 0 {
		return nil
	}
	image := p.Arguments()[0]
	if _, err := u.podman(ctx, "image", "exists", image); err == nil {
		return nil
	}
	if policy, _ := p.Last("pull"); policy == "never" {
		return fmt.Errorf("image %s is not there, and is never pulled", image)
	}
	args := []string{"pull", "--quiet"}
	for _, name := range pullOptions {
		for _, o := range p.All(name) {
			args = append(args, "--"+name+"="+o.Value)
		}
	}
	_, err := u.podman(ctx, append(args, image)...)
	return err
}

var errCutOff = errors.New("the reload was cut off")

// Back starts the old container again if Start has ended it and not done its work,
// because it was killed. next is the file for the PID of the conmon.
func (u *Unit) Back(ctx context.Context, next string) error {
	s, err := u.read()
	if err != nil || s == nil || s.Done || s.Swap == nil {
		return err
	}
	if s.Swap.Next != 0 && containerOf(s.Swap.Next) != "" {
		return claim(next, s.Swap.Next)
	}
	if s.Failed == "" {
		s.Failed, err = errCutOff.Error(), errCutOff
	}
	if p, gone := proc.Read(u.MainPID); gone != nil || p.Ended() { // the unit ends
		return errors.Join(err, u.write(s))
	}
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	u.awaitPodman(ctx)
	var held sockets
	if s.Swap.Sockets {
		for _, conmon := range []int{claimed(u.mainPIDPath()), s.Swap.Conmon} {
			if held, _ = takeSockets(conmon); len(held.files) > 0 {
				break
			}
		}
		if len(held.files) == 0 {
			return errors.Join(err, errors.New("nobody holds the unit's sockets any more"), u.write(s))
		}
		defer held.close()
	}
	return errors.Join(err, u.back(ctx, s, held, next))
}

// back starts the old container again.
func (u *Unit) back(ctx context.Context, s *state, held sockets, next string) error {
	err := u.write(s)
	for _, name := range []string{s.Name, s.Old} {
		if err == nil {
			err = u.remove(ctx, name, "--time=5")
		}
	}
	var c *command
	if err == nil {
		c, err = u.command(ctx, Options{Args: s.Swap.Again, Notify: s.Swap.Notify}, held)
	}
	if err == nil {
		defer c.close()
		if s.CIDFile != "" {
			os.Remove(s.CIDFile)
		}
		s.Socket = c.socket
		var conmon int
		if conmon, err = c.run(); err == nil {
			err = errors.Join(c.passOn(), u.offer(s, conmon, next))
		}
	}
	if err != nil {
		return fmt.Errorf("start the old container again: %w", err)
	}
	return nil
}

// awaitPodman waits until no podman of the unit runs any more: one that was started by a
// command that was killed goes on by itself.
func (u *Unit) awaitPodman(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout/2)
	defer cancel()
	pids, _ := proc.PIDs()
	for _, pid := range pids {
		if p, err := proc.Read(pid); err != nil || p.Comm != "podman" {
			continue
		}
		env, err := proc.Environ(pid, proc.MaxStrings)
		if err != nil || env.Get("INVOCATION_ID") != os.Getenv("INVOCATION_ID") {
			continue
		}
		if pidfd, err := unix.PidfdOpen(pid, 0); err == nil {
			ended(ctx, pidfd)
			unix.Close(pidfd)
		}
	}
}

// settleSwap ends a swap. main is the ID of the container of the main process.
func (u *Unit) settleSwap(ctx context.Context, s *state, main string) error {
	if main == "" {
		if s.Failed != "" {
			return ErrFailed
		}
		s.Failed = "no conmon has become the main process again"
		return errors.Join(errors.New(s.Failed), u.write(s))
	}
	other := s.Old
	if main == s.Old {
		if other = u.exists(ctx, s.Name); other == main {
			other = ""
		}
		if s.Failed == "" {
			s.Failed = errCutOff.Error()
		}
	}
	if other != "" {
		if err := u.remove(ctx, other); err != nil {
			return fmt.Errorf("remove the container that is not the main process's: %w", err)
		}
	}
	u.removeSockets(s.Socket)
	return u.done(s, main)
}

// endStandIn ends the process that has stood in for the container. A unit of which it is
// still the main process fails.
func (s *state) endStandIn() {
	if s.Swap == nil {
		return
	}
	if p, err := proc.Read(s.Swap.StandIn); err == nil && p.Comm == "notify-mainpid" {
		unix.Kill(s.Swap.StandIn, unix.SIGKILL)
	}
}

// undoTimeout is how long to undo a reload may take.
const undoTimeout = 25 * time.Second
