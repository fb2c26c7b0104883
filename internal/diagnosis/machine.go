package diagnosis

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/containersconf"
	"oci-mainpid-hook/internal/terminal"
)

// Program is a program that must be installed.
type Program struct {
	Path    string // empty if it was not found
	Version string // empty if the program does not print one
	// Unsafe says that users other than root may change the file.
	Unsafe bool
	// Privileged says that the file is setuid or has capabilities.
	Privileged bool
}

// Machine is what is known of a machine.
type Machine struct {
	Systemd  string // version
	Kernel   string // release
	CgroupV2 bool
	// Controllers are the controllers that the kernel offers, cgroups(7).
	Controllers []string
	// Sysctls are kernel settings, by their paths below /proc/sys. A setting that
	// the kernel does not have is not in the map.
	Sysctls map[string]string

	Podman, Conmon, Runtime, NewUIDMap, NewGIDMap Program
	NotifyMainPID, Generator                      Program
	Self                                          string // path of oci-mainpid

	Settings containersconf.Settings // of the system, for all users
	Problems []error                 // with the files of Settings
	Hook     Hook

	// SELinux is "enforcing", "permissive" or empty. AppArmor says whether AppArmor
	// is on. Denials are messages about what they denied to our programs since boot.
	SELinux  string
	AppArmor bool
	// PolicyModule says that /run/oci-mainpid has the type of our policy module's,
	// UsersOff that the module's boolean is off.
	PolicyModule, UsersOff bool
	// PolicyFile is what to install for it.
	PolicyFile string
	// PodmanProfile says that AppArmor has a profile for podman.
	PodmanProfile bool
	Denials       []string

	// LeftOut says which processes of users were not read, and why.
	LeftOut []string
}

// The first versions of systemd with what we need.
const (
	barrierVersion  = 246 // BARRIER=1, sd_notify(3)
	openFileVersion = 253 // OpenFile=, systemd.service(5)
)

// Names of sysctls.
const (
	ptraceScope      = "kernel/yama/ptrace_scope"
	maxUserNS        = "user/max_user_namespaces"
	unprivilegedNS   = "kernel/unprivileged_userns_clone"             // Debian's
	apparmorUserNS   = "kernel/apparmor_restrict_unprivileged_userns" // Ubuntu's
	ptraceScopeNever = "3"
)

// Points judges the machine.
func (m Machine) Points() []Point {
	p := &points{}
	m.systemd(p)
	m.kernel(p)
	m.cgroups(p)
	m.podman(p)
	m.idmap(p)
	m.installed(p)
	m.denials(p)
	for _, l := range m.LeftOut {
		p.warn("processes", l, "ps -C conmon -o pid,user,comm; ask the user what they are for")
	}
	return p.list
}

// number returns the number at the beginning of a version: 257 for "257.13-1".
func number(version string) int {
	n, err := strconv.Atoi(version[:len(version)-len(strings.TrimLeft(version, "0123456789"))])
	if err != nil {
		return 0
	}
	return n
}

// atLeast compares versions such as "5.4.2".
func atLeast(version string, want ...int) bool {
	parts := strings.SplitN(version, ".", len(want)+1)
	for i, w := range want {
		have := 0
		if i < len(parts) {
			have = number(parts[i])
		}
		if have != w {
			return have > w
		}
	}
	return true
}

func (m Machine) systemd(p *points) {
	switch v := number(m.Systemd); {
	case v < barrierVersion:
		p.fail("systemd", fmt.Sprintf("%s does not answer BARRIER=1, so notify-mainpid cannot know that it took the main PID", m.Systemd),
			fmt.Sprintf("upgrade to systemd %d or later", barrierVersion))
	case v < openFileVersion:
		p.warn("systemd", m.Systemd+" has no OpenFile=: the mainpid file belongs to the user instead",
			"nothing; notify-mainpid verifies what is in it either way")
	default:
		p.ok("systemd", m.Systemd+", has OpenFile=")
	}
}

func (m Machine) kernel(p *points) {
	switch {
	case !atLeast(m.Kernel, 5, 3):
		p.fail("kernel", m.Kernel+" has no pidfd_open(2)", "boot Linux 5.6 or later")
		return
	case !atLeast(m.Kernel, 5, 6):
		p.fail("kernel", m.Kernel+" has no pidfd_getfd(2), by which the hook takes the mainpid file from podman", "boot Linux 5.6 or later")
		return
	case m.Sysctls[ptraceScope] == ptraceScopeNever:
		p.fail("kernel", "kernel.yama.ptrace_scope=3 forbids pidfd_getfd(2), by which the hook takes the mainpid file from podman",
			"set kernel.yama.ptrace_scope=2 in /etc/sysctl.d, reboot")
		return
	case m.Sysctls[maxUserNS] == "0":
		p.fail("kernel", "user.max_user_namespaces=0: users have no user namespaces", "sysctl user.max_user_namespaces=15000")
		return
	case m.Sysctls[unprivilegedNS] == "0":
		p.fail("kernel", "kernel.unprivileged_userns_clone=0: users have no user namespaces", "sysctl kernel.unprivileged_userns_clone=1")
		return
	case m.Sysctls[apparmorUserNS] == "1" && !m.PodmanProfile:
		p.warn("kernel", "kernel.apparmor_restrict_unprivileged_userns=1, and AppArmor has no profile for podman",
			"install the profile of podman (package apparmor), or: sysctl kernel.apparmor_restrict_unprivileged_userns=0")
		return
	}
	p.ok("kernel", m.Kernel+", user namespaces, pidfd_getfd")
}

