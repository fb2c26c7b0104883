package diagnosis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/rootpath"
	"oci-mainpid-hook/internal/terminal"
)

// Need is something that a start needs and that is not there.
type Need struct {
	// Found says what is missing, Fix what to type or to write.
	Found, Fix string
}

// needs judges what the unit's podman is told to use.
func (u UnitFacts) needs(p *points) {
	const what = "needs"
	for _, n := range u.Needs {
		p.fail(what, n.Found, n.Fix)
	}
	if d := u.Dropin.Planned; d != nil && d.SameContainer != "" {
		p.warn(what, "a container name of its own: "+d.SameContainer+" has the same, and each start removes the other's container", "write another ContainerName=, then: systemctl daemon-reload")
	} else if len(u.Needs) == 0 {
		p.ok(what, "nothing is known to be missing")
	}
}

// maxSockets bounds how much of each table of sockets is read, in bytes.
const maxSockets = 4 << 20

// listening returns the ports of this machine that somebody listens on, such as
// "80/tcp", by proc_net(5).
func listening() map[string]bool {
	ports := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := os.Open("/proc/net/" + table)
		if err != nil {
			continue
		}
		addListening(ports, io.LimitReader(f, maxSockets), strings.TrimSuffix(table, "6"))
		f.Close()
	}
	return ports
}

// addListening adds the ports in a table of sockets: those of TCP in the state
// listening, 0A, and of UDP without a peer, 07.
func addListening(ports map[string]bool, table io.Reader, protocol string) {
	state := map[string]string{"tcp": "0A", "udp": "07"}[protocol]
	for lines := bufio.NewScanner(table); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != state {
			continue
		}
		_, hex, _ := strings.Cut(fields[1], ":")
		if port, err := strconv.ParseUint(hex, 16, 16); err == nil {
			ports[fmt.Sprintf("%d/%s", port, protocol)] = true
		}
	}
}

// maxPorts bounds how many ports of a unit are looked at.
const maxPorts = 1000

// hostPorts returns the ports of the machine that a value of podman's --publish names,
// such as "80/tcp": [[IP:]HOST:]CONTAINER[/PROTOCOL], where each may be a range.
func hostPorts(value string) (ports []string) {
	value, protocol, _ := strings.Cut(value, "/")
	if protocol == "" {
		protocol = "tcp"
	}
	if i := strings.LastIndexByte(value, ']'); i >= 0 { // of an IPv6 address
		value = value[i+1:]
	}
	parts := strings.Split(value, ":")
	if len(parts) < 2 {
		return nil // podman chooses
	}
	first, last, isRange := strings.Cut(parts[len(parts)-2], "-")
	if !isRange {
		last = first
	}
	from, err := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err != nil || err2 != nil || to-from >= maxPorts {
		return nil
	}
	for port := from; port <= to; port++ {
		ports = append(ports, fmt.Sprintf("%d/%s", port, protocol))
	}
	return ports
}

