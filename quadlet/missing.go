package quadlet

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/unitfile"
)

// orphans refuses each file that asks for a user and of which Quadlet made no
// service. Should Quadlet's generator make the service after all, it does not start.
func (p *Planner) orphans(plan *Plan, members map[string]*member, files map[string]string, messages []string, failure error) {
	if failure != nil {
		plan.Errors = append(plan.Errors, failure.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if members[name] != nil {
			continue
		}
		path := files[name]
		unit, err := loadQuadlet(path, p.Dirs)
		if err != nil {
			plan.Errors = append(plan.Errors, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		if !asks(unit) {
			continue
		}
		d := &Decision{Service: serviceName(name, unit), Source: path, Err: failure, maker: p.Maker}
		if checkServiceName(d.Service) != nil || UnitFile(p.UnitDirs, d.Service) != "" {
			continue
		}
		if d.Err == nil {
			d.Err = noService(name, messages)
		}
		d.refuse(p.Programs)
		plan.Decisions = append(plan.Decisions, d)
	}
}

// missing refuses each given file of which Quadlet makes no service, be it because
// Quadlet reads another file of the same name.
func (p *Planner) missing(plan *Plan, members map[string]*member, paths, messages []string, failure error) {
	for _, path := range paths {
		name := filepath.Base(path)
		unit, err := unitfile.Load(path)
		m := members[name]
		switch {
		case err != nil:
		case failure != nil:
			err = failure
		case m == nil:
			err = noService(name, messages)
		case !sameFile(m.Source, path):
			err = fmt.Errorf("Quadlet reads %s rather than %s", m.Source, path)
		default:
			continue
		}
		if unit == nil {
			unit = &unitfile.File{}
		}
		d := &Decision{Service: serviceName(name, unit), Source: path, Err: err, maker: p.Maker}
		d.refuse(p.Programs)
		plan.Decisions = append(plan.Decisions, d)
	}
}

// complaint splits a message of Quadlet's generator about one file into the file and
// the text. Such messages are
//
//	converting "FILE": TEXT
//	error loading "FILE", TEXT
//	Error converting 'FILE', ignoring: TEXT (podman 4.4)
func complaint(message string) (file, text string, ok bool) {
	message = strings.TrimPrefix(strings.TrimPrefix(message, "Error "), "error ")
	for _, verb := range []string{"converting ", "loading "} {
		rest, ok := strings.CutPrefix(message, verb)
		if !ok || rest == "" || rest[0] != '"' && rest[0] != '\'' {
			continue
		}
		file, rest, ok = strings.Cut(rest[1:], rest[:1])
		rest = strings.TrimPrefix(rest, ", ignoring")
		if text = strings.TrimLeft(rest, ":, "); ok && text != "" {
			return file, text, true
		}
	}
	return "", "", false
}

// noService returns the error for a file of which Quadlet makes no service, with
// what Quadlet said about it. If Quadlet cannot read one file, it makes no service of
// any file in that directory, so the error names the unreadable file.
func noService(name string, messages []string) error {
	text := ""
	for _, m := range messages {
		file, words, ok := complaint(m)
		switch {
		case !ok:
		case filepath.Base(file) == name:
			text += ": " + words
		case strings.Contains(m, "loading"):
			text += fmt.Sprintf(": it cannot read %s (%s)", file, words)
		}
	}
	return fmt.Errorf("Quadlet makes no service of %s%s", name, text)
}
