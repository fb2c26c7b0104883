package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup2Mount returns where the host has mounted the unified hierarchy: all
// of /sys/fs/cgroup, or a directory of it beside hierarchies of version 1.
func cgroup2Mount() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", errors.New("no cgroup version 2 hierarchy is mounted on this host")
}

// makeCgroup makes a cgroup below parent, with the controllers that are
// available. A controller of a version 1 hierarchy is not.
func makeCgroup(parent, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, d := range []string{parent, dir} {
		controllers, err := os.ReadFile(filepath.Join(d, "cgroup.controllers"))
		if err != nil {
			return err
		}
		for _, c := range strings.Fields(string(controllers)) {
			os.WriteFile(filepath.Join(d, "cgroup.subtree_control"), []byte("+"+c), 0)
		}
	}
	return nil
}

// commandCgroup makes a cgroup for commands in the machine's own hierarchy and
// returns the path of its cgroup.procs. A process outside of that hierarchy
// could not be moved to a unit or a session of the machine: see nsdelegate in
// the kernel's cgroup-v2 document.
func commandCgroup(leader process) (string, error) {
	mount, err := cgroup2Mount()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", leader.PID))
	if err != nil {
		return "", err
	}
	path, err := unifiedCgroup(string(data))
	if err != nil {
		return "", fmt.Errorf("cgroup of process %d: %w", leader.PID, err)
	}
	dir := filepath.Join(mount, strings.TrimSuffix(path, "/init.scope"), "sandbox-commands")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return filepath.Join(dir, "cgroup.procs"), nil
}

// unifiedCgroup returns the path of a process in the version 2 hierarchy, from
// its /proc/PID/cgroup, see cgroups(7).
func unifiedCgroup(file string) (string, error) {
	for line := range strings.Lines(file) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path, nil
		}
	}
	return "", errors.New("not in the version 2 hierarchy")
}

// removeCgroup removes a cgroup and the cgroups below it. It tries again for a
// while, because a cgroup becomes empty a moment after its last process has ended.
func removeCgroup(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	for {
		var dirs []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // a cgroup that has gone since need not be removed
		})
		for _, d := range slices.Backward(dirs) {
			if e := unix.Rmdir(d); e != nil && e != unix.ENOENT {
				err = fmt.Errorf("rmdir %s: %w", d, e)
			}
		}
		if err == nil {
			return nil
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return err
		}
	}
}
