package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// runDir has a directory for every machine, by its name.
const runDir = "/run/oci-mainpid-sandbox"

// state is what another process must know to use or remove a machine. It is
// saved before anything that it names is made, so that PowerOff forgets nothing.
type state struct {
	Name       string  `json:"name"`
	Suite      Suite   `json:"suite"`
	Whole      bool    `json:"whole,omitempty"`
	Disk       string  `json:"disk"`             // directory in the cache
	Cgroup     string  `json:"cgroup,omitempty"` // directory that is ours to remove
	Supervisor process `json:"supervisor"`
}

// validName matches a host name of one label. It is short enough for the longer
// names that contain it, such as that of the cgroup.
var validName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("machine name %q: not 1 to 40 of a-z, 0-9 and -, beginning with a letter and not ending with -", name)
	}
	return nil
}

func (s state) dir() string     { return filepath.Join(runDir, s.Name) }
func (s state) root() string    { return filepath.Join(s.dir(), "root") }
func (s state) console() string { return filepath.Join(s.dir(), "console") }

// save writes the state. A reader sees either the old state or the new one.
func (s state) save() error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("state of %s: %w", s.Name, err)
	}
	path := filepath.Join(s.dir(), "state")
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write the state of %s: %w", s.Name, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the state of %s: %w", s.Name, err)
	}
	return nil
}

// load reads the state of a machine. Without a machine of that name the error
// is fs.ErrNotExist.
func load(name string) (state, error) {
	if err := checkName(name); err != nil {
		return state{}, err
	}
	dir := filepath.Join(runDir, name)
	data, err := os.ReadFile(filepath.Join(dir, "state"))
	if errors.Is(err, fs.ErrNotExist) {
		if isDir(dir) { // between mkdir and save, or ended there
			return state{Name: name}, nil
		}
		return state{}, fmt.Errorf("no machine %s: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return state{}, fmt.Errorf("read the state of %s: %w", name, err)
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return state{}, fmt.Errorf("state of %s: %w", name, err)
	}
	if s.Name != name {
		return state{}, fmt.Errorf("state of %s: it is of %s", name, s.Name)
	}
	return s, nil
}
