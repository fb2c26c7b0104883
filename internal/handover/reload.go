package handover

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// nextName is the name of the mainpid file of a reload, beside the one of the start.
const nextName = "next"

// NextFile returns the path of the mainpid file of a reload, beside that of the unit's
// start: the user writes the PID of the new container's conmon into it, once the
// container is ready.
func NextFile(mainPIDFile string) string {
	return filepath.Join(filepath.Dir(mainPIDFile), nextName)
}

func nextRecordFile(resultFile string) string { return recordFile(resultFile) + ".next" }

// PrepareReload makes what a reload needs: a file at NextFile, which belongs to owner, a
// UID, and room for the new record. The file has the PID conmon, or is empty if that is
// 0. The files of the start stay as they are.
func PrepareReload(mainPIDFile, resultFile string, owner, conmon int) error {
	err := makeFile(NextFile(mainPIDFile), 0o600, owner)
	if err == nil && conmon != 0 {
		err = writePID(NextFile(mainPIDFile), conmon)
	}
	if err == nil {
		err = makeFile(nextRecordFile(resultFile), 0o600, os.Geteuid())
	}
	if err != nil {
		forgetReload(mainPIDFile, resultFile)
	}
	return err
}

func writePID(path string, pid int) error {
	f, err := openIn(path, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return WriteMainPID(f, pid)
}

// forgetReload removes what PrepareReload made.
func forgetReload(mainPIDFile, resultFile string) {
	for _, path := range []string{NextFile(mainPIDFile), nextRecordFile(resultFile)} {
		if dir, err := openParent(path, false); err == nil {
			unlink(dir, path)
			unix.Close(dir)
		}
	}
}

// Reload is notify-mainpid's side of a reload.
type Reload struct {
	*Handover
	mainPIDFile, resultFile string
}

// OpenReload opens what PrepareReload made. The error is fs.ErrNotExist if there is
// nothing.
func OpenReload(mainPIDFile, resultFile string) (*Reload, error) {
	next, err := openMainPID(NextFile(mainPIDFile))
	if err != nil {
		return nil, err
	}
	record, err := openIn(nextRecordFile(resultFile), unix.O_WRONLY, 0)
	if err != nil {
		next.Close()
		return nil, err
	}
	return &Reload{&Handover{mainPID: next, result: record}, mainPIDFile, resultFile}, nil
}

// Written reports whether the user has written anything into the file: the new
// container is ready.
func (r *Reload) Written() bool {
	info, err := r.mainPID.Stat()
	return err == nil && info.Size() > 0
}

// Commit makes the record and the new mainpid file those of the unit. The record of
// before stays whole until then.
func (r *Reload) Commit(record Record) error {
	if _, err := r.result.WriteAt(record.text(), 0); err != nil {
		return err
	}
	err := renameIn(nextRecordFile(r.resultFile), recordFile(r.resultFile))
	if err == nil {
		err = renameIn(NextFile(r.mainPIDFile), r.mainPIDFile)
	}
	return err
}

// Close closes the files and removes those that Commit has not moved.
func (r *Reload) Close() {
	r.Handover.Close()
	forgetReload(r.mainPIDFile, r.resultFile)
}

// renameIn renames a file within a directory that only root can change.
func renameIn(from, to string) error {
	dir, err := openParent(from, false)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Renameat(dir, filepath.Base(from), dir, filepath.Base(to)); err != nil {
		return &fs.PathError{Op: "rename", Path: from, Err: err}
	}
	return nil
}
