package diagnosis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/census"
	"oci-mainpid-hook/internal/containersconf"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/status"
	"oci-mainpid-hook/internal/unitfile"
)

// Reader gathers facts.
type Reader struct {
	manager   *manager.Manager
	machine   Machine
	installed string // directory into which our hook's JSON is installed
	programs  dropin.Programs
	planner   *planner
	accounts  *account.Accounts
	tasksMax  uint64
	conmons   func() (census.Census, error)
	// listening is the function of that name, called once.
	listening func() map[string]bool
	// removesIPC is manager.RemovesIPC, called once.
	removesIPC func() bool
}

// NewReader gathers the facts about the machine.
func NewReader(ctx context.Context, m *manager.Manager) (*Reader, error) {
	r := &Reader{manager: m, programs: dropin.FindPrograms(), planner: newPlanner(ctx), accounts: &account.Accounts{}}
	var err error
	if r.machine.Systemd, err = m.Version(); err != nil {
		return nil, err
	}
	if r.tasksMax, err = m.DefaultTasksMax(); err != nil {
		return nil, err
	}
	r.conmons = sync.OnceValues(func() (census.Census, error) { return census.Take(ctx, nil, conmonbridge.Executables) })
	r.listening = sync.OnceValue(listening)
	r.removesIPC = sync.OnceValue(func() bool { return manager.RemovesIPC(ctx) })
	r.readMachine(ctx)
	if processes, err := r.conmons(); err != nil {
		r.machine.LeftOut = []string{err.Error()}
	} else {
		for _, l := range processes.LeftOut {
			r.machine.LeftOut = append(r.machine.LeftOut, l.String())
		}
	}
	return r, nil
}

// Machine returns the facts about the machine.
func (r *Reader) Machine() Machine { return r.machine }

func (r *Reader) readMachine(ctx context.Context) {
	m := &r.machine
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	var fs unix.Statfs_t
	m.CgroupV2 = unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
	m.Controllers = fields("/sys/fs/cgroup/cgroup.controllers")
	m.Sysctls = map[string]string{}
	for _, name := range []string{ptraceScope, maxUserNS, unprivilegedNS, apparmorUserNS} {
		if b, err := os.ReadFile("/proc/sys/" + name); err == nil {
			m.Sysctls[name] = strings.TrimSpace(string(b))
		}
	}

	m.Podman = versioned(ctx, look("podman"))
	m.Settings, m.Problems = containersconf.Reader{System: containersconf.SystemFiles, Podman6: m.podman6()}.Read(ctx)
	m.Conmon = versioned(ctx, findConmon(m.Settings.ConmonPath))
	m.Runtime = versioned(ctx, findRuntime(m.Settings.Runtime))
	m.NewUIDMap, m.NewGIDMap = look("newuidmap"), look("newgidmap")

	m.Self = r.programs.OCIMainPID
	m.NotifyMainPID = program(r.programs.NotifyMainPID)
	prefix := filepath.Dir(filepath.Dir(m.Self))
	r.installed = filepath.Join(prefix, "share/containers/oci/hooks.d")
	m.Hook = r.findHook(ctx, m.Settings)
	for _, dir := range []string{"/run/systemd", "/etc/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd"} {
		if g := program(dir + "/system-generators/oci-mainpid-generator"); g.Path != "" && m.Generator.Path == "" {
			m.Generator = g
		}
	}
	switch b, err := os.ReadFile("/sys/fs/selinux/enforce"); {
	case err != nil:
	case strings.TrimSpace(string(b)) == "1":
		m.SELinux = "enforcing"
	default:
		m.SELinux = "permissive"
	}
	m.PolicyFile = filepath.Join(prefix, "share/selinux/packages/oci_mainpid.cil")
	label := make([]byte, 256)
	if n, err := unix.Lgetxattr("/run/oci-mainpid", "security.selinux", label); err == nil {
		m.PolicyModule = bytes.Contains(label[:n], []byte(":oci_mainpid_runtime_t"))
	}
	b, err := os.ReadFile("/sys/fs/selinux/booleans/oci_mainpid_users")
	m.UsersOff = err == nil && strings.HasPrefix(string(b), "0")
	b, err = os.ReadFile("/sys/module/apparmor/parameters/enabled")
	m.AppArmor = err == nil && strings.HasPrefix(string(b), "Y")
	_, err = os.Stat("/etc/apparmor.d/podman")
	m.PodmanProfile = err == nil
	m.Denials = denials(ctx)
}

