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

// UnitDirs are the directories in which systemd finds the unit files of
// administrators and packages, in systemd's order of precedence, systemd.unit(5).
// The generators' output directories are left out.
var UnitDirs = []string{
	"/etc/systemd/system",
	"/run/systemd/system",
	"/usr/local/lib/systemd/system",
	"/usr/lib/systemd/system",
	"/lib/systemd/system",
}

// AllUnitDirs are UnitDirs and the directories in which generators write,
// systemd.generator(7).
var AllUnitDirs = append([]string{"/run/systemd/generator.early", "/run/systemd/generator", "/run/systemd/generator.late"}, UnitDirs...)

// SystemdVersion returns systemd's version, such as 257, from systemctl --version.
func SystemdVersion(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("systemctl --version: %w", err)
	}
	return parseSystemdVersion(string(out))
}

// parseSystemdVersion reads the version from a first line such as
// "systemd 257 (257.13-1)".
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

// Sockets has, by the name of a service, the socket units that pass it descriptors.
type Sockets map[string][]string

// ReadSockets reads the socket units in the given directories. A unit that cannot be
// read is left out: systemd will complain about it.
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

// Of returns the names of the socket units of a service, including those in its own
// Sockets=.
func (s Sockets) Of(name string, u *unitfile.File) []string {
	sockets := append(slices.Clone(s[name]), s[unitfile.TemplateOf(name)]...)
	for _, line := range u.List("Service", "Sockets") {
		sockets = append(sockets, strings.Fields(line)...)
	}
	slices.Sort(sockets)
	return slices.Compact(sockets)
}

// LoadService reads a hand-written unit file with its drop-ins, except our own. The
// drop-ins are beside the file. If the file is in one of unitDirs, they may be in any
// of unitDirs.
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

// UnitFile returns the path of the file in dirs that systemd would read for the unit,
// or "" if there is none.
func UnitFile(dirs []string, name string) string {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return path
		}
	}
	return ""
}
