// Command bench measures what the project costs: the wall time of its two small
// programs, from start to exit, against programs that do nothing; that of
// "podman run -d" with and without the hook; that of "systemctl start" until the unit is
// active, for the units of this project, of root's Quadlet and of a user's own manager;
// and that of "systemctl reload". It judges nothing: it prints the project's aims beside the
// figures, and exits 0 unless something failed to run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"oci-mainpid-hook/test/sandbox"
)

// A build is the project's programs, in a directory. Of two builds, every
// measurement runs the one and the other in turn.
type build struct{ name, dir string }

func main() {
	rounds := flag.Int("rounds", 1000, "how often each program runs; 0 leaves the programs out")
	podmanRounds := flag.Int("podman-rounds", 150, "how often podman run -d runs with and without the hook, on each machine; 0 leaves it out")
	startRounds := flag.Int("start-rounds", 20, "how often each unit starts, on each machine; 0 leaves the starts out")
	reloadRounds := flag.Int("reload-rounds", 30, "how often each unit is reloaded, and restarted, on each machine; 0 leaves it out")
	suites := flag.String("suites", "trixie", "suites of the throw-away machines, separated by commas")
	bin := flag.String("bin", "bin", "directory of the programs")
	other := flag.String("programs", "", "directory of another build's programs, to compare with those of -bin: the programs alone, and the starts")
	flag.Parse()
	if flag.NArg() > 0 || min(*rounds, *podmanRounds, *startRounds, *reloadRounds) < 0 {
		flag.Usage()
		os.Exit(2)
	}
	builds := []build{{"this build", *bin}}
	if *other != "" {
		builds = append(builds, build{"other build", *other})
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if *rounds > 0 {
		err = benchPrograms(ctx, builds, *rounds)
	}
	if *podmanRounds > 0 || *startRounds > 0 || *reloadRounds > 0 {
		for suite := range strings.SplitSeq(*suites, ",") {
			if ctx.Err() == nil {
				err = errors.Join(err, benchMachine(ctx, sandbox.Suite(suite), builds, *podmanRounds, *startRounds, *reloadRounds))
			}
		}
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// benchMachine measures what needs a machine, on one of the suite.
func benchMachine(ctx context.Context, suite sandbox.Suite, builds []build, podmanRounds, startRounds, reloadRounds int) (err error) {
	machine, err := sandbox.Boot(ctx, sandbox.Config{Suite: suite, Progress: os.Stderr})
	if err != nil {
		return err
	}
	// Also when ctx is done.
	defer func() { err = errors.Join(err, machine.PowerOff(context.Background())) }()

	if err := run(exec.CommandContext(ctx, "make", "--silent", "install", "DESTDIR="+machine.Root())); err != nil {
		return err
	}
	if err := run(machine.Command(ctx, "useradd", "--create-home", "bench")); err != nil {
		return err
	}
	if podmanRounds > 0 {
		err = benchPodman(ctx, machine, podmanRounds)
	}
	if startRounds > 0 && ctx.Err() == nil {
		err = errors.Join(err, benchStart(ctx, machine, builds, startRounds))
	}
	if reloadRounds > 0 && ctx.Err() == nil {
		err = errors.Join(err, benchReload(ctx, machine, reloadRounds))
	}
	return err
}

// putScript writes a script into the machine and returns its path there.
func putScript(machine *sandbox.Machine, name string, script []byte) (string, error) {
	path := "/usr/local/bin/" + name
	return path, os.WriteFile(filepath.Join(machine.Root(), path), script, 0o755)
}

// run runs a command that says nothing unless it fails.
func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
