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

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/census"
	"oci-mainpid-hook/internal/containersconf"
	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/status"
	"oci-mainpid-hook/quadlet"
)

// Reader gathers facts.
type Reader struct {
	manager   *manager.Manager
	machine   Machine
	installed string // directory of our hook's JSON as it is installed
	comparer  *comparer
	accounts  *quadlet.Accounts
	tasksMax  uint64
	conmons   func() ([]census.Conmon, error)
	// removesIPC is manager.RemovesIPC, asked once.
	removesIPC func() bool
}

// NewReader gathers what there is to know of the machine. generate is what
// drop-ins are compared with.
func NewReader(ctx context.Context, m *manager.Manager, generate Generate) (*Reader, error) {
	r := &Reader{manager: m, accounts: &quadlet.Accounts{}}
	var err error
	if r.machine.Systemd, err = m.Version(); err != nil {
		return nil, err
	}
	if r.tasksMax, err = m.DefaultTasksMax(); err != nil {
		return nil, err
	}
	r.comparer = newComparer(generate)
	r.conmons = sync.OnceValues(func() ([]census.Conmon, error) { return census.Take("/proc") })
	r.removesIPC = sync.OnceValue(func() bool { return manager.RemovesIPC(ctx) })
	r.readMachine(ctx)
	return r, nil
}

// Machine returns what is known of the machine.
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

	m.Settings, m.Problems = containersconf.Reader{System: containersconf.SystemFiles}.Read(ctx)
	m.Podman = versioned(ctx, look("podman"))
	m.Conmon = versioned(ctx, findConmon(m.Settings.ConmonPath))
	m.Runtime = versioned(ctx, findRuntime(m.Settings.Runtime))
	m.NewUIDMap, m.NewGIDMap = look("newuidmap"), look("newgidmap")

	m.Self = r.comparer.programs.OCIMainPID
	m.NotifyMainPID = program(r.comparer.programs.NotifyMainPID)
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
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	m.AppArmor = err == nil && strings.HasPrefix(string(b), "Y")
	_, err = os.Stat("/etc/apparmor.d/podman")
	m.PodmanProfile = err == nil
	m.Denials = denials(ctx)
}

// findHook looks for our hook where podman does, and where it was installed.
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

// look finds a program in PATH, which is root's.
func look(name string) Program {
	path, err := exec.LookPath(name)
	if err != nil {
		return Program{}
	}
	return program(path)
}

// program returns the program of that path, or none if there is none.
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

// findConmon finds conmon as podman does: the first of its paths that is there.
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

// findRuntime finds the OCI runtime: what containers.conf names, or the first of
// podman's defaults.
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

// versionTimeout bounds other programs, which answer at once or not at all.
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

// denied are the programs of which denials are told, by the name that the kernel
// has of them, which is of 15 bytes.
var denied = []string{"podman", "conmon", "crun", "runc", "oci-mainpid-hoo", "notify-mainpid", "oci-mainpid", "pasta", "newuidmap", "newgidmap", "netavark", "fuse-overlayfs"}

// Bounds of what is looked through for denials.
const (
	maxAuditEntries = 5000
	maxAuditLog     = 4 << 20
)

// denials returns what SELinux or AppArmor denied to our programs since boot,
// from the journal and auditd's log, the last of which is last.
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

// auditLog looks through the end of auditd's log.
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

