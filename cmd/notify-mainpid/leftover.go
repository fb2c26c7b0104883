package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/leftover"
	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/internal/proc"
)

// leftOverTimeout is how long to kill what is left of a start may take.
const leftOverTimeout = 10 * time.Second

// started returns the record of what the unit was started with, for endLeftOver.
func started(conmon, uid int, container conmonbridge.Container) (handover.Record, error) {
	p, err := proc.Read(conmon)
	if err != nil {
		return handover.Record{}, err
	}
	return handover.Record{
		UID: uid, Conmon: conmon, Start: p.Start, InvocationID: os.Getenv("INVOCATION_ID"),
		ContainerID: container.ID, Container: container.Name,
		Cgroups: leftover.Cgroups(conmon, uid),
	}, nil
}

// endLeftOver ends what lives of the start that the record is of, and logs that. The
// unit has stopped.
func endLeftOver(c config) error {
	r, err := handover.RecordBeside(c.resultFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("record of the start before (remove it, once no container of the unit runs): %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), leftOverTimeout)
	defer cancel()
	killed, err := leftover.End(ctx, r)
	container := conmonbridge.Container{ID: r.ContainerID, Name: r.Container}
	if killed > 0 {
		c.log.Add(message.ContainerID, container.ShortID())
		c.log.Add(message.ContainerName, r.Container)
		c.log.Say(message.LeftOverEnded, fmt.Sprintf("%sended what was left of %v of user %s, which the unit's stop commands did not end: killed %d processes",
			c.about(), container, strconv.Itoa(r.UID), killed), nil)
	}
	if err != nil {
		return fmt.Errorf("%v of user %d, of the start before, goes on: %w", container, r.UID, err)
	}
	return nil
}
