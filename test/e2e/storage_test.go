//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

// stored is a container as podman has it on disk.
type stored struct {
	id string
	processes
}

// containers returns the user's containers by name. It reads what podman and conmon
// have written: every case needs that, and to ask podman takes ten times as long.
func (u user) containers() map[string]stored {
	u.t.Helper()
	storage, run := u.home()+"/.local/share/containers/storage", u.runtimeDir()+"/containers"
	if u.uid == "0" {
		storage, run = "/var/lib/containers/storage", "/run/containers/storage"
	}
	out := u.shell(`
		for dir in "$2"/overlay-containers/*/userdata; do
			conmon= payload=
			[ ! -e "$dir/conmon.pid" ] || read -r conmon <"$dir/conmon.pid" || :
			[ ! -e "$dir/pidfile" ] || read -r payload <"$dir/pidfile" || :
			echo "${dir%/userdata} $conmon $payload"
		done
		# Those that podman removes when they end are in a file of their own.
		for file in "$1"/overlay-containers/containers.json "$1"/overlay-containers/volatile-containers.json; do
			[ ! -e "$file" ] || { cat "$file"; echo; }
		done`, storage, run)
	running := map[string]processes{}
	all := map[string]stored{}
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "[") {
			var dir string
			var p processes
			fmt.Sscan(line, &dir, &p.conmon, &p.payload)
			running[path.Base(dir)] = p
			continue
		}
		var containers []struct {
			ID    string
			Names []string
		}
		if err := json.Unmarshal([]byte(line), &containers); err != nil {
			u.t.Fatalf("podman's storage of %s: %v\n%s", u.name, err, line)
		}
		for _, c := range containers {
			for _, name := range c.Names {
				all[name] = stored{c.ID, running[c.ID]}
			}
		}
	}
	return all
}

// stored returns the user's container of that name, which there must be.
func (u user) stored(container string) stored {
	u.t.Helper()
	all := u.containers()
	c, ok := all[container]
	if !ok {
		u.t.Fatalf("%s has no container %s, but %v", u.name, container, all)
	}
	return c
}
