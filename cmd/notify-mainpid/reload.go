package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/leftover"
	"oci-mainpid-hook/sdnotify"
)

// notStopping keeps systemd from stopping the unit at the end of the reload because a
// container that ends says STOPPING=1. From now on systemd hears only the main process
// and the control process: the container that ends is neither. A systemd before 254 hears
// it, and forgets it with READY=1.
var notStopping = []sdnotify.Assignment{sdnotify.NotifyAccess("exec"), sdnotify.Ready()}

// prepareReload makes the files of a reload. With --stand-in they have the main process
// of before, and another one stands in for it.
func prepareReload(c config, uid int) error {
	before := handover.Record{}
	if c.standIn != 0 {
		var err error
		if before, err = handover.RecordBeside(c.resultFile); err != nil {
			return fmt.Errorf("record of the start: %w", err)
		}
	}
	c.log.Step("making %s, of UID %d", handover.NextFile(c.mainPIDFile), uid)
	err := handover.PrepareReload(c.mainPIDFile, c.resultFile, uid, before.Conmon)
	if err == nil && c.standIn != 0 {
		err = c.makeStandIn(uid)
	}
	return err
}

// reload makes the conmon of the new container the main process, if the user has
// written its PID: the new container is ready. If not, reload does nothing. What came
// before it has said why.
func reload(c config) error {
	files, err := handover.OpenReload(c.mainPIDFile, c.resultFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer files.Close()
	if !files.Written() {
		c.log.Step("no new container is ready")
		return nil
	}
	before, err := handover.RecordBeside(c.resultFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return notify(c, files.Handover, func(r handover.Record) error {
		// The old container still runs.
		for _, cgroup := range leftover.Living(before) {
			if !slices.Contains(r.Cgroups, cgroup) {
				r.Cgroups = append(r.Cgroups, cgroup)
			}
		}
		return files.Commit(r)
	})
}
