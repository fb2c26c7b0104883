package conmonbridge

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// What this process may use at most, many times what it ever needs: it waits for
// and reads what a user controls.
const (
	maxCPU  = 10        // seconds
	maxData = 256 << 20 // bytes; a Go program that does nothing maps 40 MiB
)

// Bound has the kernel hold this process to a bound in time on a processor and
// in memory, and write no core dump (setrlimit(2)). Where it is exceeded, the
// process ends.
func Bound() error {
	for _, limit := range []struct {
		name     string
		resource int
		max      uint64
	}{
		{"RLIMIT_CORE", unix.RLIMIT_CORE, 0},
		{"RLIMIT_CPU", unix.RLIMIT_CPU, maxCPU},
		{"RLIMIT_DATA", unix.RLIMIT_DATA, maxData},
	} {
		// A lower one, which cannot be raised, is good, too.
		var have unix.Rlimit
		err := unix.Getrlimit(limit.resource, &have)
		if err == nil && have.Max > limit.max {
			err = unix.Setrlimit(limit.resource, &unix.Rlimit{Cur: limit.max, Max: limit.max})
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", limit.name, err)
		}
	}
	return nil
}
