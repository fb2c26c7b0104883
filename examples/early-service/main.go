// Command early-service counts from the initrd on, and goes on counting when the system
// has switched to its root file system. It serves the counter on a Unix socket, which
// exists throughout. README.md has the whole story.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"oci-mainpid-hook/sdnotify"
)

func main() {
	log.SetFlags(0) // the journal has the time
	log.SetOutput(os.Stdout)
	err := run(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "early-service:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("early-service", flag.ContinueOnError)
	delay := flags.Int("timer_delay_ms", 100, "`MILLISECONDS` from one number to the next")
	path := flags.String("server_socket_path", "", "`PATH` of the Unix socket to listen on; none without it")
	survive := flags.Bool("survive_systemd_kill_signal", false, "begin argv[0] with @, so that systemd does not end this process when it leaves the initrd")
	take := flags.Bool("takeover_existing_socket", false, "take socket and counter over from the process that has them, if there is one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("argument %q: there are only flags, see --help", flags.Arg(0))
	case *delay < 1 || *delay > 86400_000:
		return fmt.Errorf("--timer_delay_ms=%d: type a number from 1 to 86400000", *delay)
	case *take && *path == "":
		return errors.New("--takeover_existing_socket: say which one by --server_socket_path=PATH")
	}
	if *survive && !strings.HasPrefix(os.Args[0], "@") {
		program, err := os.Executable()
		if err != nil {
			return err
		}
		// The kernel shows others the arguments that a program was executed with.
		return fmt.Errorf("execute %s as @: %w", program,
			syscall.Exec(program, append([]string{"@" + os.Args[0]}, os.Args[1:]...), os.Environ()))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A journal that is gone must not end the counting.
	signal.Ignore(syscall.SIGPIPE)

	s, err := newService(*path, *take)
	if err != nil {
		return err
	}
	systemd, err := sdnotify.FromEnvironment()
	if err == nil {
		err = systemd.Send(ctx, sdnotify.Ready(), sdnotify.Status(fmt.Sprintf("Counting from %d on", s.next)))
	}
	if err != nil && !errors.Is(err, sdnotify.ErrNoSocket) {
		log.Print(err) // a counter that was taken over must not be lost
	}
	return s.run(ctx, time.Duration(*delay)*time.Millisecond)
}
