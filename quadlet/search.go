package quadlet

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/unitfile"
)

// SearchDirs returns the directories in which Quadlet looks for the system's
// files, in Quadlet's order, podman-systemd.unit(5): the directories in
// $QUADLET_UNIT_DIRS, or else the three of the system. All directories below them
// are included, except those of drop-ins and of users.
func SearchDirs() []string {
	if env := os.Getenv("QUADLET_UNIT_DIRS"); env != "" {
		return searchBelow(filepath.SplitList(env), "")
	}
	users := "/etc/containers/systemd/users"
	if resolved, err := filepath.EvalSymlinks(users); err == nil {
		users = resolved
	}
	return searchBelow([]string{"/run/containers/systemd", "/etc/containers/systemd", "/usr/share/containers/systemd"}, users)
}

// searchBelow returns the roots and all directories below them. Directories below
// except are left out, if except is not empty.
func searchBelow(roots []string, except string) []string {
	var dirs []string
	var visit func(dir string)
	visit = func(dir string) {
		dir, err := filepath.EvalSymlinks(dir)
		if err != nil || slices.Contains(dirs, dir) || strings.HasSuffix(dir, ".d") || except != "" && strings.HasPrefix(dir, except) {
			return
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return
		}
		dirs = append(dirs, dir)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch e.Type() {
			case os.ModeDir:
				visit(path)
			case os.ModeSymlink:
				if info, err := os.Stat(path); err == nil && info.IsDir() {
					visit(path)
				}
			}
		}
	}
	for _, root := range roots {
		if filepath.IsAbs(root) {
			visit(root)
		}
	}
	return dirs
}

// quadletFiles returns the paths of the Quadlet files in the directories, by name.
// If several files have the same name, the first counts.
func quadletFiles(dirs []string) map[string]string {
	files := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if name := e.Name(); IsQuadlet(name) && files[name] == "" && !e.IsDir() {
				files[name] = filepath.Join(dir, name)
			}
		}
	}
	return files
}

// File returns the path of the file that an argument means. A path, and the name of a file
// that is there, mean themselves. Any other word is the name of a service, with or without
// .service: it means the service's unit file, or else the Quadlet file of a container, pod
// or kube file that makes the service. If there is none, File returns where the unit file
// would be.
func (p *Planner) File(arg string) string {
	if strings.ContainsRune(arg, '/') || IsQuadlet(arg) {
		return arg
	}
	if _, err := os.Stat(arg); err == nil {
		return arg
	}
	service := strings.TrimSuffix(arg, ".service") + ".service"
	if path := UnitFile(p.UnitDirs, service); path != "" {
		return path
	}
	for name, path := range quadletFiles(p.Dirs) {
		if unit, err := loadQuadlet(path, p.Dirs); err == nil && kinds[filepath.Ext(name)].runs && serviceName(name, unit) == service {
			return path
		}
	}
	if len(p.UnitDirs) == 0 {
		return arg
	}
	return filepath.Join(p.UnitDirs[0], service)
}

// PodmanServices returns the names of the services in the directories whose unit files
// name podman, sorted.
func PodmanServices(dirs []string) []string {
	var names []string
	for _, dir := range dirs {
		for _, name := range readNames(dir) {
			if filepath.Ext(name) != ".service" || slices.Contains(names, name) {
				continue
			}
			if text, err := unitfile.Read(filepath.Join(dir, name)); err == nil && bytes.Contains(text, []byte("podman")) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// loadQuadlet reads a Quadlet file with the drop-ins that Quadlet applies.
func loadQuadlet(path string, dirs []string) (*unitfile.File, error) {
	var dropins []string
	for _, name := range dropinNames(filepath.Base(path)) {
		for _, dir := range dirs {
			dropins = append(dropins, filepath.Join(dir, name))
		}
	}
	return unitfile.LoadWithDropins(path, dropins, "")
}

// dropinNames returns the names of the directories with a Quadlet file's drop-ins,
// the most specific first: web@a.container.d, web@.container.d, web-.container.d,
// container.d.
func dropinNames(file string) []string {
	ext := filepath.Ext(file)
	base, instance, isTemplate := strings.Cut(strings.TrimSuffix(file, ext), "@")
	names := []string{file + ".d"}
	if instance != "" {
		names = append(names, base+"@"+ext+".d")
	}
	for i := len(base) - 1; i > 0; i-- {
		if base[i] != '-' {
			continue
		}
		if isTemplate {
			names = append(names, base[:i+1]+"@"+ext+".d")
		}
		names = append(names, base[:i+1]+ext+".d")
	}
	return append(names, ext[1:]+".d")
}

// Asks reports whether we serve or refuse any Quadlet file in the directories. It
// looks at the bytes of the files and their drop-ins only, because every boot waits
// for it.
func Asks(dirs []string) bool {
	var group sync.WaitGroup
	var asks atomic.Bool
	for _, dir := range dirs {
		names := readNames(dir)
		if len(askingDropins(dir, names)) > 0 {
			return true
		}
		// Most of the time is spent in the kernel, and two threads halve it.
		half := len(names) / 2
		for _, part := range [][]string{names[:half], names[half:]} {
			group.Add(1)
			go func() {
				defer group.Done()
				if anyAsks(dir, part, IsQuadlet) {
					asks.Store(true)
				}
			}()
		}
	}
	group.Wait()
	return asks.Load()
}

// AskingFiles returns the paths of the Quadlet files in the directories that we serve
// or refuse, sorted by name.
func AskingFiles(dirs []string) []string {
	var asking []string
	files := quadletFiles(dirs)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		unit, err := loadQuadlet(files[name], dirs)
		if err != nil {
			// A file that cannot be parsed may ask for a user all the same.
			if text, readErr := unitfile.Read(files[name]); readErr == nil && textAsks(text) {
				asking = append(asking, files[name])
			}
		} else if asks(unit) {
			asking = append(asking, files[name])
		}
	}
	return asking
}

// askingDropins returns those of the names that are directories of drop-ins in dir,
// with a drop-in that asks for a user.
func askingDropins(dir string, names []string) []string {
	isConf := func(name string) bool { return filepath.Ext(name) == ".conf" }
	var asking []string
	for _, name := range names {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, ".d") && anyAsks(path, readNames(path), isConf) {
			asking = append(asking, name)
		}
	}
	return asking
}

// readNames returns the names in a directory, none if it cannot be read.
func readNames(dir string) []string {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil
	}
	return names
}

// anyAsks reports whether a file asks for a user, among the files in dir for whose
// names counts returns true.
func anyAsks(dir string, names []string, counts func(name string) bool) bool {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	buf := make([]byte, 16<<10)
	for _, name := range names {
		if counts(name) && fileAsks(fd, name, &buf) {
			return true
		}
	}
	return false
}

// fileAsks reports whether a file asks for a user. It reads the file into buf, which
// grows as needed up to unitfile.MaxSize. A larger file counts as asking.
func fileAsks(dir int, name string, buf *[]byte) bool {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	have := 0
	for {
		n, err := unix.Read(fd, (*buf)[have:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		if have += n; have < len(*buf) {
			break // a regular file fills the buffer unless it ends
		}
		if have > unitfile.MaxSize {
			return true // let Quadlet read it
		}
		*buf = append(*buf, make([]byte, have)...)
	}
	return textAsks((*buf)[:have])
}
