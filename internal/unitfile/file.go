// Package unitfile reads and writes systemd's unit file syntax, systemd.syntax(7):
// sections, assignments, words and their quoting, command lines and unit names.
package unitfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/regular"
)

// MaxSize is how many bytes a unit file may have. systemd itself refuses a line of
// 1 MiB, and no unit file that a person wrote comes near that.
const MaxSize = 1 << 20

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

// File has the assignments of a unit file and its drop-ins, in the order in which
// systemd applies them. It does not know what the keys mean.
type File struct {
	// Path is the path of the unit file. It is empty for a File that Parse made.
	Path        string
	Assignments []Assignment
	// Sections are the names of all sections, each once.
	Sections []string
}

// Load reads the unit file at path. It fails with ErrNotUnit, ErrTooLarge, or an
// error of the file system; only a regular file is read.
func Load(path string) (*File, error) {
	data, err := Read(path)
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

// Read returns the text of a unit file. The error is ErrTooLarge for a file of more
// than MaxSize bytes, or an error of package regular.
func Read(path string) ([]byte, error) {
	data, err := regular.Read(path, MaxSize)
	if errors.Is(err, regular.ErrTooLarge) {
		err = fmt.Errorf("read %s: %w", path, ErrTooLarge)
	}
	return data, err
}

// IsNull reports whether the file is the device /dev/null, null(4).
func IsNull(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode()&os.ModeCharDevice != 0 && st.Rdev == unix.Mkdev(1, 3)
}

// Parse reads the text of a unit file, systemd.syntax(7). Like systemd, it ignores
// lines that are neither a section, an assignment nor a comment. Unlike systemd, it
// fails with ErrNotUnit if all lines are such lines.
//
// go-systemd's parser is not used. It refuses lines of more than 2048 bytes, takes a
// comment between continuation lines as part of the value, and continues comments
// that end with a backslash. systemd does none of this.
func Parse(data []byte) (*File, error) {
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, ErrNotUnit
	}
	u := &File{Assignments: make([]Assignment, 0, bytes.Count(data, []byte("=")))}
	section := ""
	var pending []string // earlier lines that the present line continues
	sawLine := false
	text := strings.TrimPrefix(string(data), "\ufeff")
	for len(text) > 0 {
		var line string
		line, text = cutLine(text)
		line = strings.TrimLeft(line, whitespace)
		if line != "" && (line[0] == '#' || line[0] == ';') {
			if text != "" || len(pending) == 0 {
				continue
			}
			line = ""
		}
		// After an odd number of backslashes the next line continues this one.
		// systemd replaces the last backslash by a space.
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
				return nil, fmt.Errorf("%w: section header %q", ErrNotUnit, Clip(line))
			}
			section = line[1 : len(line)-1]
			u.AddSection(section)
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
	if sawLine && len(u.Sections) == 0 {
		return nil, ErrNotUnit
	}
	return u, nil
}

// cutLine splits text after its first line. As for systemd, a newline ends a line, and
// so does a carriage return. The two together, in either order, end one line.
func cutLine(text string) (line, rest string) {
	i := strings.IndexAny(text, "\n\r")
	if i < 0 {
		return text, ""
	}
	line, rest = text[:i], text[i+1:]
	if rest != "" && rest[0] != text[i] && (rest[0] == '\n' || rest[0] == '\r') {
		rest = rest[1:]
	}
	return line, rest
}

const whitespace = " \t\n\r"

// Clip shortens a value for an error message.
func Clip(value string) string {
	const limit = 40
	if len(value) > limit {
		value = strings.ToValidUTF8(value[:limit], "") + "…"
	}
	return value
}

// AddSection adds an empty section, unless the file has the section already.
func (f *File) AddSection(name string) {
	if !f.Has(name) {
		f.Sections = append(f.Sections, name)
	}
}

// Has reports whether the file has a section of that name, empty or not.
func (f *File) Has(section string) bool {
	for _, s := range f.Sections {
		if s == section {
			return true
		}
	}
	return false
}

// Merge adds a drop-in: its assignments come after those of f.
func (f *File) Merge(dropin *File) {
	for _, s := range dropin.Sections {
		f.AddSection(s)
	}
	f.Assignments = append(f.Assignments, dropin.Assignments...)
}

// Get returns the value of a key that has one value: its last assignment. It is empty
// if there is no assignment, or if the last one resets the key.
func (f *File) Get(section, key string) string {
	for i := len(f.Assignments) - 1; i >= 0; i-- {
		if a := &f.Assignments[i]; a.Key == key && a.Section == section {
			return a.Value
		}
	}
	return ""
}

// List returns the values of a key that collects values: all assignments since the
// last reset.
func (f *File) List(section, key string) []string {
	var values []string
	for i := range f.Assignments {
		a := &f.Assignments[i]
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

// LoadWithDropins reads the unit file at path, then its drop-ins: the files *.conf in
// the given directories, sorted by name. Of two files with the same name, the one in
// the earlier directory counts. Files with the name except are left out. A missing
// directory is no error.
func LoadWithDropins(path string, dirs []string, except string) (*File, error) {
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
