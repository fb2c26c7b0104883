package diagnosis

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/regular"
	"oci-mainpid-hook/internal/rootpath"
	"oci-mainpid-hook/internal/terminal"
)

// store is where the podman of a user keeps images, secrets and networks. podman itself
// is not asked: it would make directories and a pause process.
type store struct{ home, dir string }

// maxStoreFile bounds a file of a store, in bytes. The files are the user's, and JSON
// needs many times its size in memory.
const maxStoreFile = 1 << 20

// systemStorage are the files of containers-storage.conf(5) that root writes.
var systemStorage = []string{"/etc/containers/storage.conf", "/usr/share/containers/storage.conf"}

// elsewhere matches a setting with which a user's storage, or a part of it, is in
// another place.
var elsewhere = regexp.MustCompile(`(?m)^[ \t]*(rootless_storage_path|imagestore)[ \t]*=[ \t]*"[^"]|^[ \t]*additionalimagestores[ \t]*=[ \t]*\[[^\]"]*"[^"]`)

// findStore returns the store that the unit's podman uses. ok is false if that may be
// another one than podman's default.
func findStore(u *UnitFacts, p podmancmd.Podman) (s store, ok bool) {
	for _, variable := range []string{"XDG_DATA_HOME", "XDG_CONFIG_HOME", "CONTAINERS_STORAGE_CONF", "STORAGE_OPTS"} {
		if u.Unit.Env(variable) != "" {
			return s, false
		}
	}
	for _, option := range []string{"root", "module", "storage-opt", "remote", "url", "connection", "imagestore"} {
		if _, given := p.Global(option); given {
			return s, false
		}
	}
	for _, path := range systemStorage {
		if text, err := rootpath.ReadFile(path, 256<<10); err == nil && elsewhere.Match(text) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s, false
		}
	}
	// podman 6 reads drop-ins, too, also in storage.rootless.conf.d.
	for _, dir := range []string{"/etc/containers", "/usr/share/containers"} {
		if dropins, _ := filepath.Glob(dir + "/storage*.conf.d/*"); len(dropins) > 0 {
			return s, false
		}
	}
	s = store{u.Home.Path, filepath.Join(u.Home.Path, ".local/share/containers/storage")}
	own := filepath.Join(s.home, ".config/containers/storage.conf")
	_, err := regular.ReadBelow(s.home, own, 1)
	_, dropinsErr := regular.ListBelow(s.home, own+".d", 1)
	return s, u.Home.Err == nil && errors.Is(err, fs.ErrNotExist) && errors.Is(dropinsErr, fs.ErrNotExist)
}

// read reads a file of the store.
func (s store) read(name string) ([]byte, error) {
	return regular.ReadBelow(s.home, filepath.Join(s.dir, name), maxStoreFile)
}

// lacksSecret reports whether the store has no secret with that name or ID. What cannot
// be read counts as there.
func (s store) lacksSecret(name string) bool {
	text, err := s.read("secrets/secrets.json")
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	var secrets struct {
		NameToID map[string]string `json:"nameToID"`
	}
	if json.Unmarshal(text, &secrets) != nil {
		return false
	}
	if _, ok := secrets.NameToID[name]; ok || name == "" {
		return false
	}
	for _, id := range secrets.NameToID {
		if strings.HasPrefix(id, name) {
			return false
		}
	}
	return true
}

// lacksNetwork reports whether the store has no network of that name.
func (s store) lacksNetwork(name string) bool {
	_, err := s.read("networks/" + name + ".json")
	return errors.Is(err, fs.ErrNotExist)
}

// lacksImage reports whether the store has no image of that name.
func (s store) lacksImage(name string) bool {
	if base := name[strings.LastIndexByte(name, '/')+1:]; !strings.ContainsAny(base, ":@") {
		name += ":latest"
	}
	for _, driver := range []string{"overlay", "vfs", "btrfs", "zfs"} {
		text, err := s.read(driver + "-images/images.json")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var images []struct{ Names []string }
		if err != nil || json.Unmarshal(text, &images) != nil {
			return false
		}
		for _, image := range images {
			if slices.Contains(image.Names, name) {
				return false
			}
		}
	}
	return true
}

// makes reports whether a command of the unit makes or fetches something that podman
// keeps in its store.
func makes(commands []podmancmd.Podman, verbs ...string) bool {
	return slices.ContainsFunc(commands, func(p podmancmd.Podman) bool { return slices.Contains(verbs, p.Verb) })
}

// needsOfStore adds what the unit's podman is told to use and the user's store lacks.
// commands are all of the unit's podmans that run as the user.
func (u *UnitFacts) needsOfStore(add func(found, fix string), p podmancmd.Podman, commands []podmancmd.Podman) {
	s, ok := findStore(u, p)
	if !ok {
		return
	}
	for _, value := range values(p, "secret") {
		if name, _, _ := strings.Cut(value, ","); s.lacksSecret(name) && !makes(commands, "secret create") {
			add("the secret "+name+" is not there for "+u.Account.Name+": root's are not theirs", u.podman("secret create "+terminal.Quote(name)+" FILE"))
		}
	}
	if d := u.Dropin.Planned; d != nil && !makes(commands, "network create") {
		for _, network := range d.Networks {
			if s.lacksNetwork(network) {
				add("the network "+network+" is not there for "+u.Account.Name, u.podman("network create --ignore "+terminal.Quote(network)))
			}
		}
	}
	if !p.CreatesContainer() || len(p.Arguments()) == 0 || u.hasImageUnit() || makes(commands, "build", "load", "import", "pull", "image build", "image load", "image import", "image pull", "tag", "image tag") {
		return
	}
	image := p.Arguments()[0]
	pull, _ := p.Last("pull")
	if (strings.HasPrefix(image, "localhost/") || pull == "never" && strings.Contains(image, "/")) && !strings.ContainsAny(image, "@$%") && s.lacksImage(image) {
		quoted := terminal.Quote(image)
		add("the image "+image+" is not there for "+u.Account.Name+": root's are not theirs", "if root has it: podman save "+quoted+" | "+u.podman("load"))
	}
}

// hasImageUnit reports whether the unit is started after one that makes an image.
func (u *UnitFacts) hasImageUnit() bool {
	return slices.ContainsFunc(u.Unit.After, func(name string) bool {
		return strings.HasSuffix(name, "-image.service") || strings.HasSuffix(name, "-build.service")
	})
}

// podman is a line to type, as root, that runs podman as the unit's user: a process of
// the user's must not get root's terminal.
func (u *UnitFacts) podman(arguments string) string {
	return "oci-mainpid podman --user=" + terminal.Quote(u.Account.Name) + " " + arguments
}
