package diagnosis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/containersconf"
	"oci-mainpid-hook/internal/printable"
	"oci-mainpid-hook/internal/rootpath"
	"oci-mainpid-hook/internal/terminal"
)

const hookName = "oci-mainpid-hook"

// Hook is what podman would find of our hook in the directories of hooks.
type Hook struct {
	// JSON is the path of the file that configures our hook, empty if there is none.
	JSON string
	// Path is the path of the hook's program, from that file.
	Path string
	// Wrong says what is wrong with that file or with the program.
	Wrong error
	// Unread has an error for each directory or file that was not read.
	Unread []error
	// Shadow is a file of the same name in a later directory, which podman reads
	// instead of ours.
	Shadow string
	// Installed is the path of our file in a directory that podman does not read.
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

// Bounds of what is read of hooks, because a user's containers.conf says where
// the hooks are.
const (
	maxHookDirs  = 32
	maxHookFiles = 256      // in one directory
	maxJSON      = 64 << 10 // bytes of one file
	maxAllJSON   = 4 << 20  // bytes of all files
	maxUnread    = 8        // errors that are kept
)

// findHook looks for our hook in the directories, as podman does. Of several files with
// the same name, podman reads the one in the last directory. When ctx ends, findHook
// leaves the rest unread.
func findHook(ctx context.Context, dirs []string) Hook {
	h := Hook{}
	if len(dirs) > maxHookDirs {
		h.unread(fmt.Errorf("hooks_dir has %d directories, more than %d: the others were not looked into", len(dirs), maxHookDirs))
		dirs = dirs[:maxHookDirs]
	}
	last := map[string]string{}        // the path that podman reads, by name
	ours := map[string]configuration{} // the files that configure our hook, by path
	bytes := 0
	for _, dir := range dirs {
		names, err := rootpath.ReadDir(filepath.Clean(dir), maxHookFiles)
		h.unread(err)
		for _, name := range names {
			if filepath.Ext(name) != ".json" {
				continue
			}
			if err := ctx.Err(); err != nil {
				h.unread(fmt.Errorf("%s and what comes after it: %w", dir, err))
				return h
			}
			path := filepath.Join(dir, name)
			last[name] = path
			b, err := rootpath.ReadFile(path, maxJSON)
			if bytes += len(b); bytes > maxAllJSON {
				h.unread(fmt.Errorf("%s and what comes after it: the files before it are larger than %d KiB", path, maxAllJSON>>10))
				return h
			}
			var c configuration
			switch {
			case err != nil:
				h.unread(err)
			case json.Unmarshal(b, &c) == nil && filepath.Base(c.Hook.Path) == hookName:
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

// unread keeps an error about a directory or file that was not read. A missing one is
// no error.
func (h *Hook) unread(err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) && len(h.Unread) < maxUnread {
		h.Unread = append(h.Unread, err)
	}
}

// check returns what keeps the hook from running for every container.
func (c configuration) check() error {
	switch {
	case !slices.Contains(c.Stages, "poststart"):
		return errors.New(`"stages" does not have "poststart"`)
	case c.When.Always == nil || !*c.When.Always:
		return errors.New(`"when" is not {"always": true}`)
	}
	mode, err := rootpath.Stat(c.Hook.Path)
	switch {
	case err != nil:
		return fmt.Errorf("the hook: %w", err)
	case !mode.IsRegular() || mode&0o111 == 0:
		return fmt.Errorf("%s cannot be executed", c.Hook.Path)
	}
	return nil
}

// point adds the point about whether podman would run the hook. s says where podman
// looks. problems has the errors of reading s.
func (h Hook) point(p *points, s containersconf.Settings, problems []error) {
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
		p.warn(what, fmt.Sprintf("not all that podman reads (%s) was looked into: %s", from, several(h.Unread)),
			"in hooks_dir, add the directory that has our hook: "+setting(s, h.Installed))
	case h.JSON == "" && h.Installed != "" && s.HooksDirFrom != "":
		p.fail(what, fmt.Sprintf("podman reads %s (hooks_dir in %s), not %s, which has our hook", dirs, from, filepath.Dir(h.Installed)),
			"there: "+setting(s, h.Installed))
	case h.JSON == "" && h.Installed != "":
		p.fail(what, fmt.Sprintf("podman reads %s, not %s, which has our hook", dirs, filepath.Dir(h.Installed)),
			"in /etc/containers/containers.conf.d/50-hooks.conf below [engine]: "+setting(s, h.Installed))
	case h.JSON == "":
		p.fail(what, fmt.Sprintf("no JSON in %s (%s) names %s", dirs, from, hookName), "install oci-mainpid-hook again, whole")
	case len(problems) > 0:
		p.warn(what, fmt.Sprintf("%s, but a file that could change this was not read: %s", h.JSON, several(problems)), "have a look at that file")
	default:
		p.ok(what, h.JSON)
	}
}

// several returns the first error, and how many more there are.
func several(errs []error) string {
	if more := len(errs) - 1; more > 0 {
		return fmt.Sprintf("%v; and %s more", errs[0], printable.Count(more))
	}
	return errs[0].Error()
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
