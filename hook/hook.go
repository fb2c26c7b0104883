// Package hook is an OCI poststart hook that tells a systemd unit which
// process is the conmon of its container.
//
// It runs for every container on the machine. For one that no unit of ours
// started it touches nothing, says nothing and succeeds: runtimes kill the
// container of a hook that fails.
package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"oci-mainpid-hook/conmonbridge"
)

const (
	// maxState bounds the container's state, in bytes; most of it are
	// annotations.
	maxState = 4 << 20

	// ResultTimeout is how long the hook holds podman where the unit asks for
	// it: from the PID's arrival, notify-mainpid answers within milliseconds.
	ResultTimeout = 30 * time.Second
)

// Main runs the hook as a program, with the state on standard input, and
// returns its exit status: 0 or, with a line on standard error, 1.
func Main() int {
	err := conmonbridge.Bound()
	if err == nil {
		err = Run(os.Stdin)
	}
	if err != nil {
		fmt.Fprintf(conmonbridge.Stderr(), "oci-mainpid-hook: %v\n", err)
		return 1
	}
	return 0
}

// Run does what the hook does for the container whose state is read from
// stdin ("State" in the OCI runtime specification, runtime.md). It returns nil
// where there is nothing to do: for a container that does not run or is not
// of a unit of ours, and for all but the first container of one.
func Run(stdin io.Reader) error {
	state, err := readState(stdin)
	if err != nil {
		return fmt.Errorf("container state on standard input: %w", err)
	}
	// runc runs poststart hooks when the container is merely created.
	if state.Status != "running" && state.Status != "created" {
		return nil
	}
	if state.Pid <= 1 {
		return fmt.Errorf("container state on standard input: container %.64q is %s with pid %d", state.ID, state.Status, state.Pid)
	}
	conmon, err := conmonbridge.FindConmon(state.Pid)
	if errors.Is(err, conmonbridge.ErrNoConmon) {
		return nil // another engine's
	}
	var unit conmonbridge.Unit
	var ours bool
	if err == nil {
		unit, ours, err = conmonbridge.UnitOfConmon(conmon.PID)
	}
	if err != nil {
		// A container may end before its hook runs. That is an error only if
		// a unit waits for it.
		if unit, ours = conmonbridge.UnitAbove(); ours {
			return fmt.Errorf("%v: container %.64q: %w", unit, state.ID, err)
		}
		return nil
	}
	if !ours {
		return nil
	}
	if err := deliver(unit, conmon.PID); err != nil {
		return fmt.Errorf("%v: %w", unit, err)
	}
	return nil
}

// deliver gives conmon's PID to the unit and, if the unit asks for that, waits
// until systemd has taken it.
func deliver(unit conmonbridge.Unit, conmon int) error {
	f, err := unit.OpenMainPIDFile()
	if err != nil {
		return err
	}
	defer f.Close()
	switch err := conmonbridge.WriteMainPID(f, conmon); {
	case errors.Is(err, conmonbridge.ErrTaken):
		return nil
	case err != nil:
		return err
	case unit.ResultFile == "":
		return nil
	}
	return conmonbridge.WaitResult(unit.ResultFile, ResultTimeout)
}

// containerState is what the hook needs of specs.State of the runtime
// specification, whose package would cost every container on the machine.
type containerState struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Pid    int    `json:"pid"`
}

// readState reads one JSON object and nothing behind it.
func readState(r io.Reader) (containerState, error) {
	var state containerState
	b := make([]byte, 0, 8192)
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > maxState:
			return state, fmt.Errorf("is larger than %d bytes", maxState)
		case err == io.EOF && len(b) == 0:
			return state, errors.New("is empty")
		case err == io.EOF:
			return state, json.Unmarshal(b, &state)
		case err != nil:
			return state, err
		}
		b = slices.Grow(b, 1)
	}
}
