package quadlet

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/unitfile"
)

// span is a part of a line, from start to end.
type span struct{ start, end int }

// moveSpecifiers replaces the specifiers of line[start:end] that are root's in the
// system manager (systemd.unit(5)) by what they are for the unit's user: the runtime
// directory, the home, the name and the numbers. It leaves alone what is removed.
func (d *deriver) moveSpecifiers(e *unitfile.Edits, line string, start, end int, removed []span) {
	for i := start; i+1 < end; i++ {
		if line[i] != '%' {
			continue
		}
		text, isPath := d.userSpecifier(line[i+1])
		if text != "" && !slices.ContainsFunc(removed, func(r span) bool { return r.start <= i && i < r.end }) {
			if isPlain(text) {
				e.Replace(i, i+2, text)
			} else if isPath {
				d.warn("%s: %%%c is root's; write %s", unitfile.Clip(line), line[i+1], text)
			}
		}
		i++ // %% and every other specifier
	}
}

// userSpecifier returns what a specifier is for the unit's user, "" for one that is
// the same for every user.
func (d *deriver) userSpecifier(letter byte) (text string, isPath bool) {
	switch letter {
	case 't':
		return d.Account.RuntimeDir(), true
	case 'h':
		return d.Account.Home, true
	case 'u':
		return d.Account.Name, false
	case 'U':
		return strconv.Itoa(d.Account.UID), false
	case 'G':
		return strconv.Itoa(d.Account.GID), false
	}
	return "", false
}

// isPlain reports whether text means itself in a unit's command line, in quotes or
// without.
func isPlain(text string) bool {
	return strings.IndexFunc(text, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune("/._-+@:", r))
	}) < 0
}

// hasHome reports whether a value has the specifier %h.
func hasHome(value string) bool {
	return strings.Contains(strings.ReplaceAll(value, "%%", ""), "%h")
}

// adviseHome warns of each %h that systemd itself reads, as root's home.
func (d *deriver) adviseHome() {
	for _, a := range d.unit.Assignments {
		if a.Section == "Service" && hasHome(a.Value) && !strings.HasPrefix(a.Key, "Exec") {
			d.warn("%s=%s: %%h is root's home here; write %s", a.Key, unitfile.Clip(a.Value), d.Account.Home)
		}
	}
}

// podmanSocket is where podman.socket listens, below /run or a user's runtime
// directory.
const podmanSocket = "/podman/podman.sock"

// enableSocket is a line to type, as root, that starts the user's podman.socket, without
// a session and without root's terminal.
func (d *deriver) enableSocket() string {
	return fmt.Sprintf("systemd-run --wait --uid=%d --setenv=XDG_RUNTIME_DIR=%s systemctl --user enable --now podman.socket", d.Account.UID, d.Account.RuntimeDir())
}

// advisePaths warns of what a podman of the unit's is told to use and a user does not
// have.
func (d *deriver) advisePaths(key string, p podmancmd.Podman, line string) {
	switch {
	case strings.Contains(line, "%t"+podmanSocket), strings.Contains(line, d.Account.RuntimeDir()+podmanSocket):
		d.warn("%s=: %s%s is there only if podman.socket of %s runs; type once: %s", key, d.Account.RuntimeDir(), podmanSocket, d.Account.Name, d.enableSocket())
	case strings.Contains(line, "/run"+podmanSocket):
		d.warn("%s=: /run%s is root's, and %s may not open it; write %%t%[2]s", key, podmanSocket, d.Account.Name)
	}
	for _, name := range []string{"cidfile", "conmon-pidfile", "infra-conmon-pidfile", "pidfile", "pod-id-file"} {
		if path, _ := p.Last(name); d.isRootsRun(path) {
			d.warn("%s=: --%s=%s: %s can create nothing in /run; write %%t/%s", key, name, path, d.Account.Name, filepath.Base(path))
		}
	}
	for _, name := range []string{"network", "net"} {
		for _, o := range p.All(name) {
			if network, _, _ := strings.Cut(o.Value, ":"); d.isMadeByHand(network) {
				d.Networks = append(d.Networks, network)
				d.warn("%s=: the network %s must be there for %s; type once: oci-mainpid podman --user=%[3]s network create --ignore %[2]s; or write %[2]s.network", key, network, d.Account.Name)
			}
		}
	}
}

// isRootsRun reports whether a path is in /run and not in a directory that the user
// has there.
func (d *deriver) isRootsRun(path string) bool {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(path, "/var"), "/run/")
	if !ok || strings.HasPrefix("/run/"+rest, d.Account.RuntimeDir()+"/") {
		return false
	}
	for _, value := range d.unit.List("Service", "RuntimeDirectory") {
		for _, dir := range strings.Fields(value) {
			if strings.HasPrefix(rest, dir+"/") {
				return false
			}
		}
	}
	return true
}

// isMadeByHand reports whether a network of podman's is one that no unit makes.
func (d *deriver) isMadeByHand(network string) bool {
	switch network {
	case "", "bridge", "container", "default", "host", "none", "ns", "pasta", "podman", "private", "slirp4netns":
		return false
	}
	if strings.ContainsAny(network, ",%$") {
		return false
	}
	if !d.madeByQuadlet {
		return true
	}
	// Quadlet keeps the settings of its own section under another name.
	for _, section := range []string{"X-Container", "X-Pod", "X-Kube"} {
		for _, value := range d.unit.List(section, "Network") {
			if name, _, _ := strings.Cut(value, ":"); name == network {
				return true
			}
		}
	}
	return false
}
