package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/quadlet"
)

// generatorName is the name by which systemd calls the program as a generator.
const generatorName = "oci-mainpid-generator"

const generatorUsage = `Usage: oci-mainpid-generator DIR [EARLYDIR LATEDIR]
       oci-mainpid-generator --dry-run

Writes a drop-in into DIR for each Quadlet file with a User= in [Service]. systemd
runs it, see oci-mainpid-generator(8). With --dry-run it prints the drop-ins.
`

// generator is the whole program under that name. It returns the exit status, which is
// 0 unless the command line is wrong: a wrong unit must not hold up a boot, and fails
// by itself.
func generator(args []string) int {
	dryRun := len(args) == 1 && (args[0] == "--dry-run" || args[0] == "--dryrun")
	if len(args) != 1 && len(args) != 3 || !dryRun && strings.HasPrefix(args[0], "-") {
		help := len(args) == 1 && args[0] == "--help"
		if help {
			fmt.Print(generatorUsage)
			return 0
		}
		wrong := fmt.Sprintf("%d arguments, not DIR, or DIR, EARLYDIR and LATEDIR", len(args))
		if len(args) > 0 && strings.HasPrefix(args[0], "-") {
			wrong = fmt.Sprintf("unknown flag: %s", args[0])
		}
		fmt.Fprintf(os.Stderr, "%s: %s (see %[1]s --help)\n", generatorName, message.Line(wrong))
		return exitUsage
	}
	// The program ends before collecting garbage would pay.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	log := newGeneratorLog(dryRun)
	planner := quadlet.NewPlanner(dropin.Generator)
	// As for systemd's own programs, systemd(1).
	if level := os.Getenv("SYSTEMD_LOG_LEVEL"); level == "debug" || level == "7" {
		planner.Step = func(service, text string) { log(message.Step, service, text) }
	}
	ctx, cancel := context.WithTimeout(context.Background(), generatorTimeout)
	defer cancel()
	plan := planner.Quadlet(ctx)
	if dryRun {
		refusing, serving := plan.Dropins()
		for _, d := range slices.Concat(refusing, serving) {
			fmt.Printf("---%s---\n%s\n", d.Path(""), d.Text())
		}
		for _, g := range plan.Gone {
			fmt.Printf("---%s---\n%s\n---%s---\n%s\n", g.Path(""), g.Text(), g.Unit, g.UnitText())
		}
	} else {
		writePlan(log, plan, args[0], args[min(1, len(args)-1)])
		writeGone(log, plan, args[0], args[len(args)-1])
	}
	if len(plan.Decisions) > 0 {
		if warning := planner.VersionWarning(ctx); warning != "" {
			plan.Warnings = append(plan.Warnings, warning)
		}
	}
	logPlan(log, plan)
	return 0
}

// generatorTimeout bounds the generator's run, with Quadlet's generator and the name
// service. systemd kills generators after 90 s, systemd.generator(7). A unit whose user
// is not known by then is refused.
const generatorTimeout = 30 * time.Second

func logPlan(log logFunc, plan *quadlet.Plan) {
	for _, text := range plan.Errors {
		log(message.GeneratorFailed, "", text)
	}
	for _, text := range plan.Warnings {
		log(message.UnitWarning, "", text)
	}
	for _, g := range plan.Gone {
		log(message.UnitWarning, g.Unit, "runs as it was started, with a user that none of its files has any more; systemctl stop ends its container")
	}
	for _, d := range plan.Decisions {
		for _, text := range d.Warnings {
			log(message.UnitWarning, d.Service, text)
		}
		if d.Err != nil {
			log(message.UnitRefused, d.Service, "will not start: "+d.Err.Error())
		}
	}
}

// writeGone writes what ends the containers of units that would get no drop-in any more.
// Their unit files are of use only where nobody has another one, so they belong into the
// directory that comes last, systemd.generator(7).
func writeGone(log logFunc, plan *quadlet.Plan, dir, late string) {
	for _, g := range plan.Gone {
		err := g.Write(dir)
		if err == nil {
			err = g.WriteUnit(late)
		}
		if err != nil {
			log(message.GeneratorFailed, g.Unit, err.Error())
		}
	}
}

// writePlan writes the drop-ins into dir, refusing ones first. For each drop-in that
// cannot be written it masks the unit, by a link in masks.
func writePlan(log logFunc, plan *quadlet.Plan, dir, masks string) {
	for _, service := range plan.Masked {
		if err := mask(service, masks); err != nil {
			log(message.GeneratorFailed, service, err.Error())
		}
	}
	refusing, serving := plan.Dropins()
	for _, dropins := range [][]*dropin.Dropin{refusing, serving} {
		failed := make([]error, len(dropins))
		quadlet.Parallel(len(dropins), func(i int) { failed[i] = writeOrMask(dropins[i], dir, masks) })
		for i, err := range failed {
			if err != nil {
				log(message.GeneratorFailed, dropins[i].Unit, fmt.Sprintf("%v; make room, then: systemctl daemon-reload", err))
			}
		}
	}
}

// writeOrMask writes a drop-in. If that fails, it masks the unit, which systemd would
// otherwise start without the drop-in. A link needs no room on a full file system.
func writeOrMask(d *dropin.Dropin, dir, masks string) error {
	err := d.Write(dir)
	if err == nil || manager.IsUserManager(d.Unit) {
		return err
	}
	if maskErr := mask(d.Unit, masks); maskErr != nil {
		return errors.Join(err, maskErr)
	}
	return fmt.Errorf("%w; the unit is masked, so that it does not start without its drop-in", err)
}

// mask keeps a unit from starting, systemd.unit(5).
func mask(unit, dir string) error { return os.Symlink("/dev/null", filepath.Join(dir, unit)) }

// logFunc takes a line for the administrator about a service, "" for none.
type logFunc func(kind message.Kind, service, text string)

// newGeneratorLog returns a function that sends messages to the journal. At boot there
// may be no journal, and then they go to the kernel's log, systemd.generator(7). They
// also go to standard error if that is a terminal, or if neither log can be written.
func newGeneratorLog(dryRun bool) logFunc {
	kmsg := -1
	if !dryRun {
		// In a container /dev/kmsg may be a FIFO that nobody reads.
		if fd, err := unix.Open("/dev/kmsg", unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
			kmsg = fd
		}
	}
	_, err := unix.IoctlGetTermios(2, unix.TCGETS)
	terminal := err == nil
	log := message.Log{Program: message.Generator}
	return func(kind message.Kind, service, text string) {
		if service != "" {
			text = service + ": " + text
		}
		text = message.Line(text)
		log.Unit = service
		logged := !dryRun && log.Send(kind, text, nil)
		if !logged && kmsg >= 0 {
			_, err := unix.Write(kmsg, fmt.Appendf(nil, "<%d>%s[%d]: %s\n", kind.Priority, generatorName, os.Getpid(), text))
			logged = err == nil
		}
		if terminal || !logged {
			fmt.Fprintf(os.Stderr, "%s: %s\n", generatorName, text)
		}
	}
}