// readNeeds finds what the unit needs and lacks.
func (r *Reader) readNeeds(ctx context.Context, u *UnitFacts) {
	add := func(found, fix string) {
		if n := (Need{found, fix}); len(u.Needs) < 20 && !slices.Contains(u.Needs, n) {
			u.Needs = append(u.Needs, n)
		}
	}
	unprivileged, err := strconv.Atoi(strings.Join(fields("/proc/sys/net/ipv4/ip_unprivileged_port_start"), ""))
	if err != nil {
		unprivileged = 0
	}
	down := u.Unit.ActiveState == "inactive" || u.Unit.ActiveState == "failed"
	var commands []podmancmd.Podman
	for _, c := range slices.Concat(u.Unit.Pre, u.Unit.Start) {
		if len(c.Arguments) == 0 || c.AsRoot() {
			continue
		}
		if p, ok := podmancmd.ParseArguments(c.Path, c.Arguments[1:]); ok {
			commands = append(commands, p)
		}
	}
	for _, p := range commands {
		for _, value := range values(p, "publish", "p") {
			for _, port := range hostPorts(value) {
				number, _, _ := strings.Cut(port, "/")
				if n, _ := strconv.Atoi(number); n > 0 && n < unprivileged {
					add(fmt.Sprintf("port %s is below %d, where only root may listen", port, unprivileged),
						fmt.Sprintf("sysctl net.ipv4.ip_unprivileged_port_start=%d, and the same in a file of /etc/sysctl.d; or publish a port from %d on", n, unprivileged))
				} else if down && r.listening()[port] {
					add("port "+port+" is in use", "see who listens: ss -lnp 'sport = :"+number+"'")
				}
			}
		}
		for _, path := range values(p, "env-file") {
			u.needsFile(add, "the file of --env-file (EnvironmentFile= in [Container])", path, true)
		}
		for _, value := range values(p, "volume", "v") {
			path, _, _ := strings.Cut(value, ":")
			if strings.HasPrefix(path, "~") {
				add("the source of --volume (Volume=), "+path+": podman knows no ~", "write %h for the home of "+u.Account.Name+", then: systemctl daemon-reload")
			}
			u.needsFile(add, "the source of --volume (Volume=)", path, false)
		}
		for _, value := range values(p, "mount") {
			if path := bindSource(value); path != "" {
				u.needsFile(add, "the source of --mount (Mount=)", path, false)
			}
		}
		if path := imageFile(p); path != "" {
			u.needsFile(add, "the image (Image=)", path, true)
		}
		if p.PlaysKube() && len(p.Arguments()) > 0 {
			u.needsFile(add, "the kube file (Yaml=)", p.Arguments()[0], true)
		}
		u.needsOfStore(add, p, commands)
	}
	for _, key := range []string{"Requires", "BindsTo", "Requisite"} {
		for _, name := range u.Unit.Properties.Strings(key) {
			if !strings.HasSuffix(name, ".service") {
				continue
			}
			if _, err := r.manager.Unit(ctx, name); errors.Is(err, manager.ErrNoUnit) {
				add(fmt.Sprintf("%s=%s: systemd knows no such unit", key, name), "write its file, or remove the line, then: systemctl daemon-reload")
			}
		}
	}
}

// values returns all values of podman's options of these names.
func values(p podmancmd.Podman, names ...string) (found []string) {
	for _, name := range names {
		for _, o := range p.All(name) {
			found = append(found, o.Value)
		}
	}
	return found
}

// bindSource returns the source in a value of podman's --mount, if that is a bind mount.
func bindSource(value string) (source string) {
	isBind := false
	for _, part := range strings.Split(value, ",") {
		switch key, text, _ := strings.Cut(part, "="); key {
		case "type":
			isBind = text == "bind"
		case "src", "source":
			source = text
		}
	}
	if !isBind {
		return ""
	}
	return source
}

// imageFile returns the file or directory from which podman is to take the image of a
// container, "" for an image by name, containers-transports(5).
func imageFile(p podmancmd.Podman) string {
	if !p.CreatesContainer() || len(p.Arguments()) == 0 {
		return ""
	}
	transport, path, _ := strings.Cut(p.Arguments()[0], ":")
	switch transport {
	case "dir", "docker-archive", "oci", "oci-archive":
		path, _, _ = strings.Cut(path, ":")
		return path
	}
	return ""
}

// needsFile looks at a file that podman opens as the unit's user, as far as nobody but
// root can change what is there.
func (u *UnitFacts) needsFile(add func(found, fix string), what, path string, read bool) {
	if !filepath.IsAbs(path) {
		return
	}
	name := terminal.Quote(path)
	mode, err := rootpath.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		add(fmt.Sprintf("%s, %s, is not there", what, path), "make it, or remove the line")
	case err != nil: // what is the user's is theirs to judge
	case read && mode&0o044 == 0:
		add(fmt.Sprintf("%s, %s, is root's only: podman reads it as %s", what, path, u.Account.Name), fmt.Sprintf("chgrp %s %s && chmod g+r %[2]s", terminal.Quote(u.Account.Name), name))
	default:
		for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
			if mode, err := rootpath.Stat(dir); err == nil && mode&0o011 == 0 {
				add(fmt.Sprintf("%s, %s, is in %s, which only root may enter", what, path, dir), "move it, or: chmod o+x "+terminal.Quote(dir))
				return
			}
		}
	}
}
