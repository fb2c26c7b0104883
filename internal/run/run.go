// Package run starts a container by podman for whoever supervises it, finds and verifies
// its conmon, says when it is ready, and stays as long as the container: oci-mainpid run,
// oci-mainpid(8). All of it runs as the user, none of it needs root.
//
// It also is the filter in front of the container's notifications: they come to a socket
// of its own, and what is passed on to the manager is made anew from a short list.
package run

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/unitfile"
	"oci-mainpid-hook/sdnotify"
)

// Config is what to run, and whom to tell.
type Config struct {
	// Command is podman's command line, podman run -d --rm --name=NAME ….
	Command []string
	// Notify says who is told, see --notify= in oci-mainpid(8).
	Notify string
	// PIDFile is where conmon's PID is written, "" for nowhere.
	PIDFile string
	// Ready are the targets of the systemd in the container that must be active.
	Ready []string
	// Listen is an address of AF_VSOCK where the systemd of a virtual machine in the
	// container is heard instead, "" for the container's own socket. Whoever can send
	// there is believed.
	Listen string
	// Health: run podman's health checks, which podman leaves to systemd.
	Health bool
	// Timeout is how long the container may take to become ready, 0 for no limit.
	Timeout time.Duration
	// Log gets what people should know, a line each.
	Log func(format string, args ...any)
}

// Reboot is the exit status for a container whose systemd rebooted, as that of
// systemd-nspawn(1).
const Reboot = 133

// ErrUsage is wrapped by errors about what was asked for.
var ErrUsage = errors.New("see oci-mainpid run --help")

func usage(format string, args ...any) error {
	return fmt.Errorf("%s (%w)", fmt.Sprintf(format, args...), ErrUsage)
}

const (
	// bootTime is how long a stop waits for the systemd in the container to take
	// signals: before that, SIGRTMIN+3 would end it.
	bootTime = 10 * time.Second
	// endTime is how long what is left of a container may take to end.
	endTime = 15 * time.Second
	// checkTime bounds one command of podman's.
	checkTime = 2 * time.Minute
)

// runner is one run of a container.
type runner struct {
	Config
	command  command
	place    *place
	children *children
	tell     *teller

	// inUnit: a drop-in of ours is around this process. Root makes conmon the main
	// process, and PID 1 must be conmon's parent.
	inUnit      bool
	mainPIDFile string

	listener *listener // nil without a socket for the container
	inside   Inside
	conmon   *conmonbridge.Claim
	first    *conmonbridge.Claim // the container's first process

	signals  chan os.Signal
	stopping bool
	told     string // the last STATUS=
}

// Run runs the container and returns the exit status for this process. The error says
// why it is not the container's own; it wraps ErrUsage where nothing was started.
func (c Config) Run() (status int, err error) {
	r := &runner{Config: c, signals: make(chan os.Signal, 32)}
	for _, target := range c.Ready {
		if err := unitfile.CheckTargetName(target); err != nil {
			return 0, usage("--ready: %v", err)
		}
	}
	if r.Listen != "" {
		if a, err := sdnotify.ParseAddress(r.Listen); err != nil || !a.IsVsock() {
			return 0, usage("--listen=%.60s is no address such as vsock::1234", r.Listen)
		}
		if len(r.Ready) == 0 {
			return 0, usage("--listen=%s is for what --ready= waits for; add --ready=multi-user.target", r.Listen)
		}
	}
	if r.command, err = parseCommand(c.Command, len(c.Ready) > 0); err != nil {
		return 0, usage("%v", err)
	}
	if r.command.sdnotify == "healthy" {
		r.Health = true
	}
	if r.PIDFile != "" {
		if err := checkPIDFile(r.PIDFile); err != nil {
			return 0, usage("--pid-file: %v", err)
		}
	}
	if r.tell, err = newTeller(c.Notify); err != nil {
		return 0, err
	}
	r.mainPIDFile = os.Getenv(handover.EnvMainPIDFile)
	r.inUnit = r.mainPIDFile != ""
	// From here on, a signal is for the container.
	signal.Notify(r.signals, passedSignals()...)
	if r.children, err = newChildren(!r.inUnit); err != nil {
		return 0, err
	}
	base, top := ownBaseDir()
	if r.place, err = takePlace(base, top, r.command.name); err != nil {
		return 0, err
	}
	defer r.place.close()
	if r.PIDFile != "" {
		clearPIDFile(r.PIDFile)
	}
	if !r.inUnit {
		if r.mainPIDFile, err = r.place.makeMainPID(); err != nil {
			return 0, err
		}
	}
	if len(r.Ready) > 0 || r.command.sdnotify == "container" {
		if err := r.listen(); err != nil {
			return 0, err
		}
		defer r.listener.close()
	}
	status, err = r.start()
	if r.PIDFile != "" && r.conmon != nil {
		removePIDFile(r.PIDFile, r.conmon.PID)
	}
	return status, err
}

