package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"strconv"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

//go:embed reload.sh
var reloadScript []byte

// benchReload measures systemctl reload against systemctl restart, how long nobody
// answers meanwhile at a published port, and the memory that a reload needs.
func benchReload(ctx context.Context, machine *sandbox.Machine, rounds int) error {
	script, err := putScript(machine, "bench-reload", reloadScript)
	if err != nil {
		return err
	}
	cmd := machine.Command(ctx, script, strconv.Itoa(rounds))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	before := load()
	fmt.Fprintf(os.Stderr, "reloading units %d times\n", 4*rounds)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("systemctl reload on %s: %w\n%s", machine.Suite, err, stderr.Bytes())
	}
	// The columns are those of a start: unit, what was done, time, time of no answer.
	times, err := parseStarts(string(out))
	if err != nil {
		return fmt.Errorf("systemctl reload on %s: %w", machine.Suite, err)
	}
	fmt.Printf("systemctl reload and restart on %s, %d of each in random order, medians. Load %s before and %s after.\n\n",
		machine.Suite, rounds, before, load())
	for _, how := range []string{"beside", "swap"} {
		reload, restart := times[started{how, "reload"}], times[started{how, "restart"}]
		if len(reload.wall) == 0 || len(restart.wall) == 0 {
			return fmt.Errorf("Reload=%s: nothing was measured", how)
		}
		low, high := ratioInterval(reload.wall, restart.wall)
		fmt.Printf("  Reload=%s: reload %s, restart %s, %.2f (%.2f to %.2f) times; memory besides, at most: %d KiB\n", how,
			milliseconds(median(reload.wall)), milliseconds(median(restart.wall)), ratio(reload.wall, restart.wall), low, high,
			median(times[started{"memory", how}].wall)/time.Microsecond)
		if how == "swap" {
			fmt.Printf("  Reload=swap: nobody answers at the published port for %s by reload, %s by restart\n",
				milliseconds(median(reload.processor)), milliseconds(median(restart.processor)))
		}
	}
	fmt.Println()
	return nil
}
