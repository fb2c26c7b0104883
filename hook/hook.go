// Package hook is an OCI poststart hook that tells a systemd unit which
// process is the conmon of its container.
//
// It runs for every container on the machine. For a container that no unit of ours
// started, the hook changes nothing, says nothing and succeeds: a runtime kills the
// container of a hook that fails.
package hook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/confine"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/message"
)

const (
	// maxState is how much of the container's state the hook keeps, in bytes. Most
	// of it are annotations.
	maxState = 4 << 20

	// ResultTimeout is how long the hook holds podman if the unit asks for that.
	// notify-mainpid answers within milliseconds after the PID has come.
	ResultTimeout = 30 * time.Second
)

// Main runs the hook as a program, with the state on standard input, and
// returns its exit status: 0 or, with a message in the journal and on standard
// error, 1.
func Main() int {
	log := message.Log{Program: message.Hook}
	err := confine.Bound()
	if err == nil {
		err = Run(os.Stdin, &log)
	}
	if err != nil {
		log.Stderr = conmonbridge.Stderr()
		// notify-mainpid has logged its answer itself. But runc reads the hook's
		// standard error, and tells podman what it reads there.
		if !errors.Is(err, handover.ErrAnswer) || !log.ToJournal() {
			log.Say(message.HookFailed, err.Error(), err)
		}
	}
	log.Flush()
	if err != nil {
		return 1
	}
	return 0
}

// Run reads a container's state from stdin ("State" in the OCI runtime
// specification, runtime.md) and delivers the PID of its conmon. It returns nil
// where there is nothing to do: for a container that does not run or is not
// of a unit of ours, and for all but the first container of one. Run tells log
// whose container it is. The caller logs the error.
func Run(stdin io.Reader, log *message.Log) error {
	state, err := readState(stdin)
	if errors.Is(err, errNoPID) {
		if _, ours := conmonbridge.DestinationAbove(); !ours {
			return nil // nothing says that a unit waits for it
		}
	}
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
	if err != nil {
		// A container may end before its hook runs. That matters only if a unit waits
		// for it. Its conmon lives: it waits for podman, which waits for this hook.
		above, ours := conmonbridge.DestinationAbove()
		if !ours {
			return nil
		}
		about(log, above, state)
		log.Step("container %.12s: %v", state.ID, err)
		if conmon, err = conmonbridge.FindConmonOf(state.ID); err != nil {
			return fmt.Errorf("%v: container %.64q: %w", above, state.ID, err)
		}
	}
	destination, ours, err := conmonbridge.DestinationOfConmon(conmon.PID)
	if err != nil {
		if destination, ours = conmonbridge.DestinationAbove(); ours {
			about(log, destination, state)
			return fmt.Errorf("%v: container %.64q: %w", destination, state.ID, err)
		}
		return nil
	}
	if !ours {
		return nil
	}
	about(log, destination, state)
	log.Add(message.ConmonPID, strconv.Itoa(conmon.PID))
	log.Step("container %.12s is %s, process %d; its conmon is process %d", state.ID, state.Status, state.Pid, conmon.PID)
	if err := deliver(destination, conmon.PID, log); err != nil {
		log.Add(message.ContainerName, conmonbridge.ContainerOf(conmon.PID).Name)
		return fmt.Errorf("%v: %w", destination, err)
	}
	return nil
}

// about tells log which unit and which container its messages are about.
func about(log *message.Log, d conmonbridge.Destination, state containerState) {
	log.Unit, log.Verbose = d.String(), d.Verbose
	log.Add(message.InvocationID, d.InvocationID)
	log.Add(message.ContainerID, state.ID[:min(len(state.ID), 12)])
}

// deliver writes conmon's PID to its destination and, if the unit asks for that,
// waits until systemd has taken it.
func deliver(d conmonbridge.Destination, conmon int, log *message.Log) error {
	f, from, err := d.OpenMainPIDFile()
	if err != nil {
		return err
	}
	defer f.Close()
	if from == 0 {
		log.Step("opened %s by its name", f.Name())
	} else {
		log.Step("took %s from process %d, which has it open", f.Name(), from)
	}
	switch err := handover.WriteMainPID(f, conmon); {
	case errors.Is(err, handover.ErrTaken):
		log.Step("%v, nothing to do", err)
		return nil
	case err != nil:
		return err
	}
	log.Step("wrote %d", conmon)
	if d.ResultFile == "" {
		return nil
	}
	start := time.Now()
	err = handover.WaitResult(d.ResultFile, ResultTimeout)
	log.Step("held podman for %v, until notify-mainpid answered", time.Since(start).Round(time.Microsecond))
	return err
}

// containerState is what the hook needs of specs.State of the runtime
// specification. To decode all of specs.State, annotations too, would cost every
// container on the machine 5 % of the hook's processor time.
type containerState struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Pid    int    `json:"pid"`
}

// readState reads one JSON object and nothing behind it. Of an object that is
// larger than maxState it reads all, for the runtime would fail to write the rest,
// and takes what stands before the annotations.
func readState(r io.Reader) (state containerState, err error) {
	b := make([]byte, 0, 8192)
	for len(b) <= maxState {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case err == io.EOF && len(b) == 0:
			return state, errors.New("is empty")
		case err == io.EOF:
			return state, json.Unmarshal(b, &state)
		case err != nil:
			return state, err
		}
		b = slices.Grow(b, 1)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return state, err
	}
	return parseBeginning(b)
}

// errNoPID says that a state is so large that its beginning has no PID.
var errNoPID = errors.New("its first 4 MiB have no id, status and pid")

// parseBeginning takes the container's ID, status and PID from the beginning of a
// state that goes on. The error is errNoPID if they are not in it.
func parseBeginning(b []byte) (state containerState, err error) {
	decoder := json.NewDecoder(bytes.NewReader(b))
	if _, err := decoder.Token(); err != nil {
		return state, err
	}
	for state.ID == "" || state.Status == "" || state.Pid == 0 {
		name, err := decoder.Token()
		if err != nil {
			return state, errNoPID
		}
		var value any = new(json.RawMessage)
		switch name {
		case "id":
			value = &state.ID
		case "status":
			value = &state.Status
		case "pid":
			value = &state.Pid
		}
		if err := decoder.Decode(value); err != nil {
			return state, errNoPID
		}
	}
	return state, nil
}
