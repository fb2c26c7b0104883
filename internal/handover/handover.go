// Package handover is how the PID of a unit's conmon gets from the OCI hook to
// notify-mainpid, and the answer back: by two files of the unit.
//
// notify-mainpid --prepare makes both. The hook writes conmon's PID into the mainpid
// file. notify-mainpid reads it and writes what became of it into the result file,
// for which the hook waits if the unit asks for that.
package handover

import "path/filepath"

const (
	// Dir is the directory in which each unit has one of its own, that only root can
	// write, for its result file. Mainpid files are elsewhere, see UserDir.
	Dir = "/run/oci-mainpid"

	// EnvMainPIDFile names the mainpid file in conmon's environment. A unit sets
	// this variable (Environment=, systemd.exec(5)) so that the hook delivers the
	// PID of its container's conmon.
	EnvMainPIDFile = "OCI_MAINPID_FILE"

	// EnvResultFile names the result file in conmon's environment. A unit sets it
	// if podman has to wait until systemd has taken the main PID.
	EnvResultFile = "OCI_MAINPID_RESULT"

	// EnvVerbose has the hook and notify-mainpid log each of their steps. A unit
	// sets it to 1.
	EnvVerbose = "OCI_MAINPID_VERBOSE"

	// DescriptorName is the name under which a unit's OpenFile= passes the
	// mainpid file (systemd.service(5), LISTEN_FDNAMES in sd_listen_fds(3)).
	DescriptorName = "mainpidfile"

	mainPIDName = "mainpid"
	resultName  = "result"
)

// Files returns the paths of the mainpid and the result file of a unit, whose user
// has that UID.
func Files(unit string, uid int) (mainPIDFile, resultFile string) {
	return filepath.Join(UserDir(uid), unit, mainPIDName), filepath.Join(Dir, unit, resultName)
}

// UnitOf returns the unit whose mainpid or result file has that path, "" for no
// path.
func UnitOf(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Base(filepath.Dir(path))
}

// IsVerbose reports whether a value of EnvVerbose asks for each step to be logged.
func IsVerbose(value string) bool { return value != "" && value != "0" }
