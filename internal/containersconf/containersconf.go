// Package containersconf reads the settings of containers.conf(5) that decide
// whether podman runs the hook for a user's container.
//
// Podman has a reader of its own, which is a large library, and which would read
// a user's files with root's rights. This one reads few settings, follows no
// links in a user's home directory, and bounds what a file may cost.
package containersconf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"oci-mainpid-hook/internal/regular"
)

// Settings are the settings that are used here.
type Settings struct {
	// HooksDir are the directories with the JSON of hooks.
	HooksDir []string
	// HooksDirFrom is the file that set HooksDir, empty for podman's default.
	HooksDirFrom string
	// Runtime is the OCI runtime's name or path, empty for podman's default.
	Runtime string
	// ConmonPath are the paths at which podman looks for conmon, empty for
	// podman's default.
	ConmonPath []string

	appendHooks, appendConmon bool
}

// DefaultHooksDir is the directory that podman reads for a user if no file sets
// hooks_dir.
const DefaultHooksDir = "/usr/share/containers/oci/hooks.d"

// Bounds of what is read, because a user's files are read as root. The file that
// comes with podman, all of it comments, has 30 KiB.
const (
	maxFile    = 256 << 10 // bytes of one file
	maxTotal   = 1 << 20   // bytes of all files
	maxDropins = 100       // names in one drop-in directory
	maxList    = 32        // strings in hooks_dir or conmon_path
	maxString  = 4096      // bytes of one string, PATH_MAX
	maxCost    = 8 << 20   // of one file, and of all files, see cost
	maxNested  = 1000      // brackets in one file
)

// document is the part of a file that is used here.
type document struct {
	Engine struct {
		HooksDir   array   `toml:"hooks_dir"`
		ConmonPath array   `toml:"conmon_path"`
		Runtime    *string `toml:"runtime"`
	} `toml:"engine"`
}

// array is podman's array of strings. An element {append=true} means that this
// array, and those of later files, add to what earlier files have set instead of
// replacing it.
type array struct {
	set     bool
	strings []string
	append  *bool
}

// UnmarshalTOML implements toml.Unmarshaler.
func (a *array) UnmarshalTOML(value any) error {
	elements, ok := value.([]any)
	if !ok {
		return errors.New("is not an array")
	}
	a.set = true
	for _, element := range elements {
		switch element := element.(type) {
		case string:
			if len(element) > maxString {
				return fmt.Errorf("has a string of %d bytes, more than %d", len(element), maxString)
			}
			a.strings = append(a.strings, element)
		case map[string]any:
			appends, ok := element["append"].(bool)
			if !ok || len(element) != 1 {
				return errors.New("has a table that is not {append=true}")
			}
			a.append = &appends
		default:
			return errors.New("has an element that is not a string")
		}
	}
	return nil
}

// apply sets the value of a setting to what the array says. appends is podman's
// memory of {append=true} for this setting.
func (a array) apply(key string, value *[]string, appends *bool) error {
	if !a.set {
		return nil
	}
	if a.append != nil {
		*appends = *a.append
	}
	merged := append([]string{}, a.strings...)
	if *appends {
		merged = append(slices.Clone(*value), merged...)
	}
	if len(merged) > maxList {
		return fmt.Errorf("%s has %d strings, more than %d", key, len(merged), maxList)
	}
	*value = merged
	return nil
}

