package handover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/regular"
)

// Record is what a unit was started with. notify-mainpid writes it as root once
// systemd has the main PID, oci-mainpid generate for a unit that runs as root and gets a
// user. It outlives a daemon-reload: after one, the unit's own
// stop commands may be those of another user or for another container.
type Record struct {
	// UID is the user's, Conmon the PID of the main process.
	UID, Conmon int
	// Start is when conmon started, in ticks of the kernel's since boot.
	Start uint64
	// InvocationID is that of the start.
	InvocationID string
	// ContainerID and Container are the container's, Container is its name. The user
	// chose both, within what podman allows.
	ContainerID, Container string
	// Cgroups are the control groups (cgroups(7)) below the user's manager that the
	// start's containers and conmons are in. Those in the unit's own are systemd's.
	Cgroups []string
}

// recordName is the name of the record, beside the result file.
const recordName = "record"

func recordFile(resultFile string) string {
	return filepath.Join(filepath.Dir(resultFile), recordName)
}

// ReadRecord returns the record of a unit. The error is fs.ErrNotExist if there is
// none: the unit does not run, was not started by notify-mainpid, or has not yet.
func ReadRecord(unit string) (Record, error) {
	_, resultFile := Files(unit, 0)
	return RecordBeside(resultFile)
}

// Recorded returns the units that may have a record, sorted: those that run, that start,
// or of which a stop has left something.
func Recorded() []string {
	entries, err := os.ReadDir(Dir)
	if err != nil {
		return nil
	}
	var units []string
	for _, e := range entries {
		if e.IsDir() && strings.HasSuffix(e.Name(), ".service") {
			units = append(units, e.Name())
		}
	}
	return units
}

// RecordBeside returns the record beside a unit's result file, as ReadRecord does.
func RecordBeside(resultFile string) (Record, error) {
	path := recordFile(resultFile)
	f, err := openIn(path, unix.O_RDONLY, 0)
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	if err := regular.Check(int(f.Fd())); err != nil {
		return Record{}, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	b := make([]byte, maxRecord+1)
	n, _ := f.ReadAt(b, 0)
	if n == 0 {
		return Record{}, &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
	}
	r, err := parseRecord(string(b[:n]))
	if err != nil {
		return Record{}, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return r, nil
}

// maxRecord is more than a record of maxCgroups control groups needs, in bytes.
const (
	maxRecord  = 256 << 10
	maxCgroups = 50
)

// text returns the record as lines of KEY=VALUE.
func (r Record) text() []byte {
	b := fmt.Appendf(nil, "UID=%d\nCONMON=%d\nSTART=%d\nINVOCATION_ID=%s\nCONTAINER_ID=%s\nCONTAINER=%s\n",
		r.UID, r.Conmon, r.Start, r.InvocationID, r.ContainerID, r.Container)
	for _, cgroup := range r.Cgroups[:min(len(r.Cgroups), maxCgroups)] {
		b = append(append(append(b, "CGROUP="...), cgroup...), '\n')
	}
	return append(b, "END\n"...)
}

func parseRecord(text string) (r Record, err error) {
	lines, ok := strings.CutSuffix(text, "END\n")
	if !ok {
		return r, errors.New("ends too early")
	}
	for line := range strings.Lines(lines) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "UID":
			r.UID, err = strconv.Atoi(value)
		case "CONMON":
			r.Conmon, err = strconv.Atoi(value)
		case "START":
			r.Start, err = strconv.ParseUint(value, 10, 64)
		case "INVOCATION_ID":
			r.InvocationID = value
		case "CONTAINER_ID":
			r.ContainerID = value
		case "CONTAINER":
			r.Container = value
		case "CGROUP":
			r.Cgroups = append(r.Cgroups, value)
		}
		if err != nil {
			return r, err
		}
	}
	if r.UID < 0 || r.Conmon <= 1 {
		return r, errors.New("names no user or no process")
	}
	return r, nil
}

// WriteRecord writes the record of a unit that runs without one, as root.
func WriteRecord(unit string, r Record) error {
	_, resultFile := Files(unit, 0)
	path := recordFile(resultFile)
	if err := makeFile(path, 0o600, os.Geteuid()); err != nil {
		return err
	}
	return writeRecord(path, r)
}

// Record writes the record of the unit, in the file that Prepare made. The control
// groups may have no newline.
func (h *Handover) Record(r Record) error {
	return writeRecord(recordFile(h.result.Name()), r)
}

func writeRecord(path string, r Record) error {
	f, err := openIn(path, unix.O_WRONLY|unix.O_CREAT, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := regular.Check(int(f.Fd())); err != nil {
		return &fs.PathError{Op: "write", Path: f.Name(), Err: err}
	}
	_, err = f.WriteAt(r.text(), 0)
	return err
}