// passedSignals are all signals that are meant for the container.
func passedSignals() []os.Signal {
	signals := []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH}
	for n := unix.Signal(35); n <= 64; n++ { // SIGRTMIN+1 to SIGRTMAX
		signals = append(signals, n)
	}
	return signals
}

// podmanEnvironment is for all of podman.
func (r *runner) podmanEnvironment(more ...string) []string {
	return environment([]string{
		"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID",
		handover.EnvMainPIDFile, handover.EnvResultFile,
	}, more...)
}

// mainPIDVariable is for podman run, and for each podman that the run after this one waits
// for if this one is killed.
func (r *runner) mainPIDVariable() string { return handover.EnvMainPIDFile + "=" + r.mainPIDFile }

// start starts the container and, once it runs, watches it.
func (r *runner) start() (int, error) {
	var deadline <-chan time.Time
	if r.Timeout > 0 {
		deadline = time.After(r.Timeout)
	}
	args, env := r.command.args, []string{r.mainPIDVariable()}
	sockets := activation.Files(false)
	if len(sockets) > 0 {
		args = podmancmd.Activated(args)
		env = append(env, "LISTEN_FDS="+strconv.Itoa(len(sockets)), "LISTEN_FDNAMES="+os.Getenv("LISTEN_FDNAMES"))
	}
	pid, ended, err := r.children.start(args, r.podmanEnvironment(env...), os.Stdout, sockets...)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", r.command.args[0], err)
	}
	late := false
	var kill <-chan time.Time
	for status := -1; status < 0; {
		select {
		case w := <-ended:
			status = exitStatus(w)
		case s := <-r.signals:
			if s == unix.SIGTERM || s == unix.SIGINT {
				r.stop()
			}
		case <-deadline:
			late, deadline = true, nil
			r.stop()
		case <-kill:
			unix.Kill(pid, unix.SIGKILL)
		}
		if status > 0 && !r.stopping {
			r.remove()
			return status, nil // podman has said why
		}
		if r.stopping && kill == nil && status < 0 {
			// A podman that has a container must finish, or its processes would be
			// left. One that pulls an image ends.
			if _, err := r.readMainPID(); err != nil {
				unix.Kill(pid, unix.SIGTERM)
			}
			kill = time.After(endTime)
		}
		if status >= 0 && r.stopping {
			if _, err := r.readMainPID(); err != nil || status > 0 {
				r.remove()
				if late {
					return 0, fmt.Errorf("container %s: podman run did not start it within %v", r.command.name, r.Timeout)
				}
				if r.inUnit {
					return 0, nil // systemd asked for it
				}
				return 128 + int(unix.SIGTERM), nil
			}
		}
	}
	conmon, err := r.readMainPID()
	if err != nil {
		r.remove()
		return 0, fmt.Errorf("container %s: podman started it, but the hook did not run: is oci-mainpid-hook installed, with its JSON in a directory that podman reads? (%w)", r.command.name, err)
	}
	ended = r.children.wait(conmon)
	if err := r.claim(conmon); err != nil && !errors.Is(err, conmonbridge.ErrEnded) {
		r.remove()
		return 0, fmt.Errorf("container %s: conmon: %w", r.command.name, err)
	}
	return r.watch(ended, deadline, late)
}

// readMainPID returns what the hook wrote into the mainpid file.
func (r *runner) readMainPID() (int, error) { return handover.ReadMainPID(r.mainPIDFile) }