// isDenial reports whether a line of the audit log says that one of our programs
// was denied something.
func isDenial(line string) bool {
	if !strings.Contains(line, "avc:  denied") && !strings.Contains(line, `apparmor="DENIED"`) {
		return false
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

// subordinateIDs are the files of subuid(5) and subgid(5).
var subordinateIDs = []string{"/etc/subuid", "/etc/subgid"}

// Unit gathers what there is to know of a unit.
func (r *Reader) Unit(ctx context.Context, name string) Unit {
	u := Unit{Name: name, Offered: r.machine.Controllers}
	u.Unit, u.Err = r.manager.Unit(ctx, name)
	if u.Err != nil {
		u.Dropin.Wanted = r.comparer.generated()[name] != nil
		return u
	}
	u.Dropin, u.Keeps = r.comparer.compare(u.Unit)
	u.Limits = limitSettings(u.Unit, r.tasksMax)
	if u.Unit.User == "" {
		return u
	}
	u.SharedIDs = sharesIDs(subordinateIDs, u.Unit.User, u.Unit.UID)
	u.FreeIDs = quadlet.FreeIDs(subordinateIDs...)
	if u.Account, u.AccountErr = r.accounts.Lookup(u.Unit.User); u.AccountErr != nil {
		u.Settings, u.Problems, u.Hook = r.machine.Settings, r.machine.Problems, r.machine.Hook
	} else {
		r.readUser(ctx, &u)
	}
	conmons, err := r.conmons()
	if err != nil {
		conmons = nil
	}
	u.Status = status.Of(u.Unit, conmons)
	return u
}

// readUser gathers what is the user's.
func (r *Reader) readUser(ctx context.Context, u *Unit) {
	uid := strconv.Itoa(u.Account.UID)
	u.Home = home(ctx, u.Account)
	config := u.Unit.Env("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(u.Home.Path, ".config")
	}
	u.Settings, u.Problems = containersconf.Reader{System: containersconf.SystemFiles, Home: u.Home.Path, Config: config}.Read(ctx)
	podman, _ := u.Unit.Podman()
	if dir, ok := podman.Option("--hooks-dir"); ok {
		u.Settings.HooksDir, u.Settings.HooksDirFrom = []string{dir}, "podman's --hooks-dir"
	}
	u.Hook = r.findHook(ctx, u.Settings)

	service := "user@" + uid + ".service"
	if m, err := r.manager.Unit(ctx, service); err == nil {
		u.UserManager = m
		runtime, err := r.manager.Unit(ctx, "user-runtime-dir@"+uid+".service")
		// Where systemd-logind may not stop them, it does not.
		u.Stays = err == nil && m.Properties.Bool("RefuseManualStop") && runtime.Properties.Bool("RefuseManualStop")
		u.Controllers = fields(filepath.Join("/sys/fs/cgroup", m.ControlGroup, "cgroup.controllers"))
	}
	if _, err := os.Lstat("/var/lib/systemd/linger/" + u.Account.Name); err == nil {
		u.Stays = true
	} else {
		u.LosesLocks = r.removesIPC() && u.Account.UID > systemUIDMax && logsIn(u.Home.Shell)
	}
	var st unix.Stat_t
	dir := u.Account.RuntimeDir()
	u.RuntimeDir = unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == u.Account.UID
	u.Bus = unix.Lstat(dir+"/bus", &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

// systemUIDMax is the last UID of those whose shared memory systemd-logind
// leaves alone, see RemoveIPC= in logind.conf(5).
const systemUIDMax = 999

// logsIn reports whether somebody may log in to a shell.
func logsIn(shell string) bool {
	name := filepath.Base(shell)
	return name != "nologin" && name != "false"
}

// home returns the user's home directory.
func home(ctx context.Context, a quadlet.Account) Home {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	users, err := user.ParsePasswdFileFilter("/etc/passwd", func(u user.User) bool { return u.Uid == a.UID && u.Name == a.Name })
	if err != nil || len(users) == 0 {
		b, err := exec.CommandContext(ctx, "getent", "passwd", "--", a.Name).Output()
		if err == nil {
			users, _ = user.ParsePasswdFilter(bytes.NewReader(b), func(u user.User) bool { return u.Uid == a.UID })
		}
	}
	if len(users) == 0 || users[0].Home == "" {
		return Home{Err: errors.New("the user has no home directory")}
	}
	h := Home{Path: users[0].Home, Shell: users[0].Shell}
	var st unix.Stat_t
	switch err := unix.Stat(h.Path, &st); {
	case err != nil:
		h.Err = fmt.Errorf("%s: %w; podman keeps images and containers there", h.Path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		h.Err = fmt.Errorf("%s is not a directory", h.Path)
	case int(st.Uid) != a.UID:
		h.Err = fmt.Errorf("%s belongs to UID %d, not to %s", h.Path, st.Uid, a.Name)
	}
	return h
}

// Wanted returns the units that the generator makes a drop-in for, whether or
// not systemd has it.
func (r *Reader) Wanted() []string {
	var names []string
	for name := range r.comparer.generated() {
		if !quadlet.IsTemplate(name) && !manager.IsUserManager(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// sharesIDs returns the name of another user who has some of the user's
// subordinate IDs, if there is one, subuid(5).
func sharesIDs(files []string, name string, uid int) string {
	his := func(r user.SubID) bool { return r.Name == name || r.Name == strconv.Itoa(uid) }
	for _, file := range files {
		ranges, err := user.ParseSubIDFile(file)
		if err != nil {
			continue
		}
		for _, r := range ranges {
			for _, other := range ranges {
				if his(r) && !his(other) && other.SubID < r.SubID+r.Count && r.SubID < other.SubID+other.Count {
					return other.Name
				}
			}
		}
	}
	return ""
}
