package quadlet

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

// section holds the options of a Quadlet file, oci-mainpid.unit(5).
const section = "X-MainPID"

// request is what a Quadlet file asks for.
type request struct {
	// asks says that we serve or refuse the file. Otherwise it is left to systemd.
	asks bool
	// user is User= in [Service]; empty for root.
	user    string
	options dropin.Options
	// byPID1 says that only systemd knows the user: User= has a specifier, or there
	// is DynamicUser=.
	byPID1 bool
	err    error
}

// readRequest reads the request of a Quadlet file from the service that Quadlet
// makes of the file.
func readRequest(file string, u *unitfile.File) (r request) {
	if r.asks = asks(u); !r.asks {
		return r
	}
	if r.err = misspelling(u); r.err != nil {
		return r
	}
	for _, a := range u.Assignments {
		if a.Section != section {
			continue
		}
		value := unquoteValue(a.Value)
		switch {
		case a.Key == "User":
			r.err = fmt.Errorf("[%s] has no key User=; write User=%s in [Service]", section, value)
			return r
		case !kinds[filepath.Ext(file)].runs:
			r.err = fmt.Errorf("[%s] %s= is for files that run containers (.container, .kube, .pod); remove it from %s", section, a.Key, file)
			return r
		}
		if a.Key == "Ready" && filepath.Ext(file) != ".container" {
			r.err = fmt.Errorf("[%s] Ready= is for a file of one container (.container); remove it from %s", section, file)
			return r
		}
		if r.err = r.options.Set(a.Key, value); r.err != nil {
			r.err = fmt.Errorf("[%s] %w", section, r.err)
			return r
		}
	}
	user := u.Get("Service", "User")
	switch {
	case strings.Contains(user, "%") || isTrue(u.Get("Service", "DynamicUser")):
		r.byPID1, r.asks = true, u.Has(section)
		if r.asks {
			r.err = fmt.Errorf("User=%s in [Service]: only systemd knows which user this is; write the user's name", user)
		}
	case user != "" && user != "root" && user != "0":
		r.user = user
	case u.Has(section):
		r.err = fmt.Errorf("[%s] counts only with a user; write User=NAME in [Service], with the name of a user who is not root", section)
	default:
		r.asks = false
	}
	return r
}

// isTrue reads a boolean, systemd.syntax(7).
func isTrue(v string) bool {
	switch strings.ToLower(v) {
	case "1", "yes", "y", "true", "t", "on":
		return true
	}
	return false
}

// isFalse reads a boolean, systemd.syntax(7).
func isFalse(v string) bool {
	switch strings.ToLower(v) {
	case "0", "no", "n", "false", "f", "off":
		return true
	}
	return false
}

// misspelling returns an error for a section or key that neither systemd nor
// Quadlet reads, but with which the author meant the user or the options. Without
// the error, such a container would silently be root's.
func misspelling(u *unitfile.File) error {
	for _, s := range u.Sections {
		if s != section && meansSection(s) {
			return fmt.Errorf("section [%s]: write [%s]", s, section)
		}
	}
	for _, a := range u.Assignments {
		switch {
		case a.Section == "Service" && a.Key != "User" && meansUser(a.Key):
			return fmt.Errorf("%s= in [Service] is no key of systemd's; write User=%s", a.Key, a.Value)
		case a.Key == "User" && !isKnownSection(a.Section):
			return fmt.Errorf("neither systemd nor Quadlet reads User= in [%s]; write User=%s in [Service]", a.Section, a.Value)
		}
	}
	return nil
}

// Whether we serve or refuse a file is decided by sectionAsks and keyAsks alone,
// for a parsed file (asks) as for the bytes of one (textAsks).

// sectionAsks reports whether a section with this name is enough for that.
func sectionAsks(name string) bool { return name == section || meansSection(name) }

// keyAsks reports whether a key in a section is enough for that.
func keyAsks(section, key string) bool {
	return section == "Service" && meansUser(key) || key == "User" && !isKnownSection(section)
}

// asks reports whether we serve or refuse a unit file with its drop-ins. A
// misspelt section or key counts, too.
func asks(u *unitfile.File) bool {
	for _, s := range u.Sections {
		if sectionAsks(s) {
			return true
		}
	}
	for i := range u.Assignments {
		if a := &u.Assignments[i]; keyAsks(a.Section, a.Key) {
			return true
		}
	}
	return false
}

// textAsks is asks for the text of a file. Every Quadlet file is read by it at
// every boot, so it parses no more than it must.
func textAsks(text []byte) bool {
	inSection, known := "", true
	for len(text) > 0 {
		line := text
		if i := bytes.IndexAny(text, "\n\r"); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		line = bytes.TrimLeft(line, " \t")
		switch {
		case len(line) == 0 || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			name, _, _ := bytes.Cut(line[1:], []byte("]"))
			if inSection = string(name); sectionAsks(inSection) {
				return true
			}
			known = inSection != "Service" && isKnownSection(inSection)
		case known:
		default:
			key, _, ok := bytes.Cut(line, []byte("="))
			if key = bytes.TrimRight(key, " \t"); ok && len(key) <= len("User")+1 && keyAsks(inSection, string(key)) {
				return true
			}
		}
	}
	return false
}

// knownSections are the sections that systemd or Quadlet reads.
var knownSections = func() map[string]bool {
	known := map[string]bool{"": true, "Unit": true, "Service": true, "Install": true, "Quadlet": true, "X-Quadlet": true, section: true}
	for _, k := range kinds {
		known[k.section], known["X-"+k.section] = true, true
	}
	return known
}()

func isKnownSection(name string) bool { return knownSections[name] }

// meansSection reports whether the name of a section is nearly X-MainPID.
func meansSection(name string) bool {
	if name == section || len(name) > 2*len(section) {
		return false
	}
	letters := func(r rune) rune {
		switch r {
		case '-', '_', ' ', '\u2010', '\u2011', '\u2012', '\u2013', '\u2014', '\u2212':
			return -1
		}
		return r
	}
	plain := strings.ToLower(strings.Map(letters, name))
	return isSlip(plain, "xmainpid") || isSlip(plain, "mainpid")
}

// meansUser reports whether a key of [Service] is User= or nearly User=. No other
// key in systemd.exec(5) and systemd.service(5) is as near.
func meansUser(key string) bool {
	return key == "User" || len(key) <= len("User")+1 && isSlip(strings.ToLower(key), "user")
}

// isSlip reports whether word is want, or differs from want by one letter that is
// added, missing or replaced, or by two neighbouring letters in the wrong order.
func isSlip(word, want string) bool {
	i := 0
	for i < len(word) && i < len(want) && word[i] == want[i] {
		i++
	}
	a, b := word[i:], want[i:]
	switch {
	case len(a) == len(b)+1:
		return a[1:] == b
	case len(a)+1 == len(b):
		return a == b[1:]
	case len(a) != len(b):
		return false
	case len(a) == 0 || a[1:] == b[1:]:
		return true
	}
	return len(a) >= 2 && a[0] == b[1] && a[1] == b[0] && a[2:] == b[2:]
}
