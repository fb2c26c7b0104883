// Command demo shows in a throw-away machine what the project is for: a rootless
// container as a system service, from a Quadlet file and from a hand-written
// unit, the latter also without the project. It checks whatever it claims, and
// exits 1 when something does not hold.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"oci-mainpid-hook/test/sandbox"
)

// A scene is a part of the demonstration.
type scene struct {
	title string
	play  func(*stage)
}

// scenes are played in this order, on one machine.
var scenes = []scene{
	{"WITH QUADLET: two lines more", quadlet},
	{"BEFORE: a unit with User=, and nothing else", before},
	{"AFTER: the same unit, and a drop-in of oci-mainpid", after},
	{"THEN: the container is killed, and systemd notices", then},
	{"RELOAD: another container, the same unit", reload},
}

const summary = `Without: systemd refuses conmon as main process; the container is an orphan, or dies.
With:    conmon is the main process; the unit itself did not change.
So:      the container's life is the service's: its start, its stop, its exit status.`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	err := run(ctx)
	if err == nil {
		return
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	fmt.Fprintln(os.Stderr, "demo:", err)
	os.Exit(1)
}

func run(ctx context.Context) (err error) {
	screen := newScreen(os.Stdout)
	screen.title("A machine: Debian trixie with systemd and podman")
	machine, err := sandbox.Boot(ctx, sandbox.Config{Suite: sandbox.Trixie, Progress: screen.progress()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, machine.PowerOff(context.Background())) }()

	s := &stage{ctx: ctx, machine: machine, screen: screen}
	s.setUp()
	for _, scene := range scenes {
		if s.err == nil {
			screen.title(scene.title)
			scene.play(s)
		}
	}
	if s.err != nil {
		s.explain()
		return s.err
	}
	screen.title("In three lines")
	screen.output(summary, wrapped)
	screen.blank()
	return nil
}

// explain shows what the journal has on the unit, after an error.
func (s *stage) explain() {
	quiet := &stage{ctx: s.ctx, machine: s.machine}
	if lines, _ := quiet.execute("journalctl -u web -n 15 -o cat"); quiet.err == nil {
		s.screen.say("The latest in the journal of web.service:")
		s.screen.output(lines, wrapped)
		s.screen.blank()
	}
}

// setUp installs the project and makes a user with an image.
func (s *stage) setUp() {
	s.screen.say("The project is installed in it. There is a user, web, with an image, localhost/busybox. Output that is wider than the screen is wrapped, or cut where the rest says little (…).")
	install := "make install DESTDIR=" + s.machine.Root()
	s.screen.command(install)
	cmd := exec.CommandContext(s.ctx, "make", "--silent", "install", "DESTDIR="+s.machine.Root())
	if out, err := cmd.CombinedOutput(); err != nil {
		s.err = fmt.Errorf("%s: %w\n%s", install, err, out)
	}
	s.run("useradd --create-home web")
	s.quiet("su - web -c 'podman import --quiet " + sandbox.BusyboxTar + " localhost/busybox'")
	s.uid = s.quiet("id --user web")
	s.asAfterBoot()
}
