package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// unitVariable is what the units of the fleet set for podman and for their
// containers: the unit's name.
const unitVariable = "SOAK_UNIT"

// process is one of the machine's.
type process struct {
	pid, parent, uid int
	name             string // the first of its command line, or in brackets the name that the kernel has
	cgroup           string
	unit             string // whose it is, "" if nobody's
	invocation       string
}

func (p process) String() string {
	return fmt.Sprintf("%s, process %d of UID %d in %s", p.name, p.pid, p.uid, p.cgroup)
}

var containerCgroup = regexp.MustCompile(`/libpod-(?:conmon-)?([0-9a-f]{64})\b`)

// processes returns all that live; those that have ended and were not waited
// for do not.
func processes(t *trap) map[int]process {
	all := map[int]process{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := readProcess(pid, t); ok {
				all[pid] = p
			}
		}
	}
	return all
}

func readProcess(pid int, t *trap) (process, bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return process{}, false
	}
	p := process{pid: pid}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch key {
		case "Name":
			p.name = "[" + fields[0] + "]"
		case "State":
			if fields[0] == "Z" || fields[0] == "X" {
				return p, false
			}
		case "PPid":
			p.parent, _ = strconv.Atoi(fields[0])
		case "Uid":
			p.uid, _ = strconv.Atoi(fields[0])
		}
	}
	if text, _ := os.ReadFile(dir + "cmdline"); len(text) > 0 {
		p.name = strings.TrimSpace(strings.ReplaceAll(fmt.Sprintf("%.60s", text), "\x00", " "))
	}
	text, _ := os.ReadFile(dir + "cgroup")
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			p.cgroup = strings.TrimSpace(path)
		}
	}
	env := environ(pid)
	p.unit, p.invocation = env[unitVariable], env["INVOCATION_ID"]
	if id := containerCgroup.FindStringSubmatch(p.cgroup); p.unit == "" && id != nil && t != nil {
		p.unit = t.unit(id[1])
	}
	if service := filepath.Base(strings.TrimPrefix(p.cgroup, "/system.slice/")); p.unit == "" && strings.HasPrefix(p.cgroup, "/system.slice/") {
		p.unit = service
	}
	if p.pause() {
		p.unit = ""
	}
	return p, true
}

// pause reports whether the process is what keeps a user's namespaces, that of
// the networks with their name server too: they are all containers' of the user,
// and outlive them.
func (p process) pause() bool {
	return strings.HasPrefix(p.name, "catatonit -P") || strings.HasPrefix(p.name, "/usr/lib/podman/aardvark-dns") || slices.ContainsFunc([]string{"/podman-pause-", "/oci-mainpid-pause@", "/rootless-netns-"},
		func(name string) bool { return strings.Contains(p.cgroup, name) })
}

// manager reports whether the process is the user's manager, its helper or
// the user's bus.
func (p process) manager() bool {
	return strings.Contains(p.cgroup, "/init.scope") || strings.HasSuffix(p.cgroup, "/dbus.service")
}
