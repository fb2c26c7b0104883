package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/quadlet"
)

// generatorName is the name by which systemd calls the program as a generator.
const generatorName = "oci-mainpid-generator"

const generatorUsage = `Usage: oci-mainpid-generator DIR [EARLYDIR LATEDIR]
       oci-mainpid-generator --dry-run

Writes a drop-in into DIR for each Quadlet file with a section [X-MainPID].
systemd runs it, see oci-mainpid-generator(8). With --dry-run it prints the
drop-ins.
`

// generator is the whole program under that name. Its exit status is 0 unless
// its command line is wrong: systemd would go on anyway, and what is wrong with
// a unit is that unit's own business.
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
	// It is over before garbage is worth collecting.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	log := newLog(dryRun)
	g := quadlet.NewGenerator(quadlet.FindPrograms(), log)
	// As for systemd's own programs, systemd(1).
	level := os.Getenv("SYSTEMD_LOG_LEVEL")
	g.Verbose = level == "debug" || level == "7"
	dropins := g.Dropins()
	if dryRun {
		for _, d := range dropins {
			fmt.Printf("---%s---\n%s\n", d.Path(""), d.Text())
		}
		return 0
	}
	failed := make([]error, len(dropins))
	quadlet.Parallel(len(dropins), func(i int) { failed[i] = dropins[i].WriteNew(args[0]) })
	for i, err := range failed {
		if err != nil {
			log(quadlet.Error, dropins[i].Unit, fmt.Sprintf("%v; systemctl daemon-reload tries again", err))
		}
	}
	return 0
}

// kinds are the kinds of the generator's messages, by their level.
var kinds = map[quadlet.Level]message.Kind{
	quadlet.Refused: message.UnitRefused,
	quadlet.Error:   message.GeneratorFailed,
	quadlet.Warning: message.UnitWarning,
	quadlet.Step:    message.Step,
}

// newLog returns where messages go: to the journal; to the kernel's log, as at
// boot there may be no other, systemd.generator(7); to stderr, if somebody
// watches or both are shut.
func newLog(dryRun bool) func(level quadlet.Level, service, text string) {
	kmsg := -1
	if !dryRun {
		// In a container it may be a FIFO that nobody reads.
		if fd, err := unix.Open("/dev/kmsg", unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
			kmsg = fd
		}
	}
	_, err := unix.IoctlGetTermios(2, unix.TCGETS)
	terminal := err == nil
	log := message.Log{Program: message.Generator}
	return func(level quadlet.Level, service, text string) {
		kind := kinds[level]
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