// Merge applies the text of the file at path on top of the settings. If it fails,
// the settings are what they were.
func (s *Settings) Merge(path, text string) error {
	if _, err := cost(text); err != nil {
		return err
	}
	var d document
	if _, err := toml.Decode(text, &d); err != nil {
		if parse := (toml.ParseError{}); errors.As(err, &parse) {
			what := ""
			if strings.HasPrefix(parse.LastKey, "engine.") {
				what = parse.LastKey + " "
			}
			return fmt.Errorf("line %d: %.80s%.200s", parse.Position.Line, what, parse.Message)
		}
		return fmt.Errorf("%.200s", err.Error())
	}
	merged := *s
	err := cmp.Or(
		d.Engine.HooksDir.apply("engine.hooks_dir", &merged.HooksDir, &merged.appendHooks),
		d.Engine.ConmonPath.apply("engine.conmon_path", &merged.ConmonPath, &merged.appendConmon))
	if err != nil {
		return err
	}
	if d.Engine.HooksDir.set {
		merged.HooksDirFrom = path
	}
	if d.Engine.Runtime != nil {
		if len(*d.Engine.Runtime) > maxString {
			return fmt.Errorf("engine.runtime has %d bytes, more than %d", len(*d.Engine.Runtime), maxString)
		}
		merged.Runtime = *d.Engine.Runtime
	}
	*s = merged
	return nil
}

// appendTable is the only table that podman has in an array.
var appendTable = regexp.MustCompile(`\{\s*append\s*=\s*(true|false)\s*\}`)

// cost returns what the keys of the text cost the TOML library, which writes down
// the names of all tables around each part of a key: 16 KiB of "a.a.a.…" take 20 s
// and 2.6 GiB. It is the number of parts times the bytes that are written for one,
// and may be too high. cost fails if the library should not be given the text.
//
// A key, or the name of a table, is on one line, which does not begin with #. The
// names of inline tables around it are on as many lines as there are such tables.
func cost(text string) (int64, error) {
	tables := strings.Count(text, "{") - len(appendTable.FindAllStringIndex(text, -1))
	if n := tables + strings.Count(text, "["); n > maxNested { // it calls itself for each
		return 0, fmt.Errorf("has %d brackets, more than %d", n, maxNested)
	}
	// More than an int of 32 bits holds.
	var longest, longestName, parts, sum int64
	for line := range strings.Lines(text) {
		line = strings.TrimLeft(line, " \t")
		if strings.HasPrefix(line, "#") {
			continue
		}
		n, length := int64(strings.Count(line, "=")+strings.Count(line, ".")+strings.Count(line, "[")), int64(len(line))
		parts += n
		sum += n * length
		longest = max(longest, length)
		if strings.HasPrefix(line, "[") {
			longestName = max(longestName, length)
		}
	}
	if sum += parts * (longestName + int64(tables)*longest); sum > maxCost {
		return sum, errors.New("has too many keys in too many or too long tables")
	}
	return sum, nil
}

// Reader says where the files are.
type Reader struct {
	// System are the files for all users, in the order in which podman reads
	// them. Drop-ins are in the directory of the same name with .d appended.
	System []string
	// Home is the user's home directory and Config their configuration
	// directory. Both are empty for the system's files alone.
	Home, Config string
	// UID is the user's, 0 for the system's files alone.
	UID int
	// Podman6 reads as podman 6 does. It reads one file: the user's, if there is
	// one, else the last of System. Then it reads the drop-ins of all of them in the
	// order of their names; one takes the place of those of its name in earlier
	// directories. Beside containers.conf.d there are containers.rootless.conf.d, for
	// all users but root, and below it a directory for each UID.
	Podman6 bool
}

// SystemFiles are podman's files for all users.
var SystemFiles = []string{"/usr/share/containers/containers.conf", "/etc/containers/containers.conf"}

// Read reads all files in podman's order. A file that cannot be read, that is
// wrong, or that costs too much is left out, and its problem is returned: podman
// itself refuses to start if a file is wrong, and may follow a link that Read
// does not follow. When ctx ends, Read returns what it has read so far, and a
// problem.
func (r Reader) Read(ctx context.Context) (Settings, []error) {
	m := merger{ctx: ctx, settings: Settings{HooksDir: []string{DefaultHooksDir}}, bytes: maxTotal, cost: maxCost}
	places := r.places()
	if r.Podman6 {
		for _, p := range slices.Backward(places) {
			if m.file(p.file, p.read) {
				break
			}
		}
		m.dropins(places...)
	} else {
		for _, p := range places {
			m.file(p.file, p.read)
			m.dropins(p)
		}
	}
	return m.settings, m.problems
}

