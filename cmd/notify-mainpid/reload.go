package main

import (
	"errors"
	"io/fs"
	"slices"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/leftover"
)

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
