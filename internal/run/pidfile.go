package run

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"oci-mainpid-hook/internal/regular"
)

// checkPIDFile fails if no file can be made at path.
func checkPIDFile(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("%.200q is not absolute or not clean: write a path such as /run/user/1000/web.pid", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	f.Close()
	return os.Remove(f.Name())
}

// writePIDFile writes a PID into a file, whole or not at all. A link in the file's place
// is replaced, not followed.
func writePIDFile(path string, pid int) error {
	return writeWhole(path, []byte(strconv.Itoa(pid)+"\n"), 0o644)
}

// removePIDFile removes the file, unless it has been replaced.
func removePIDFile(path string, pid int) {
	b, err := regular.Read(path, 64)
	if err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(pid) {
		os.Remove(path)
	}
}

// clearPIDFile removes a PID file that a killed run has left, so that nobody takes the
// container for ready before it is. A file that has no PID stays.
func clearPIDFile(path string) {
	b, err := regular.Read(path, 64)
	if err != nil {
		return
	}
	if _, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 31); err == nil {
		os.Remove(path)
	}
}
