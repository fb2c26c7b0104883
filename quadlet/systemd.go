package quadlet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

// UnitDirs is where the system manager finds unit files of administrators and
// packages, the earlier before the later, systemd.unit(5). The generators' own
// directories are not in it.
var UnitDirs = []string{
	"/etc/systemd/system",
	"/run/systemd/system",
	"/usr/local/lib/systemd/system",
	"/usr/lib/systemd/system",
	"/lib/systemd/system",
}

// SystemdVersion asks systemctl for systemd's version.
func SystemdVersion(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("systemctl --version: %w", err)
	}
	return parseSystemdVersion(string(out))
}

// parseSystemdVersion reads the first line, "systemd 257 (257.13-1)".
func parseSystemdVersion(out string) (int, error) {
	fields := strings.Fields(out)
	if len(fields) >= 2 && fields[0] == "systemd" {
		number := strings.TrimLeft(fields[1], "v")
		if i := strings.IndexFunc(number, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
			number = number[:i]
		}
		if v, err := strconv.Atoi(number); err == nil {
			return v, nil
		}
	}
	line, _, _ := strings.Cut(out, "\n")
	return 0, fmt.Errorf("systemctl --version: no version in %q", unitfile.Clip(line))
}

// Sockets tells which socket units a service gets descriptors from.
type Sockets map[string][]string

// ReadSockets reads the socket units in the given directories. What cannot be
// read is left out: systemd will say so.
func ReadSockets(dirs []string) Sockets {
	sockets, seen := Sockets{}, map[string]bool{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			name := e.Name()
			if filepath.Ext(name) != ".socket" || seen[name] {
				continue
			}
			seen[name] = true
			u, err := unitfile.LoadWithDropins(filepath.Join(dir, name), dropinDirs(dirs, name), "")
			if err != nil || len(u.Assignments) == 0 {
				continue
			}
			service := u.Get("Socket", "Service")
			if service == "" {
				service = unitfile.Stem(name) + ".service"
			}
			sockets[service] = append(sockets[service], name)
		}
	}
	return sockets
}

// Of returns the sockets of a service, with those that its own Sockets= names.
func (s Sockets) Of(name string, u *unitfile.File) []string {
	sockets := append(slices.Clone(s[name]), s[unitfile.TemplateOf(name)]...)
	for _, line := range u.List("Service", "Sockets") {
		sockets = append(sockets, strings.Fields(line)...)
	}
	slices.Sort(sockets)
	return slices.Compact(sockets)
}

// LoadService reads a hand-written service with its drop-ins, except ours: those
// next to it and, where it lies in a directory of systemd's, in all of those.
func LoadService(path string, unitDirs []string) (*unitfile.File, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dir, name := filepath.Split(path)
	dir = filepath.Clean(dir)
	dirs := []string{dir}
	if slices.Contains(unitDirs, dir) {
		dirs = unitDirs
	}
	var dropins []string
	dropins = append(dropins, dropinDirs(dirs, name)...)
	if t := unitfile.TemplateOf(name); t != name {
		dropins = append(dropins, dropinDirs(dirs, t)...)
	}
	return unitfile.LoadWithDropins(path, dropins, dropin.Name)
}

func dropinDirs(dirs []string, name string) []string {
	dropins := make([]string, 0, len(dirs))
	for _, dir := range dirs {
		dropins = append(dropins, filepath.Join(dir, name+".d"))
	}
	return dropins
}

// UnitFile returns the file in dirs that systemd would take for the unit, or "".
func UnitFile(dirs []string, name string) string {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return path
		}
	}
	return ""
}
