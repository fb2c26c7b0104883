// Package containersconf reads the settings of containers.conf(5) that decide
// whether podman runs the hook of a user's container.
//
// Podman's own reader is a large library with many more; and it reads what a
// user has written with the rights of who calls it.
package containersconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/regular"
)

// Settings are those that matter here.
type Settings struct {
	// HooksDir are the directories with the JSON of hooks.
	HooksDir []string
	// HooksDirFrom is the file that set them, empty for podman's default.
	HooksDirFrom string
	// Runtime is the OCI runtime's name or path, empty for podman's default.
	Runtime string
	// ConmonPath is where conmon is looked for, empty for podman's default.
	ConmonPath []string

	appendHooks, appendConmon bool
}

// DefaultHooksDir is what podman reads for a user where nothing else is set.
const DefaultHooksDir = "/usr/share/containers/oci/hooks.d"

// Merge applies the text of a file on top of what was read before.
func (s *Settings) Merge(path, text string) error {
	return parseTOML(text, func(a assignment) (err error) {
		if len(a.key) != 2 || a.key[0] != "engine" {
			return nil
		}
		switch a.key[1] {
		case "hooks_dir":
			s.HooksDirFrom = path
			s.HooksDir, err = list(s.HooksDir, &s.appendHooks, a)
		case "conmon_path":
			s.ConmonPath, err = list(s.ConmonPath, &s.appendConmon, a)
		case "runtime":
			runtime, ok := a.value.(string)
			if !ok {
				return fmt.Errorf("%s is not a string", strings.Join(a.key, "."))
			}
			s.Runtime = runtime
		}
		return err
	})
}

// list reads an array of strings. An element {append=true} makes this one and
// those of later files add to it, instead of taking its place.
func list(have []string, appends *bool, a assignment) ([]string, error) {
	values, ok := a.value.([]any)
	if !ok {
		return nil, fmt.Errorf("%s is not an array", strings.Join(a.key, "."))
	}
	words := []string{}
	for _, v := range values {
		switch v := v.(type) {
		case string:
			words = append(words, v)
		case []assignment:
			for _, attribute := range v {
				if slices.Equal(attribute.key, []string{"append"}) {
					*appends = attribute.value == bare("true")
				}
			}
		default:
			return nil, fmt.Errorf("%s has an element that is not a string", strings.Join(a.key, "."))
		}
	}
	if *appends {
		words = append(slices.Clone(have), words...)
	}
	return words, nil
}

// maxFile bounds what is read of one file, in bytes. The one that podman comes
// with, all comments, has 30 KiB.
const maxFile = 1 << 20

// Reader says where the files are.
type Reader struct {
	// System are the files of all users, the earlier before the later; each has
	// a directory of that name with .d appended.
	System []string
	// Home is the user's home directory and Config his configuration directory,
	// both empty for the system's files alone.
	Home, Config string
}

// SystemFiles are podman's.
var SystemFiles = []string{"/usr/share/containers/containers.conf", "/etc/containers/containers.conf"}

// Read reads all files in podman's order. What cannot be read, or is wrong, is
// left out and said: podman itself refuses to start if a file is wrong, and may
// follow a link where this does not.
func (r Reader) Read() (Settings, []error) {
	s := Settings{HooksDir: []string{DefaultHooksDir}}
	var problems []error
	merge := func(path string, b []byte, err error) {
		if err == nil {
			if mergeErr := s.Merge(path, string(b)); mergeErr != nil {
				err = fmt.Errorf("%s: %w", path, mergeErr)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	for _, path := range r.System {
		b, err := readFile(path)
		merge(path, b, err)
		dropins, _ := filepath.Glob(path + ".d/*.conf") // sorted; the pattern is fine
		for _, path := range dropins {
			b, err := readFile(path)
			merge(path, b, err)
		}
	}
	if r.Home == "" {
		return s, problems
	}
	path := filepath.Join(r.Config, "containers/containers.conf")
	b, err := regular.ReadBelow(r.Home, path, maxFile)
	merge(path, b, err)
	const maxDropins = 1000
	names, err := regular.ListBelow(r.Home, path+".d", maxDropins)
	merge(path+".d", nil, err)
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, ".conf") {
			b, err := regular.ReadBelow(r.Home, path+".d/"+name, maxFile)
			merge(path+".d/"+name, b, err)
		}
	}
	return s, problems
}

// readFile reads a file of root's.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s: %w", path, regular.ErrTooLarge)
	}
	return os.ReadFile(path)
}