// findHook looks for our hook's JSON where podman looks for it. If it is not there,
// findHook looks where it is installed, too.
func (r *Reader) findHook(ctx context.Context, s containersconf.Settings) Hook {
	h := findHook(ctx, s.HooksDir)
	if h.JSON == "" {
		h.Installed = findHook(ctx, []string{r.installed, containersconf.DefaultHooksDir}).JSON
	}
	return h
}

func fields(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// look finds a program in root's PATH.
func look(name string) Program {
	path, err := exec.LookPath(name)
	if err != nil {
		return Program{}
	}
	return program(path)
}

// program returns the program with that path, or an empty Program if there is none.
func program(path string) Program {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return Program{}
	}
	p := Program{Path: path, Privileged: info.Mode()&os.ModeSetuid != 0}
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		p.Unsafe = st.Uid != 0 || st.Mode&0o022 != 0
	}
	if n, err := unix.Getxattr(path, "security.capability", nil); err == nil && n > 0 {
		p.Privileged = true
	}
	return p
}

// findConmon finds conmon as podman does: at the first path that exists.
func findConmon(paths []string) Program {
	if len(paths) == 0 {
		paths = conmonbridge.Executables
	}
	for _, path := range paths {
		if p := program(path); p.Path != "" {
			return p
		}
	}
	return Program{}
}

// findRuntime finds the OCI runtime: the one in containers.conf, or else the first of
// podman's defaults that is installed.
func findRuntime(name string) Program {
	switch {
	case filepath.IsAbs(name):
		return program(name)
	case name != "":
		return look(name)
	}
	if p := look("crun"); p.Path != "" {
		return p
	}
	return look("runc")
}

// versionTimeout bounds programs that are asked for their version.
const versionTimeout = 10 * time.Second

// versioned asks a program of root's for its version.
func versioned(ctx context.Context, p Program) Program {
	if p.Path == "" || p.Unsafe {
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.Path, "--version")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	out, err := cmd.Output()
	if err == nil {
		p.Version = regexp.MustCompile(`\d+(\.\d+)+`).FindString(string(out[:min(len(out), 4096)]))
	}
	return p
}

// denied are the programs whose denials are reported, by their names in the kernel,
// which have at most 15 bytes.
var denied = []string{"podman", "conmon", "crun", "runc", "oci-mainpid-hoo", "notify-mainpid", "oci-mainpid", "pasta", "newuidmap", "newgidmap", "netavark", "fuse-overlayfs"}

// Bounds for the search for denials.
const (
	maxAuditEntries = 5000
	maxAuditLog     = 4 << 20
)

// denials returns the messages about what SELinux or AppArmor denied to our programs
// since boot, oldest first. They are from the journal, or else from auditd's log.
func denials(ctx context.Context) []string {
	var found []string
	q := journal.Query{Matches: []string{"_TRANSPORT=audit", "+", "_TRANSPORT=kernel"}, Boot: true, Newest: true, Most: maxAuditEntries}
	err := journal.Read(ctx, q, func(e journal.Entry) bool {
		if isDenial(e.Message) {
			found = append(found, e.Message)
		}
		return true
	})
	if err != nil {
		return nil // no journal, no denials: the point says what is known
	}
	slices.Reverse(found)
	if len(found) > 0 {
		return found
	}
	return auditLog("/var/log/audit/audit.log", bootTime())
}

// auditLog searches the end of auditd's log.
func auditLog(path string, since time.Time) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	} else if info.Size() > maxAuditLog {
		f.Seek(-maxAuditLog, io.SeekEnd)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxAuditLog))
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if isDenial(line) && !auditTime(line).Before(since) {
			found = append(found, line)
		}
	}
	return found
}

// ofContainers are in a line about SELinux domains of podman or conmon, or our type of
// files. systemd mounts /run/oci-mainpid by a program of another name.
var ofContainers = regexp.MustCompile(` scontext=[^ ]*:(podman_|container_runtime_)|:oci_mainpid_runtime_t`)

// isDenial reports whether a line of the audit log is about a denial for one of the
// programs in denied, or of what they need.
func isDenial(line string) bool {
	if !strings.Contains(line, "avc:  denied") && !strings.Contains(line, `apparmor="DENIED"`) {
		return false
	}
	if ofContainers.MatchString(line) {
		return true
	}
	for _, key := range []string{` comm="`, ` profile="`} {
		if _, rest, ok := strings.Cut(line, key); ok {
			name, _, _ := strings.Cut(rest, `"`)
			if slices.Contains(denied, filepath.Base(name)) {
				return true
			}
		}
	}
	return false
}

// auditTime returns when a line was written, msg=audit(1700000000.123:45).
func auditTime(line string) time.Time {
	_, rest, _ := strings.Cut(line, "audit(")
	digits, _, _ := strings.Cut(rest, ".")
	sec, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(sec, 0)
}

