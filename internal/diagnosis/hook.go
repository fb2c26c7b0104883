package diagnosis

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/containersconf"
	"oci-mainpid-hook/internal/terminal"
)

const hookName = "oci-mainpid-hook"

// Hook is what the directories of hooks have of ours.
type Hook struct {
	// JSON is the path of the file that names our hook, empty if none does.
	JSON string
	// Path is the hook's own, as the file has it.
	Path string
	// Wrong is what is wrong with either.
	Wrong error
	// Unread are directories that were not looked into, because others than root
	// can change them.
	Unread []string
	// Shadow is a file of the same name in a later directory, which takes the
	// place of ours.
	Shadow string
	// Installed is where our file is besides, in a directory that podman does
	// not read.
	Installed string
}

// configuration is a hook's JSON, oci-hooks(5).
type configuration struct {
	Hook struct {
		Path string `json:"path"`
	} `json:"hook"`
	When struct {
		Always *bool `json:"always"`
	} `json:"when"`
	Stages []string `json:"stages"`
}

// maxJSON bounds what is read of a hook's JSON.
const maxJSON = 1 << 20

// findHook looks for our hook in the directories, as podman does: of files with
// one name, that of the last directory counts.
func findHook(dirs []string) Hook {
	var h Hook
	last := map[string]string{}        // the path that counts, by name
	ours := map[string]configuration{} // those that name our hook, by path
	for _, dir := range dirs {
		dir = filepath.Clean(dir)
		if err := onlyRoots(dir); err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				h.Unread = append(h.Unread, dir)
			}
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			name := e.Name()
			if filepath.Ext(name) != ".json" {
				continue
			}
			path := filepath.Join(dir, name)
			last[name] = path
			if c, err := readConfiguration(path); err == nil && filepath.Base(c.Hook.Path) == hookName {
				ours[path] = c
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(ours)) {
		if counts := last[filepath.Base(path)]; counts != path {
			h.Shadow = counts
			continue
		}
		c := ours[path]
		h.JSON, h.Path, h.Wrong, h.Shadow = path, c.Hook.Path, c.check(), ""
		break
	}
	return h
}

// readConfiguration reads a file in a directory of root's, where a link is
// root's, too.
func readConfiguration(path string) (c configuration, err error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return c, err
	case !info.Mode().IsRegular() || info.Size() > maxJSON:
		return c, fmt.Errorf("%s is no file of ordinary size", path)
	}
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	return c, err
}

// check returns what keeps the hook from running for every container.
func (c configuration) check() error {
	switch {
	case !slices.Contains(c.Stages, "poststart"):
		return errors.New(`"stages" does not have "poststart"`)
	case c.When.Always == nil || !*c.When.Always:
		return errors.New(`"when" is not {"always": true}`)
	}
	info, err := os.Stat(c.Hook.Path)
	switch {
	case err != nil:
		return fmt.Errorf("the hook: %w", err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s cannot be executed", c.Hook.Path)
	}
	return nil
}

// onlyRoots returns an error unless nobody but root can change what is in a
// directory, or which directory that is. Links of root's are followed.
func onlyRoots(dir string) error {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for _, path := range []string{dir, resolved} {
		for ; ; path = filepath.Dir(path) {
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			link := st.Mode&unix.S_IFMT == unix.S_IFLNK
			if st.Uid != 0 || !link && st.Mode&0o022 != 0 {
				return fmt.Errorf("%s can be changed by others than root", path)
			}
			if path == "/" || path == "." {
				break
			}
		}
	}
	return nil
}

// judge tells whether podman would run the hook, given the settings that say
// where it looks and what could not be read of them.
func (h Hook) judge(p *points, s containersconf.Settings, problems []error) {
	const what = "hook"
	from := "podman's default"
	if s.HooksDirFrom != "" {
		from = s.HooksDirFrom
	}
	dirs := strings.Join(s.HooksDir, ", ")
	if dirs == "" {
		dirs = "nothing"
	}
	switch {
	case h.JSON != "" && h.Wrong != nil:
		p.fail(what, fmt.Sprintf("%s: %v", h.JSON, h.Wrong), "install oci-mainpid-hook again, whole")
	case h.JSON == "" && h.Shadow != "":
		p.fail(what, h.Shadow+" takes the place of the file of that name with our hook", "rm "+terminal.Quote(h.Shadow))
	case h.JSON == "" && len(h.Unread) > 0:
		p.warn(what, fmt.Sprintf("podman reads %s (%s), which is not root's and was not looked into", strings.Join(h.Unread, ", "), from),
			"add the directory of root's: "+setting(s, h.Installed))
	case h.JSON == "" && h.Installed != "" && s.HooksDirFrom != "":
		p.fail(what, fmt.Sprintf("podman reads %s (hooks_dir in %s), not %s, which has our hook", dirs, from, filepath.Dir(h.Installed)),
			"there: "+setting(s, h.Installed))
	case h.JSON == "" && h.Installed != "":
		p.fail(what, fmt.Sprintf("podman reads %s, not %s, which has our hook", dirs, filepath.Dir(h.Installed)),
			"in /etc/containers/containers.conf below [engine]: "+setting(s, h.Installed))
	case h.JSON == "":
		p.fail(what, fmt.Sprintf("no JSON in %s (%s) names %s", dirs, from, hookName), "install oci-mainpid-hook again, whole")
	case len(problems) > 0:
		p.warn(what, fmt.Sprintf("%s, but a file was not read that could say otherwise: %v", h.JSON, problems[0]), "have a look at that file")
	default:
		p.ok(what, h.JSON)
	}
}

// setting is the line of containers.conf(5) that adds our directory.
func setting(s containersconf.Settings, installed string) string {
	dir := containersconf.DefaultHooksDir
	if installed != "" {
		dir = filepath.Dir(installed)
	}
	dirs := append(slices.Clone(s.HooksDir), dir)
	for i, d := range dirs {
		dirs[i] = fmt.Sprintf("%q", d)
	}
	return "hooks_dir = [" + strings.Join(slices.Compact(dirs), ", ") + "]"
}