// claim takes hold of conmon and of the container's first process, and verifies them. The
// error is conmonbridge.ErrEnded if the container has ended.
func (r *runner) claim(pid int) (err error) {
	claim, err := conmonbridge.NewClaim(pid)
	if err != nil {
		return conmonbridge.ErrEnded
	}
	if r.conmon = claim; claim.Alive() != nil {
		return conmonbridge.ErrEnded
	}
	if err := claim.Verify(conmonbridge.Expected{Requirement: conmonbridge.RequireUser, UID: os.Geteuid()}); err != nil {
		return err
	}
	if err := conmonbridge.VerifyExecutable(pid, conmonbridge.Executables); err != nil {
		if claim.Alive() != nil {
			return conmonbridge.ErrEnded
		}
		return err
	}
	if container := conmonbridge.ContainerOf(pid); container.Name != r.command.name {
		if claim.Alive() != nil {
			return conmonbridge.ErrEnded
		}
		return fmt.Errorf("process %d is of %v", pid, container)
	}
	if r.first, err = conmonbridge.FirstProcess(claim); errors.Is(err, conmonbridge.ErrNoContainer) {
		return conmonbridge.ErrEnded
	}
	return err
}

// watch stays as long as the container. ended has conmon's exit status, if it is a child.
func (r *runner) watch(conmonEnded <-chan unix.WaitStatus, deadline <-chan time.Time, late bool) (int, error) {
	var (
		gone     <-chan struct{} // conmon, where it is no child
		messages <-chan *heard
		stopped  <-chan unix.WaitStatus // podman stop
		boot     <-chan time.Time       // the wait for a systemd in the container to take signals
		bootOver bool
		kill     <-chan time.Time
		health   = newHealth(r)
		failure  error
	)
	if r.inUnit {
		conmonEnded = nil
		if r.conmon == nil {
			return 0, fmt.Errorf("container %s: has ended", r.command.name)
		}
		gone = await(r.conmon.PIDFD())
	}
	if r.listener != nil && r.first != nil {
		messages = r.listener.start(r.conmon.PID, r.first, len(r.Ready) > 0)
		r.inside.Waiting = r.inside.missing(r.Ready)
		r.tell.send(r.status()...)
		r.save()
	}
	if r.first != nil {
		health.start()
	}
	// A container that has ended at once was ready for nobody.
	if r.listener == nil && !r.Health && r.first != nil && !r.stopping {
		if err := r.ready(); err != nil {
			failure = err
			r.stop()
		}
	}
	for {
		if r.stopping && stopped == nil {
			if boot == nil && !bootOver {
				boot = time.After(bootTime)
			}
			if len(r.Ready) == 0 || r.inside.SignalsLevel >= 2 || r.first == nil || bootOver {
				_, done, err := r.children.start(r.command.podman("stop", r.command.name), r.podmanEnvironment(r.mainPIDVariable()), nil)
				if err != nil {
					return 0, errors.Join(failure, err)
				}
				stopped = done
			}
		}
		select {
		case w := <-conmonEnded:
			return r.end(exitStatus(w), w.Signaled(), failure)
		case <-gone:
			return r.end(0, false, failure)
		case h := <-messages:
			if err := r.hear(h); err != nil && failure == nil {
				failure = err
				r.stop()
			}
		case s := <-r.signals:
			if s == unix.SIGTERM || s == unix.SIGINT {
				if !r.inside.Ready && !r.stopping && failure == nil {
					r.Log("container %s: stopped while %s", r.command.name, r.waitsFor())
				}
				r.stop()
			} else {
				r.children.start(r.command.podman("kill", fmt.Sprintf("--signal=%d", int(s.(unix.Signal))), r.command.name), r.podmanEnvironment(r.mainPIDVariable()), nil)
			}
		case <-deadline:
			deadline = nil
			if !r.inside.Ready && !r.stopping {
				failure = fmt.Errorf("container %s: not ready within %v: %s", r.command.name, r.Timeout, r.waitsFor())
				r.stop()
			}
		case <-boot:
			boot, bootOver = nil, true
		case <-stopped:
			stopped = make(chan unix.WaitStatus) // never again
			kill = time.After(endTime)
		case <-kill:
			kill = nil
			r.remove()
		case healthy := <-health.result:
			if healthy && !r.inside.Ready && r.listener == nil && !r.stopping {
				if err := r.ready(); err != nil {
					failure = err
					r.stop()
				}
			}
			health.next()
		case <-health.timer():
			health.check()
		}
	}
}

// stop has the container be stopped.
func (r *runner) stop() {
	r.stopping = true
}