func bootTime() time.Time {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(now.Nano()))
}

// Unit gathers the facts about a unit.
func (r *Reader) Unit(ctx context.Context, name string) UnitFacts {
	u := UnitFacts{Name: name, Offered: r.machine.Controllers}
	u.Unit, u.Err = r.manager.Unit(ctx, name)
	if u.Err != nil {
		u.Dropin.Planned = r.planner.generator().Of(name)
		return u
	}
	u.Dropin = r.planner.compare(ctx, u.Unit)
	u.Limits = limitSettings(u.Unit, r.tasksMax)
	if u.Unit.Ours() || u.Unit.User != "" {
		u.Status = r.status(ctx, u.Unit)
	}
	if u.Unit.User == "" {
		return u
	}
	if u.Account, u.AccountErr = r.accounts.Lookup(ctx, u.Unit.User); u.AccountErr != nil {
		u.Settings, u.Problems, u.Hook = r.machine.Settings, r.machine.Problems, r.machine.Hook
	} else {
		u.SharedIDs, u.FreeIDs = r.accounts.SharesIDsWith(u.Account), r.accounts.FreeIDs(u.Account.UID)
		r.readUser(ctx, &u)
		r.readNeeds(ctx, &u)
	}
	return u
}

func (r *Reader) status(ctx context.Context, u *manager.Unit) status.Service {
	processes, _ := r.conmons() // none, if there is an error
	if executables := u.Conmon(); !slices.Equal(executables, conmonbridge.Executables) {
		processes, _ = census.Take(ctx, map[int]bool{u.UID: true}, executables)
	}
	return status.Of(u, processes.Conmons)
}

// readUser gathers the facts about the unit's user.
func (r *Reader) readUser(ctx context.Context, u *UnitFacts) {
	uid := strconv.Itoa(u.Account.UID)
	u.Home = HomeOf(u.Account)
	config := u.Unit.Env("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(u.Home.Path, ".config")
	}
	u.Settings, u.Problems = containersconf.Reader{
		System: containersconf.SystemFiles, Home: u.Home.Path, Config: config, UID: u.Account.UID, Podman6: r.machine.podman6(),
	}.Read(ctx)
	podman, _ := u.Unit.Podman()
	if dir, ok := podman.Global("hooks-dir"); ok {
		u.Settings.HooksDir, u.Settings.HooksDirFrom = []string{dir}, "podman's --hooks-dir"
	}
	u.Hook = r.findHook(ctx, u.Settings)

	service := u.Account.Manager()
	if m, err := r.manager.Unit(ctx, service); err == nil {
		u.UserManager = m
		runtime, err := r.manager.Unit(ctx, "user-runtime-dir@"+uid+".service")
		// systemd-logind does not stop units that refuse a manual stop.
		u.ManagerStays = err == nil && m.Properties.Bool("RefuseManualStop") && runtime.Properties.Bool("RefuseManualStop")
		u.Controllers = fields(filepath.Join("/sys/fs/cgroup", m.ControlGroup, "cgroup.controllers"))
	}
	if _, err := os.Lstat("/var/lib/systemd/linger/" + u.Account.Name); err == nil {
		u.ManagerStays = true
	} else {
		u.LosesLocks = r.removesIPC() && !u.Account.IsSystem()
	}
	var st unix.Stat_t
	dir := u.Account.RuntimeDir()
	u.RuntimeDir = unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == u.Account.UID
	u.Bus = unix.Lstat(dir+"/bus", &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

// HomeOf judges the user's home directory.
func HomeOf(a account.Account) Home {
	if a.Home == "" {
		return Home{Err: errors.New("the user has no home directory")}
	}
	h := Home{Path: a.Home}
	var st unix.Statx_t
	// The file system may be the user's own, fuse(4), and never answer. With
	// AT_STATX_DONT_SYNC the kernel does not ask it.
	switch err := unix.Statx(unix.AT_FDCWD, h.Path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_UID, &st); {
	case err != nil:
		h.Err = fmt.Errorf("%s: %w; podman keeps images and containers there", h.Path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		h.Err = fmt.Errorf("%s is not a directory", h.Path)
	case int(st.Uid) != a.UID:
		h.Err = fmt.Errorf("%s belongs to UID %d, not to %s", h.Path, st.Uid, a.Name)
	}
	return h
}

// Wanted returns the services for which the generator makes a drop-in, whether or not
// systemd has read that drop-in.
func (r *Reader) Wanted() []string {
	var names []string
	for _, d := range r.planner.generator().Decisions {
		if !unitfile.IsTemplate(d.Service) {
			names = append(names, d.Service)
		}
	}
	return names
}