// place is a file and the directories of its drop-ins.
type place struct {
	file string
	dirs []string
	read func(path string) ([]byte, error)
	list func(path string) ([]string, error)
}

func (r Reader) places() []place {
	var places []place
	for _, path := range r.System {
		p := place{path, []string{path + ".d"}, func(path string) ([]byte, error) { return regular.Read(path, maxFile) }, readDir}
		if r.Podman6 {
			rootless := strings.TrimSuffix(path, ".conf") + ".rootless.conf.d"
			p.dirs = append(p.dirs, rootless)
			if r.UID != 0 {
				p.dirs = append(p.dirs, filepath.Join(rootless, strconv.Itoa(r.UID)))
			}
		}
		places = append(places, p)
	}
	if r.Home != "" {
		path := filepath.Join(r.Config, "containers/containers.conf")
		places = append(places, place{path, []string{path + ".d"},
			func(path string) ([]byte, error) { return regular.ReadBelow(r.Home, path, maxFile) },
			func(path string) ([]string, error) { return regular.ListBelow(r.Home, path, maxDropins+1) }})
	}
	return places
}

// merger merges one file after the other.
type merger struct {
	ctx      context.Context
	settings Settings
	problems []error
	// What the files that follow may have together.
	bytes   int
	cost    int64
	stopped bool
}

// dropins merges the drop-ins of the places, sorted by name. Of several with a name the
// last one counts.
func (m *merger) dropins(places ...place) {
	type dropin struct {
		path string
		read func(string) ([]byte, error)
	}
	found := map[string]dropin{}
	for _, p := range places {
		for _, dir := range p.dirs {
			names, err := p.list(dir)
			if err == nil && len(names) > maxDropins {
				err = fmt.Errorf("%s: none of its files was read: there are more than %d", dir, maxDropins)
			}
			if err != nil {
				m.problem(err)
				continue
			}
			for _, name := range names {
				if strings.HasSuffix(name, ".conf") {
					found[name] = dropin{filepath.Join(dir, name), p.read}
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		m.file(found[name].path, found[name].read)
	}
}

// file merges the file at path, and reports whether it is there.
func (m *merger) file(path string, read func(string) ([]byte, error)) (found bool) {
	if m.stopped {
		return true
	}
	if err := m.ctx.Err(); err != nil {
		m.stop(path, err)
		return true
	}
	b, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false
	case errors.Is(err, regular.ErrTooLarge):
		m.problem(fmt.Errorf("%s: larger than %d KiB", path, maxFile>>10))
		return true
	case err != nil:
		m.problem(err)
		return true
	}
	if m.bytes -= len(b); m.bytes < 0 {
		m.stop(path, fmt.Errorf("together they are larger than %d KiB", maxTotal>>10))
		return true
	}
	needs, err := cost(string(b))
	if err == nil {
		if m.cost -= needs; m.cost < 0 {
			m.stop(path, errors.New("together they have too many keys"))
			return true
		}
		err = m.settings.Merge(path, string(b))
	}
	if err != nil {
		m.problem(fmt.Errorf("%s: %w", path, err))
	}
	return true
}

// stop leaves out all files from path on.
func (m *merger) stop(path string, err error) {
	m.stopped = true
	m.problem(fmt.Errorf("%s and later files were not read: %w", path, err))
}

func (m *merger) problem(err error) {
	if !errors.Is(err, fs.ErrNotExist) {
		m.problems = append(m.problems, err)
	}
}

// readDir returns the names in a directory that belongs to root, at most one
// more than maxDropins.
func readDir(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxDropins + 1)
	if err == io.EOF {
		err = nil
	}
	return names, err
}
