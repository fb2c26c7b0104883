package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

//go:embed podman.sh
var podmanScript []byte

// podmanAim is the aim for "podman run -d": with the hook, at most this many
// times what it takes without.
const podmanAim = 1.02

// benchPodman measures "podman run -d" of a container that is not ours, by a
// user of a throw-away machine, with the hook installed and without it.
func benchPodman(ctx context.Context, machine *sandbox.Machine, rounds int) error {
	script, err := putScript(machine, "bench-podman", podmanScript)
	if err != nil {
		return err
	}
	// The time is taken inside, or it would include entering the machine.
	cmd := machine.Command(ctx, "systemd-run", "--quiet", "--pipe", "--wait", "--property=User=bench", "--property=PAMName=login",
		script, strconv.Itoa(rounds))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	before := load()
	fmt.Fprintf(os.Stderr, "running podman run -d %d times\n", 2*rounds)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("podman run -d on %s: %w\n%s", machine.Suite, err, stderr.Bytes())
	}
	with, without, err := parsePodman(string(out))
	if err != nil {
		return fmt.Errorf("podman run -d on %s: %w", machine.Suite, err)
	}
	low, high := ratioInterval(with, without)
	fmt.Printf("podman run -d on %s, a container not ours, %d with the hook and %d without;\nload %s before and %s after.\n\n",
		machine.Suite, len(with), len(without), before, load())
	fmt.Printf("  %s  without the hook\n  %s  with it: × %.3f (95 %% sure: %.3f to %.3f), aim ≤ %.2f\n\n",
		milliseconds(median(without)), milliseconds(median(with)), ratio(with, without), low, high, podmanAim)
	return nil
}

func parsePodman(out string) (with, without []time.Duration, err error) {
	for line := range strings.Lines(out) {
		which, number, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			return nil, nil, fmt.Errorf("unexpected output %q", line)
		}
		t := time.Duration(n) * time.Microsecond
		if which == "with" {
			with = append(with, t)
		} else {
			without = append(without, t)
		}
	}
	if len(with) == 0 || len(without) == 0 {
		return nil, nil, errors.New("nothing was measured")
	}
	return with, without, nil
}