func (m Machine) cgroups(p *points) {
	if !m.CgroupV2 {
		p.fail("cgroups", "/sys/fs/cgroup is not version 2: users cannot have control groups of their own",
			"boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line")
		return
	}
	found := "version 2, with " + strings.Join(m.Controllers, " ")
	if missing := missing(m.Controllers); len(missing) > 0 {
		p.warn("cgroups", fmt.Sprintf("version 2, but the kernel offers no %s: podman cannot limit that, and refuses to start containers that are to be limited", strings.Join(missing, ", ")),
			"see whether cgroup_disable= is on the kernel's command line, or a version 1 hierarchy holds it; or pids_limit=0 in containers.conf")
		return
	}
	p.ok("cgroups", found)
}

// missing returns the controllers that podman expects and that are not in controllers.
func missing(controllers []string) []string {
	var missing []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(controllers, c) {
			missing = append(missing, c)
		}
	}
	return missing
}

// podman6 reports whether podman reads its files as podman 6 does.
func (m Machine) podman6() bool { return atLeast(m.Podman.Version, 6) }

func (m Machine) podman(p *points) {
	switch {
	case m.Podman.Path == "":
		p.fail("podman", "is not installed", "install the package podman")
	case m.Podman.Version == "":
		p.warn("podman", m.Podman.Path+" does not say its version", "see: "+m.Podman.Path+" --version")
	case !atLeast(m.Podman.Version, 4, 4):
		p.warn("podman", m.Podman.Version+" has no Quadlet; units written by hand may work", "upgrade to podman 4.4 or later")
	default:
		p.ok("podman", m.Podman.Version)
	}
	switch {
	case m.Conmon.Path == "":
		p.fail("conmon", "is in none of the places where podman looks", "install the package conmon")
	case !slices.Contains(conmonbridge.Executables, m.Conmon.Path):
		p.fail("conmon", m.Conmon.Path+" (conmon_path in containers.conf) is none of those that notify-mainpid takes for conmon",
			"install conmon as "+conmonbridge.Executables[0]+", or give notify-mainpid --conmon="+terminal.Quote(m.Conmon.Path))
	case m.Conmon.Unsafe:
		p.fail("conmon", m.Conmon.Path+" may be changed by others than root, so notify-mainpid does not trust it",
			"chown root:root "+m.Conmon.Path+" && chmod 755 "+m.Conmon.Path)
	case atLeast(m.Conmon.Version, 3):
		p.warn("conmon", m.Conmon.Version+" passes on to systemd whatever a container with Notify=yes says, MAINPID= of a process of its unit, too",
			"nothing, where the container is trusted as its user is; else Notify=healthy, see SECURITY.md")
	default:
		p.ok("conmon", orPath(m.Conmon))
	}
	switch {
	case m.Runtime.Path == "":
		p.fail("runtime", "neither crun nor runc is installed, or what containers.conf names is not", "install the package crun")
	default:
		p.ok("runtime", filepath.Base(m.Runtime.Path)+" "+m.Runtime.Version)
	}
}

func orPath(p Program) string {
	if p.Version == "" {
		return p.Path
	}
	return p.Version
}

func (m Machine) idmap(p *points) {
	for _, f := range []struct {
		name string
		Program
	}{{"newuidmap", m.NewUIDMap}, {"newgidmap", m.NewGIDMap}} {
		if f.Path == "" {
			p.fail("ID mapping", f.name+" is not installed", "install the package uidmap (Debian) or shadow-utils")
			return
		}
		if !f.Privileged {
			p.fail("ID mapping", f.Path+" is neither setuid nor has it capabilities", "chmod u+s "+f.Path)
			return
		}
	}
	p.ok("ID mapping", "newuidmap, newgidmap")
}

func (m Machine) installed(p *points) {
	switch {
	case m.NotifyMainPID.Path == "":
		p.fail("notify-mainpid", "is not installed next to oci-mainpid, in ../libexec/oci-mainpid", "install oci-mainpid-hook again, whole")
	case m.NotifyMainPID.Unsafe:
		p.fail("notify-mainpid", m.NotifyMainPID.Path+" runs as root, but others may change it", "chown root:root "+m.NotifyMainPID.Path+" && chmod 755 "+m.NotifyMainPID.Path)
	default:
		p.ok("notify-mainpid", m.NotifyMainPID.Path)
	}
	m.Hook.point(p, m.Settings, m.Problems)
	if m.Generator.Path == "" {
		p.warn("generator", "oci-mainpid-generator is not where systemd looks: units of Quadlet files with User= in [Service] get no drop-in, and fail",
			"ln -s "+terminal.Quote(m.Self)+" /usr/lib/systemd/system-generators/oci-mainpid-generator")
	} else {
		p.ok("generator", m.Generator.Path)
	}
}

func (m Machine) denials(p *points) {
	name := "none"
	switch {
	case m.SELinux != "":
		name = "SELinux " + m.SELinux
	case m.AppArmor:
		name = "AppArmor"
	}
	if len(m.Denials) == 0 {
		if name != "none" {
			name += ", denied nothing to these programs since boot"
		}
		p.ok("access control", name)
		return
	}
	last := m.Denials[len(m.Denials)-1]
	fix := "journalctl -b _TRANSPORT=audit; for AppArmor: aa-logprof"
	switch {
	case m.SELinux != "" && !m.PolicyModule:
		fix = "semodule --install=" + m.PolicyFile + " && restorecon -R /run/oci-mainpid"
	case m.SELinux != "" && m.UsersOff:
		fix = "setsebool -P oci_mainpid_users on"
	case m.SELinux != "":
		fix = "ausearch -m AVC -ts boot | audit2allow -w"
	}
	p.warn("access control", fmt.Sprintf("%s: %s since boot, the last: %.200s", name, plural(len(m.Denials), "denial", "denials"), last), fix)
}

// plural counts things.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