// hear takes in what the container said. The error is that it could not be passed on.
func (r *runner) hear(h *heard) (err error) {
	defer close(h.done)
	pass, readyNow := r.inside.hear(h.message)
	r.inside.Dropped = h.dropped
	r.inside.Waiting = r.inside.missing(r.Ready)
	switch {
	case !r.inside.Ready && !r.stopping && (len(r.Ready) > 0 && len(r.inside.Waiting) == 0 || len(r.Ready) == 0 && readyNow):
		err = r.ready()
	case r.inside.Ready && readyNow:
		// After RELOADING=1.
		pass = append(pass, sdnotify.Ready())
	}
	r.tell.send(append(pass, r.status()...)...)
	r.save()
	return err
}

// status returns STATUS=, if it is not what was told last.
func (r *runner) status() sdnotify.Message {
	line := r.inside.statusLine(r.Ready)
	if line == r.told {
		return nil
	}
	r.told = line
	return sdnotify.Message{sdnotify.Status(line)}
}

// ready says that the container is ready.
func (r *runner) ready() error {
	r.inside.Ready = true
	if r.PIDFile != "" {
		if err := writePIDFile(r.PIDFile, r.conmon.PID); err != nil {
			return fmt.Errorf("--pid-file: %w", err)
		}
	}
	line := "Container " + r.command.name + " runs"
	if r.listener != nil {
		line = r.inside.statusLine(r.Ready)
	}
	r.told = line
	if err := r.tell.ready(line); err != nil {
		return fmt.Errorf("container %s is ready, but that cannot be told: %w", r.command.name, err)
	}
	r.save()
	return nil
}

// end returns the exit status for this process, when conmon has ended. killed says that
// conmon was killed, so that the container may live on.
func (r *runner) end(status int, killed bool, failure error) (int, error) {
	r.drain()
	if killed || r.inUnit && r.first != nil && r.first.Alive() == nil {
		if r.first != nil {
			unix.PidfdSendSignal(r.first.PIDFD(), unix.SIGKILL, nil, 0)
			r.first.AliveAfter(endTime)
		}
		r.remove()
	}
	if !r.inUnit {
		// conmon has podman remove the container.
		if !r.children.awaitCleanup(endTime) {
			r.remove()
		}
	}
	if failure != nil {
		return 0, failure
	}
	if r.inUnit {
		if !r.inside.Ready && !r.stopping {
			return 0, fmt.Errorf("container %s ended before it was ready: %s", r.command.name, r.waitsFor())
		}
		return 0, nil
	}
	switch r.inside.Shutdown {
	case "reboot", "kexec":
		return Reboot, nil
	case "poweroff", "halt":
		switch status {
		case 0, 128 + int(unix.SIGINT):
			return 0, nil
		}
	}
	if !r.inside.Ready && !r.stopping {
		if status == 0 {
			return 0, fmt.Errorf("container %s ended before it was ready", r.command.name)
		}
		r.Log("container %s ended before it was ready, with exit status %d", r.command.name, status)
	}
	return status, nil
}

// drain hears what the container said last.
func (r *runner) drain() {
	if r.listener == nil || r.inUnit {
		// In a unit, systemd kills this process soon after conmon has ended.
		return
	}
	for {
		select {
		case h := <-r.listener.messages:
			if h == nil {
				return
			}
			r.hear(h)
		case <-time.After(100 * time.Millisecond):
			return
		}
	}
}

// remove removes what is left of the container. podman 5.4 fails once to remove a
// container whose conmon was killed.
func (r *runner) remove() {
	for attempt := 1; ; attempt++ {
		_, done, err := r.children.start(r.command.podman("rm", "--force", "--ignore", "--time=2", r.command.name), r.podmanEnvironment(r.mainPIDVariable()), nil)
		if err != nil {
			r.Log("podman rm: %v", err)
			return
		}
		select {
		case w := <-done:
			if status := exitStatus(w); status == 0 || attempt == 2 {
				return
			}
		case <-time.After(checkTime):
			r.Log("podman rm --force %s takes more than %v", r.command.name, checkTime)
			return
		}
	}
}

// waitsFor says what a container that is not ready waits for.
func (r *runner) waitsFor() string {
	if r.listener == nil {
		return "waiting for a health check to succeed"
	}
	line := r.inside.statusLine(r.Ready)
	return strings.ToLower(line[:1]) + line[1:]
}
