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
	"strconv"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/message"
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
// returns its exit status: 0 or, with a message in the journal and on standard
// error, 1.
func Main() int {
	log := message.Log{Program: message.Hook}
	err := conmonbridge.Bound()
	if err == nil {
		err = Run(os.Stdin, &log)
	}
	if err != nil {
		log.Stderr = conmonbridge.Stderr()
		// What notify-mainpid answered is in the unit's log already; but runc,
		// which reads standard error itself, tells podman.
		if !errors.Is(err, conmonbridge.ErrAnswer) || !log.ToJournal() {
			log.Say(message.HookFailed, err.Error(), err)
		}
	}
	log.Flush() // nothing, if nothing was said
	if err != nil {
		return 1
	}
	return 0
}

// Run does what the hook does for the container whose state is read from
// stdin ("State" in the OCI runtime specification, runtime.md). It returns nil
// where there is nothing to do: for a container that does not run or is not
// of a unit of ours, and for all but the first container of one. log learns
// whose container it is; the error is not in it.
func Run(stdin io.Reader, log *message.Log) error {
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
			about(log, unit, state)
			return fmt.Errorf("%v: container %.64q: %w", unit, state.ID, err)
		}
		return nil
	}
	if !ours {
		return nil
	}
	about(log, unit, state)
	log.Add(message.ConmonPID, strconv.Itoa(conmon.PID))
	log.Step("container %.12s is %s, process %d; its conmon is process %d", state.ID, state.Status, state.Pid, conmon.PID)
	if err := deliver(unit, conmon.PID, log); err != nil {
		log.Add(message.ContainerName, conmonbridge.ContainerOf(conmon.PID).Name)
		return fmt.Errorf("%v: %w", unit, err)
	}
	return nil
}

// about has log say what it says about the unit and its container.
func about(log *message.Log, unit conmonbridge.Unit, state containerState) {
	log.Unit, log.Verbose = unit.String(), unit.Verbose
	log.Add(message.InvocationID, unit.InvocationID)
	log.Add(message.ContainerID, state.ID[:min(len(state.ID), 12)])
}

// deliver gives conmon's PID to the unit and, if the unit asks for that, waits
// until systemd has taken it.
func deliver(unit conmonbridge.Unit, conmon int, log *message.Log) error {
	f, from, err := unit.OpenMainPIDFile()
	if err != nil {
		return err
	}
	defer f.Close()
	if from == 0 {
		log.Step("opened %s by its name", f.Name())
	} else {
		log.Step("took %s from process %d, which has it open", f.Name(), from)
	}
	switch err := conmonbridge.WriteMainPID(f, conmon); {
	case errors.Is(err, conmonbridge.ErrTaken):
		log.Step("%v, nothing to do", err)
		return nil
	case err != nil:
		return err
	}
	log.Step("wrote %d", conmon)
	if unit.ResultFile == "" {
		return nil
	}
	start := time.Now()
	err = conmonbridge.WaitResult(unit.ResultFile, ResultTimeout)
	log.Step("held podman for %v, until notify-mainpid answered", time.Since(start).Round(time.Microsecond))
	return err
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
