package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

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
		fmt.Fprint(os.Stderr, generatorUsage)
		return exitUsage
	}
	// It is over before garbage is worth collecting.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	log := newLog(dryRun)
	dropins := quadlet.NewGenerator(quadlet.FindPrograms(), log).Dropins()
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
			log(quadlet.Error, fmt.Sprintf("%s: %v", dropins[i].Unit, err))
		}
	}
	return 0
}

// newLog returns where messages go: to the kernel's log, as at boot there is no
// other, systemd.generator(7); to stderr, if somebody watches or that is shut.
func newLog(dryRun bool) func(quadlet.Level, string) {
	kmsg := -1
	if !dryRun {
		// In a container it may be a FIFO that nobody reads.
		if fd, err := unix.Open("/dev/kmsg", unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
			kmsg = fd
		}
	}
	_, err := unix.IoctlGetTermios(2, unix.TCGETS)
	terminal := err == nil
	return func(level quadlet.Level, message string) {
		message = strings.ReplaceAll(message, "\n", " ")
		logged := false
		if kmsg >= 0 {
			_, err := unix.Write(kmsg, fmt.Appendf(nil, "<%d>%s[%d]: %s\n", level, generatorName, os.Getpid(), message))
			logged = err == nil
		}
		if terminal || !logged {
			fmt.Fprintf(os.Stderr, "%s: %s\n", generatorName, message)
		}
	}
}
