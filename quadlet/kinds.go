package quadlet

import (
	"path/filepath"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/unitfile"
)

// kind is a kind of Quadlet file, podman-systemd.unit(5).
type kind struct {
	// section is the section that Quadlet reads. In the service that Quadlet makes,
	// its name is X-SECTION.
	section string
	// suffix is what Quadlet appends to the name of the service.
	suffix string
	// runs says that the service runs containers. A service that does not makes a
	// volume, a network or the like, and has no options.
	runs bool
	// referencedBy are the keys with which another file references one of this kind.
	referencedBy []string
}

// kinds has every kind. The keys are the extensions of the files' names.
var kinds = map[string]kind{
	".container": {section: "Container", runs: true, referencedBy: []string{"Network"}},
	".kube":      {section: "Kube", runs: true},
	".pod":       {section: "Pod", suffix: "-pod", runs: true, referencedBy: []string{"Pod"}},
	".volume":    {section: "Volume", suffix: "-volume", referencedBy: []string{"Volume", "Mount"}},
	".network":   {section: "Network", suffix: "-network", referencedBy: []string{"Network"}},
	".image":     {section: "Image", suffix: "-image", referencedBy: []string{"Image", "Mount"}},
	".build":     {section: "Build", suffix: "-build", referencedBy: []string{"Image", "Mount"}},
	".artifact":  {section: "Artifact", suffix: "-artifact", referencedBy: []string{"Volume", "Mount"}},
}

// IsQuadlet reports whether name is the name of a Quadlet file.
func IsQuadlet(name string) bool {
	_, ok := kinds[filepath.Ext(name)]
	return ok
}

// serviceName returns the name of the service that Quadlet makes of a file.
func serviceName(file string, u *unitfile.File) string {
	ext := filepath.Ext(file)
	k := kinds[ext]
	if name := unquoteValue(u.Get(k.section, "ServiceName")); name != "" {
		return name + ".service"
	}
	base := strings.TrimSuffix(file, ext)
	if template, ok := strings.CutSuffix(base, "@"); ok {
		return template + k.suffix + "@.service"
	}
	return base + k.suffix + ".service"
}

// unquoteValue removes one pair of double quotes around a value, as Quadlet does.
func unquoteValue(v string) string {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		return v[1 : len(v)-1]
	}
	return v
}

// reference is a Quadlet file that another file references, and the key of the
// reference, such as Volume.
type reference struct{ key, file string }

// References returns the names of the Quadlet files that the service references.
func (c *Converted) References() []string {
	var names []string
	for _, r := range references(c.Unit) {
		names = append(names, r.file)
	}
	return names
}

// references returns the Quadlet files that a service made by Quadlet references.
func references(u *unitfile.File) []reference {
	var found []reference
	add := func(key, file string) {
		r := reference{key, file}
		if slices.Contains(kinds[filepath.Ext(file)].referencedBy, key) && !slices.Contains(found, r) {
			found = append(found, r)
		}
	}
	for _, s := range u.Sections {
		if !strings.HasPrefix(s, "X-") || s == section {
			continue
		}
		for _, key := range []string{"Volume", "Network"} {
			for _, v := range u.List(s, key) {
				file, _, _ := strings.Cut(v, ":")
				add(key, file)
			}
		}
		for _, key := range []string{"Image", "Pod"} {
			add(key, unquoteValue(u.Get(s, key)))
		}
		for _, v := range u.List(s, "Mount") {
			words, err := unitfile.SplitWords(v)
			if err != nil {
				continue
			}
			for _, w := range words {
				for _, field := range strings.Split(w.Text, ",") {
					if key, file, _ := strings.Cut(field, "="); key == "source" || key == "src" {
						add("Mount", file)
					}
				}
			}
		}
	}
	return found
}
