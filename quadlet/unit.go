// Package quadlet reads unit files, Quadlet's as well as systemd's own, decides
// what a unit that runs podman needs to run as a user with conmon as its main
// process, and writes that as a drop-in.
package quadlet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// maxUnitSize bounds what is read of one unit file. systemd itself refuses a
// line of 1 MiB; no unit file that a person wrote comes near it.
const maxUnitSize = 1 << 20

var (
	// ErrTooLarge is returned for a unit file of more than 1 MiB.
	ErrTooLarge = errors.New("larger than 1 MiB")
	// ErrNotUnit is returned for a file that is not in the unit file format.
	ErrNotUnit = errors.New("not a unit file")
)

// Assignment is one line KEY=VALUE of a unit file, continuation lines joined.
// An empty value resets the key, see systemd.syntax(7).
type Assignment struct {
	Section, Key, Value string
}

// Unit is the text of a unit file with its drop-ins, in the order in which
// systemd applies it. It does not know what the keys mean.
type Unit struct {
	// Path is where it was read, empty for one that never was a file.
	Path        string
	Assignments []Assignment
	sections    []string
}

// Load reads the unit file at path. It fails with ErrNotUnit, ErrTooLarge, or an
// error of the file system; only a regular file is read.
func Load(path string) (*Unit, error) {
	data, err := readRegular(path)
	if err != nil {
		return nil, err
	}
	u, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	u.Path = path
	return u, nil
}

// readRegular reads a regular file of at most maxUnitSize bytes. Opening does
// not block on a FIFO.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("read %s: is a directory", path)
	}
	// A link to /dev/null is how systemd.unit(5) masks a unit: an empty file.
	if isNull(info) {
		return nil, nil
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxUnitSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxUnitSize {
		return nil, fmt.Errorf("read %s: %w", path, ErrTooLarge)
	}
	return data, nil
}

// isNull reports whether the file is the device /dev/null, null(4).
func isNull(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode()&os.ModeCharDevice != 0 && st.Rdev == unix.Mkdev(1, 3)
}

// Parse reads a unit file as systemd.syntax(7) describes the format. Like
// systemd it ignores lines that are neither a section, an assignment nor a
// comment; unlike systemd it says ErrNotUnit where there is nothing but those.
//
// The parser of go-systemd is not used: it refuses lines of more than 2048
// bytes, takes a comment between continuation lines for part of the value, and
// continues comments that end with a backslash. systemd does none of this.
func Parse(data []byte) (*Unit, error) {
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, ErrNotUnit
	}
	u := &Unit{Assignments: make([]Assignment, 0, bytes.Count(data, []byte("=")))}
	section := ""
	var pending []string // the lines before one, that it continues
	sawLine := false
	text := strings.TrimPrefix(string(data), "\ufeff")
	for len(text) > 0 {
		line, rest, _ := strings.Cut(text, "\n")
		text = rest
		line = strings.TrimLeft(strings.TrimSuffix(line, "\r"), whitespace)
		if line != "" && (line[0] == '#' || line[0] == ';') {
			if text != "" || len(pending) == 0 {
				continue
			}
			line = ""
		}
		// An odd number of backslashes continues the line; systemd puts a
		// space where the last one was.
		if backslashes := len(line) - len(strings.TrimRight(line, `\`)); backslashes%2 == 1 {
			line = line[:len(line)-1] + " "
			if text != "" {
				pending = append(pending, line)
				continue
			}
		}
		if len(pending) > 0 {
			line = strings.Join(append(pending, line), "")
			pending = pending[:0]
		}
		line = strings.Trim(line, whitespace)
		if line == "" {
			continue
		}
		sawLine = true
		if line[0] == '[' {
			if line[len(line)-1] != ']' {
				return nil, fmt.Errorf("%w: section header %q", ErrNotUnit, clip(line))
			}
			section = line[1 : len(line)-1]
			u.addSection(section)
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section == "" || !utf8.ValidString(line) {
			continue
		}
		u.Assignments = append(u.Assignments, Assignment{
			Section: section,
			Key:     strings.TrimRight(key, whitespace),
			Value:   strings.TrimLeft(value, whitespace),
		})
	}
	if sawLine && len(u.sections) == 0 {
		return nil, ErrNotUnit
	}
	return u, nil
}

const whitespace = " \t\n\r"

func clip(s string) string {
	if len(s) > 40 {
		s = s[:40] + "…"
	}
	return s
}

func (u *Unit) addSection(name string) {
	if !u.Has(name) {
		u.sections = append(u.sections, name)
	}
}

// Has reports whether the unit has a section of that name, be it empty.
func (u *Unit) Has(section string) bool {
	for _, s := range u.sections {
		if s == section {
			return true
		}
	}
	return false
}

// Merge applies a drop-in: its assignments count after those of u.
func (u *Unit) Merge(dropin *Unit) {
	for _, s := range dropin.sections {
		u.addSection(s)
	}
	u.Assignments = append(u.Assignments, dropin.Assignments...)
}

// Get returns what counts of a key that holds one value: the last assignment.
// It is empty where there is none or the last one is a reset.
func (u *Unit) Get(section, key string) string {
	for i := len(u.Assignments) - 1; i >= 0; i-- {
		if a := &u.Assignments[i]; a.Key == key && a.Section == section {
			return a.Value
		}
	}
	return ""
}

// List returns what counts of a key that collects values: every assignment
// since the last reset.
func (u *Unit) List(section, key string) []string {
	var values []string
	for i := range u.Assignments {
		a := &u.Assignments[i]
		if a.Key != key || a.Section != section {
			continue
		}
		if a.Value == "" {
			values = nil
			continue
		}
		values = append(values, a.Value)
	}
	return values
}

// LoadWithDropins reads the unit file at path and the files *.conf of the given
// directories on top of it, sorted by file name; of two with one name, that of
// the earlier directory counts. Files called except are left out. A directory
// that does not exist is no error.
func LoadWithDropins(path string, dirs []string, except string) (*Unit, error) {
	u, err := Load(path)
	if err != nil {
		return nil, err
	}
	paths, err := dropinFiles(dirs, except)
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		d, err := Load(p)
		if err != nil {
			return nil, err
		}
		u.Merge(d)
	}
	return u, nil
}

func dropinFiles(dirs []string, except string) ([]string, error) {
	byName := map[string]string{}
	var names []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name := e.Name()
			if filepath.Ext(name) != ".conf" || name == except || byName[name] != "" {
				continue
			}
			byName[name] = filepath.Join(dir, name)
			names = append(names, name)
		}
	}
	paths := make([]string, 0, len(names))
	for _, name := range slices.Sorted(slices.Values(names)) {
		paths = append(paths, byName[name])
	}
	return paths, nil
}
