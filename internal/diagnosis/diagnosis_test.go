package diagnosis

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/containersconf"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/status"
	"oci-mainpid-hook/internal/terminal"
	"oci-mainpid-hook/internal/unitfile"
	"oci-mainpid-hook/quadlet"
)

var update = flag.Bool("update", false, "write the golden files")

var controllers = []string{"cpuset", "cpu", "io", "memory", "pids"}

// goodMachine is one where all is well.
func goodMachine() Machine {
	return Machine{
		Systemd: "257.13-1~deb13u1", Kernel: "6.12.48+deb13-amd64", CgroupV2: true, Controllers: controllers,
		Sysctls:   map[string]string{ptraceScope: "1", maxUserNS: "15000"},
		Podman:    Program{Path: "/usr/bin/podman", Version: "5.4.2"},
		Conmon:    Program{Path: "/usr/bin/conmon", Version: "2.1.12"},
		Runtime:   Program{Path: "/usr/bin/crun", Version: "1.21"},
		NewUIDMap: Program{Path: "/usr/bin/newuidmap", Privileged: true}, NewGIDMap: Program{Path: "/usr/bin/newgidmap", Privileged: true},
		NotifyMainPID: Program{Path: "/usr/libexec/oci-mainpid/notify-mainpid"},
		Generator:     Program{Path: "/usr/lib/systemd/system-generators/oci-mainpid-generator"},
		Self:          "/usr/bin/oci-mainpid",
		Settings:      containersconf.Settings{HooksDir: []string{containersconf.DefaultHooksDir}},
		Hook:          Hook{JSON: "/usr/share/containers/oci/hooks.d/oci-mainpid-hook.json"},
	}
}

// goodUnit is one where all is well, with Cgroup=mixed.
func goodUnit() UnitFacts {
	yes := true
	const files = "/run/oci-mainpid/web.service/"
	text, err := unitfile.Parse([]byte("[Service]\nUser=web\nDelegate=yes\nNotifyAccess=all\n"))
	if err != nil {
		panic(err)
	}
	origin := dropin.Origin{
		Maker: dropin.Generate, Format: 3, Source: "/etc/systemd/system/web.service", User: "web", UID: 1000, Options: dropin.Options{Cgroup: dropin.Mixed},
	}
	return UnitFacts{
		Name: "web.service",
		Unit: &manager.Unit{
			Origin: origin,
			Name:   "web.service", LoadState: "loaded", ActiveState: "active", SubState: "running", Result: "success", MainPID: 9,
			Fragment: "/etc/systemd/system/web.service", User: "web", UID: 1000, Type: "notify", NotifyAccess: "all", Delegate: true,
			Environment: []string{"XDG_RUNTIME_DIR=/run/user/1000", "OCI_MAINPID_FILE=" + files + "mainpid"}, OpenFiles: []string{files + "mainpid"},
			Wants: []string{"user@1000.service"}, After: []string{"basic.target", "user@1000.service"},
			Pre:        []manager.Command{{Path: "/x/notify-mainpid", Arguments: []string{"notify-mainpid", "--prepare", files + "mainpid", files + "result"}, Flags: []string{"privileged"}}},
			Start:      []manager.Command{{Path: "/usr/bin/podman", Arguments: []string{"podman", "run", "--cgroups=enabled", "x"}}},
			Post:       []manager.Command{{Path: "/x/notify-mainpid", Arguments: []string{"notify-mainpid", "--user=1000", files + "mainpid", files + "result"}, Flags: []string{"privileged"}}},
			Properties: manager.Properties{},
		},
		Dropin:      Dropin{Path: "/etc/systemd/system/web.service.d/50-oci-mainpid.conf", Origin: origin, Text: text, Current: true, Planned: &quadlet.Decision{Service: "web.service"}},
		Account:     account.Account{Name: "web", UID: 1000, Home: "/home/web"},
		Home:        Home{Path: "/home/web"},
		FreeIDs:     "231072-296607",
		UserManager: &manager.Unit{ActiveState: "active"}, ManagerStays: true, RuntimeDir: true, Bus: true, Controllers: controllers,
		Settings: containersconf.Settings{HooksDir: []string{containersconf.DefaultHooksDir}},
		Hook:     Hook{JSON: "/usr/share/containers/oci/hooks.d/oci-mainpid-hook.json"},
		Offered:  controllers,
		Status: status.Service{ActiveState: "active", MainPID: 9, Agrees: &yes,
			Conmon: &status.Conmon{PID: 9, Container: "web"}},
	}
}

func TestWhereAllIsWell(t *testing.T) {
	for _, p := range append(goodMachine().Points(), goodUnit().Points()...) {
		if p.Level != OK || p.Fix != "" || p.Found == "" {
			t.Errorf("%+v", p)
		}
	}
}

// TestPage: oci-mainpid.files(5) names every point, and no other.
func TestPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/oci-mainpid.files.5.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "**what**\n")
	line, _, _ := strings.Cut(rest, "\n\n")
	var page, have []string
	for i, word := range strings.Split(line, "*") {
		if i%2 == 1 {
			page = append(page, word)
		}
	}
	for _, p := range append(goodMachine().Points(), goodUnit().Points()...) {
		have = append(have, p.What)
	}
	slices.Sort(page)
	slices.Sort(have)
	if !slices.Equal(page, have) {
		t.Errorf("the page has %q, check %q", page, have)
	}
}

// expect checks that of the points only the named one is not well.
func expect(t *testing.T, name string, list []Point, what string, level Level, found, fix string) {
	t.Helper()
	for _, p := range list {
		switch {
		case p.What == what:
			if p.Level != level || !strings.Contains(p.Found, found) || !strings.Contains(p.Fix, fix) || level != OK && p.Fix == "" {
				t.Errorf("%s: %+v", name, p)
			}
		case p.Level != OK:
			t.Errorf("%s: besides: %+v", name, p)
		}
	}
	if !slices.ContainsFunc(list, func(p Point) bool { return p.What == what }) {
		t.Errorf("%s: nothing about %s", name, what)
	}
}

func TestMachines(t *testing.T) {
	for name, c := range map[string]struct {
		change        func(*Machine)
		what          string
		level         Level
		found, remedy string
	}{
		"processes left out":   {func(m *Machine) { m.LeftOut = []string{"2000 processes of user 1000"} }, "processes", Warn, "2000 processes", "ps -C conmon"},
		"systemd of Debian 10": {func(m *Machine) { m.Systemd = "241" }, "systemd", Fail, "BARRIER=1", "246"},
		"systemd of Debian 11": {func(m *Machine) { m.Systemd = "247.3-7+deb11u7" }, "systemd", Warn, "no OpenFile=", ""},
		"systemd of Debian 12": {func(m *Machine) { m.Systemd = "252.39-1~deb12u1" }, "systemd", Warn, "no OpenFile=", ""},
		"systemd 253":          {func(m *Machine) { m.Systemd = "253" }, "systemd", OK, "has OpenFile=", ""},
		"a systemd of git":     {func(m *Machine) { m.Systemd = "259~devel" }, "systemd", OK, "", ""},
		"Linux 4.19":           {func(m *Machine) { m.Kernel = "4.19.0-27-amd64" }, "kernel", Fail, "pidfd_open", "5.6"},
		"Linux 5.4":            {func(m *Machine) { m.Kernel = "5.4.0" }, "kernel", Fail, "pidfd_getfd", "5.6"},
		"Linux 5.10":           {func(m *Machine) { m.Kernel = "5.10.0-1" }, "kernel", OK, "", ""},
		"ptrace_scope 3":       {func(m *Machine) { m.Sysctls[ptraceScope] = "3" }, "kernel", Fail, "ptrace_scope=3", "sysctl"},
		"no user namespaces":   {func(m *Machine) { m.Sysctls[maxUserNS] = "0" }, "kernel", Fail, "max_user_namespaces=0", "sysctl user"},
		"none for users":       {func(m *Machine) { m.Sysctls[unprivilegedNS] = "0" }, "kernel", Fail, "userns_clone=0", "sysctl kernel"},
		"Ubuntu, no profile":   {func(m *Machine) { m.Sysctls[apparmorUserNS] = "1" }, "kernel", Warn, "AppArmor", "profile"},
		"Ubuntu, a profile":    {func(m *Machine) { m.Sysctls[apparmorUserNS], m.PodmanProfile = "1", true }, "kernel", OK, "", ""},
		"cgroup version 1":     {func(m *Machine) { m.CgroupV2 = false }, "cgroups", Fail, "not version 2", "unified_cgroup_hierarchy=1"},
		"no memory controller": {func(m *Machine) { m.Controllers = []string{"cpu", "pids"} }, "cgroups", Warn, "no memory", "cgroup_disable"},
		"no podman":            {func(m *Machine) { m.Podman = Program{} }, "podman", Fail, "not installed", "podman"},
		"podman 3":             {func(m *Machine) { m.Podman.Version = "3.4.7" }, "podman", Warn, "no Quadlet", "4.4"},
		"podman 4.10":          {func(m *Machine) { m.Podman.Version = "4.10.0" }, "podman", OK, "", ""},
		"podman without one":   {func(m *Machine) { m.Podman.Version = "" }, "podman", Warn, "version", "--version"},
		"no conmon":            {func(m *Machine) { m.Conmon = Program{} }, "conmon", Fail, "none of the places", "conmon"},
		"conmon elsewhere":     {func(m *Machine) { m.Conmon.Path = "/opt/bin/conmon" }, "conmon", Fail, "/opt/bin/conmon", "--conmon=/opt/bin/conmon"},
		"conmon of somebody":   {func(m *Machine) { m.Conmon.Unsafe = true }, "conmon", Fail, "others than root", "chown root"},
		"conmon-v3":            {func(m *Machine) { m.Conmon = Program{Path: "/usr/bin/conmon-v3", Version: "3.0.0"} }, "conmon", Warn, "whatever a container with Notify=yes says", "Notify=healthy"},
		"no runtime":           {func(m *Machine) { m.Runtime = Program{} }, "runtime", Fail, "neither crun nor runc", "crun"},
		"no newgidmap":         {func(m *Machine) { m.NewGIDMap = Program{} }, "ID mapping", Fail, "newgidmap", "uidmap"},
		"newuidmap not setuid": {func(m *Machine) { m.NewUIDMap.Privileged = false }, "ID mapping", Fail, "setuid", "chmod u+s"},
		"no notify-mainpid":    {func(m *Machine) { m.NotifyMainPID = Program{} }, "notify-mainpid", Fail, "not installed", "install"},
		"it is somebody's":     {func(m *Machine) { m.NotifyMainPID.Unsafe = true }, "notify-mainpid", Fail, "others may change it", "chown"},
		"no generator":         {func(m *Machine) { m.Generator = Program{} }, "generator", Warn, "get no drop-in, and fail", "ln -s /usr/bin/oci-mainpid"},
		"no hook":              {func(m *Machine) { m.Hook = Hook{} }, "hook", Fail, "no JSON in", "install"},
		"installed elsewhere":  {func(m *Machine) { m.Hook = Hook{Installed: "/usr/local/share/containers/oci/hooks.d/x.json"} }, "hook", Fail, "not /usr/local/share/containers/oci/hooks.d", `below [engine]: hooks_dir = ["/usr/share/containers/oci/hooks.d", "/usr/local/share/containers/oci/hooks.d"]`},
		"a hook that is gone":  {func(m *Machine) { m.Hook.Wrong = errors.New("the hook: no such file") }, "hook", Fail, "the hook: no such file", "install"},
		"denials": {func(m *Machine) {
			m.SELinux, m.PolicyModule, m.Denials = "enforcing", true, []string{"a", `avc:  denied { read } comm="conmon"`}
		}, "access control", Warn, `SELinux enforcing: 2 denials since boot, the last: avc:  denied { read } comm="conmon"`, "ausearch"},
		"denials without our policy module": {func(m *Machine) {
			m.SELinux, m.PolicyFile, m.Denials = "enforcing", "/usr/share/oci_mainpid.cil", []string{"a"}
		}, "access control", Warn, "SELinux enforcing: 1 denial since", "semodule --install=/usr/share/oci_mainpid.cil"},
		"denials with its boolean off": {func(m *Machine) {
			m.SELinux, m.PolicyModule, m.UsersOff, m.Denials = "enforcing", true, true, []string{"a"}
		}, "access control", Warn, "SELinux enforcing: 1 denial since", "setsebool -P oci_mainpid_users on"},
		"a denial of AppArmor": {func(m *Machine) { m.AppArmor, m.Denials = true, []string{"a"} }, "access control", Warn, "AppArmor: 1 denial since", "aa-logprof"},
		"AppArmor, no denials": {func(m *Machine) { m.AppArmor = true }, "access control", OK, "AppArmor, denied nothing", ""},
	} {
		m := goodMachine()
		c.change(&m)
		expect(t, name, m.Points(), c.what, c.level, c.found, c.remedy)
	}
}

func TestUnits(t *testing.T) {
	no := false
	const again = "oci-mainpid generate --user=web /etc/systemd/system/web.service && systemctl daemon-reload && systemctl restart web.service"
	for name, c := range map[string]struct {
		change        func(*UnitFacts)
		what          string
		level         Level
		found, remedy string
	}{
		"not there":     {func(u *UnitFacts) { u.Err = fmt.Errorf("x: %w", manager.ErrNoUnit) }, "unit", Fail, "no unit of this name", "daemon-reload"},
		"not there yet": {func(u *UnitFacts) { u.Err, u.Dropin = manager.ErrNoUnit, Dropin{Planned: &quadlet.Decision{}} }, "unit", Fail, "has not read the file yet", "systemctl daemon-reload && systemctl start web.service"},
		"not made by Quadlet": {func(u *UnitFacts) {
			u.Err, u.Dropin = manager.ErrNoUnit, Dropin{Planned: &quadlet.Decision{Err: errors.New("Quadlet makes no service of it: line 3")}}
		}, "unit", Fail, "Quadlet makes no service of it: line 3", "correct that, then: systemctl daemon-reload && systemctl start web.service"},
		"systemd does not say": {func(u *UnitFacts) { u.Err = errors.New("timeout") }, "unit", Fail, "timeout", "systemctl status"},
		"masked":               {func(u *UnitFacts) { u.Unit.LoadState = "masked" }, "unit", Fail, "masked", "unmask"},
		"wrong":                {func(u *UnitFacts) { u.Unit.LoadState, u.Unit.LoadError = "bad-setting", "no ExecStart=" }, "unit", Fail, "bad-setting: no ExecStart=", "systemd-analyze verify"},
		"refused": {func(u *UnitFacts) {
			u.Unit.Start = []manager.Command{{Path: "/usr/bin/oci-mainpid", Arguments: []string{"", "refuse", "--unit=x", "no such user"}}}
		}, "unit", Fail, "no such user", "daemon-reload"},
		"refused, without subordinate IDs": {func(u *UnitFacts) {
			u.Unit.Start = []manager.Command{{Path: "/usr/bin/oci-mainpid", Arguments: []string{"", "refuse", "--unit=x", "no IDs"}}}
			u.Dropin.Planned = &quadlet.Decision{Err: fmt.Errorf("x: %w", &account.NoIDsError{User: "web", Missing: []string{"user", "group"}, Free: "231072-296607"})}
		}, "unit", Fail, "no IDs", "usermod --add-subuids 231072-296607 --add-subgids 231072-296607 web && systemctl daemon-reload && systemctl restart web.service"},
		"changed on disk":            {func(u *UnitFacts) { u.Unit.NeedReload = true }, "unit", Fail, "have changed", "daemon-reload"},
		"no drop-in":                 {func(u *UnitFacts) { u.Dropin, u.Unit.Post, u.Unit.Pre = Dropin{}, nil, nil }, "drop-in", Fail, "is not there", again},
		"the generator's is missing": {func(u *UnitFacts) { u.Dropin = Dropin{Planned: &quadlet.Decision{}} }, "drop-in", Fail, "no drop-in of the generator", "systemctl daemon-reload"},
		"by hand":                    {func(u *UnitFacts) { u.Dropin = Dropin{} }, "drop-in", OK, "runs notify-mainpid of itself", ""},
		"a drop-in by hand":          {func(u *UnitFacts) { u.Dropin.Foreign = true }, "drop-in", OK, "written by hand", ""},
		"stale":                      {func(u *UnitFacts) { u.Dropin.Current = false }, "drop-in", Fail, "is not what would be written now", again},
		"stale, Cgroup=user":         {func(u *UnitFacts) { u.Dropin.Current, u.Dropin.Origin.Options.Cgroup = false, dropin.User }, "drop-in", Fail, "", "generate --user=web --cgroup=user /etc"},
		"stale, of a Quadlet file":   {func(u *UnitFacts) { u.Dropin.Current, u.Dropin.Origin.Source = false, "/etc/web.container" }, "drop-in", Fail, "", "generate /etc/web.container &&"},
		"stale, of the generator":    {func(u *UnitFacts) { u.Dropin.Current, u.Dropin.Origin.Maker = false, dropin.Generator }, "drop-in", Fail, "", "systemctl daemon-reload && systemctl restart"},
		"of a version before":        {func(u *UnitFacts) { u.Dropin.Current, u.Dropin.Origin.Format = false, 0 }, "drop-in", Warn, "was made by another version", again},
		"its file is gone":           {func(u *UnitFacts) { u.Dropin.Current, u.Dropin.Planned = false, nil }, "drop-in", Fail, "/etc/systemd/system/web.service is gone", again},
		"a rootful Quadlet file": {func(u *UnitFacts) {
			u.Dropin, u.Unit.Post, u.Unit.Pre, u.Unit.User, u.Unit.Source = Dropin{}, nil, nil, "", "/etc/web.container"
		}, "drop-in", Fail, "and no User=", "write User=USER in [Service] of /etc/web.container, then: systemctl daemon-reload"},
		"not comparable": {func(u *UnitFacts) { u.Dropin.Err = errors.New("why") }, "drop-in", Warn, "why", again},
		"no subordinate IDs": {func(u *UnitFacts) {
			u.AccountErr = fmt.Errorf("x: %w", &account.NoIDsError{User: "web", Missing: []string{"user", "group"}, Free: "231072-296607"})
		}, "user", Fail, "web has no subordinate user and group IDs", "usermod --add-subuids 231072-296607 --add-subgids 231072-296607 web"},
		"the name service is silent": {func(u *UnitFacts) { u.AccountErr = fmt.Errorf("user web %w", account.ErrNoAnswer) }, "user", Fail, "does not answer", "getent passwd web"},
		"no user":                    {func(u *UnitFacts) { u.AccountErr = errors.New(`user "web" does not exist`) }, "user", Fail, "does not exist", "name of a user"},
		"shared IDs":                 {func(u *UnitFacts) { u.SharedIDs = "db" }, "user", Warn, "shares subordinate IDs with db", "--add-subuids 231072"},
		"no home":                    {func(u *UnitFacts) { u.Home.Err = errors.New("/home/web: no such file or directory") }, "home", Fail, "no such file", "install -d -m 700 -o web /home/web"},
		"not after the manager":      {func(u *UnitFacts) { u.Unit.After = nil }, "user's manager", Fail, "After=user@1000.service", again},
		"the manager failed":         {func(u *UnitFacts) { u.UserManager.ActiveState = "failed" }, "user's manager", Fail, "has failed", "systemctl status user@1000.service"},
		"no runtime directory":       {func(u *UnitFacts) { u.RuntimeDir = false }, "user's manager", Fail, "/run/user/1000", "restart"},
		"no bus":                     {func(u *UnitFacts) { u.Bus = false }, "user's manager", Warn, "no bus", "dbus-user-session"},
		"the manager does not run":   {func(u *UnitFacts) { u.UserManager, u.Bus, u.RuntimeDir, u.Controllers = nil, false, false, nil }, "user's manager", OK, "the unit starts it", ""},
		"logout, and the locks":      {func(u *UnitFacts) { u.LosesLocks = true }, "logout", Warn, "RemoveIPC=yes", "loginctl enable-linger web"},
		"logout":                     {func(u *UnitFacts) { u.ManagerStays = false }, "logout", Warn, "last logout of web", again},
		"logout, a drop-in by hand":  {func(u *UnitFacts) { u.ManagerStays, u.Dropin.Planned, u.Dropin.Foreign = false, nil, true }, "logout", Warn, "last logout of web", "loginctl enable-linger web"},
		"not delegated":              {func(u *UnitFacts) { u.Controllers = []string{"cpu", "pids"} }, "controllers", Warn, "was not delegated memory", "Delegate=cpu cpuset io memory pids"},
		"not offered either":         {func(u *UnitFacts) { u.Controllers, u.Offered = []string{"cpu", "pids"}, []string{"cpu", "pids"} }, "controllers", OK, "cpu pids", ""},
		"not as root":                {func(u *UnitFacts) { u.Unit.Post[0].Flags = nil }, "settings", Fail, "without +", "systemctl cat"},
		"not prepared":               {func(u *UnitFacts) { u.Unit.Pre = nil }, "settings", Fail, "--prepare", "systemctl cat"},
		"no variable":                {func(u *UnitFacts) { u.Unit.Environment = u.Unit.Environment[:1] }, "settings", Fail, handover.EnvMainPIDFile, "systemctl cat"},
		"another file":               {func(u *UnitFacts) { u.Unit.Environment[1] = "OCI_MAINPID_FILE=/x" }, "settings", Fail, "another file", "systemctl cat"},
		"another runtime directory":  {func(u *UnitFacts) { u.Unit.Environment[0] = "XDG_RUNTIME_DIR=/run" }, "settings", Fail, "XDG_RUNTIME_DIR", "systemctl cat"},
		"Delegate= undone":           {func(u *UnitFacts) { u.Unit.Delegate = false }, "settings", Fail, "Delegate=no is what counts, not Delegate=yes", "systemctl cat"},
		"Delegate= missing": {func(u *UnitFacts) {
			u.Unit.Delegate, u.Dropin.Text = false, nil
			u.Unit.Start[0].Arguments[2] = "--cgroups=split"
		}, "settings", Fail, "Delegate=no, but podman has --cgroups=split", "systemctl cat"},
		"nobody listens":       {func(u *UnitFacts) { u.Dropin.Text, u.Unit.NotifyAccess = nil, "main" }, "settings", Fail, "NotifyAccess=main", "systemctl cat"},
		"READY=1 gets lost":    {func(u *UnitFacts) { u.Dropin.Text, u.Unit.Delegate = nil, false }, "settings", Fail, "READY=1", "systemctl cat"},
		"podman does not wait": {func(u *UnitFacts) { u.Unit.Type = "exec" }, "settings", Fail, handover.EnvResultFile, "systemctl cat"},
		"a PID file":           {func(u *UnitFacts) { u.Unit.Properties["PIDFile"] = "/run/x" }, "settings", Fail, "PIDFile=", "systemctl cat"},
		"the file by name":     {func(u *UnitFacts) { u.Unit.OpenFiles = nil }, "settings", OK, "by name", ""},
		"hooks_dir": {func(u *UnitFacts) {
			u.Hook = Hook{Installed: "/usr/share/containers/oci/hooks.d/oci-mainpid-hook.json"}
			u.Settings = containersconf.Settings{HooksDir: []string{"/etc/hooks"}, HooksDirFrom: "/home/web/.config/containers/containers.conf"}
		}, "hook", Fail, "podman reads /etc/hooks (hooks_dir in /home/web/.config/containers/containers.conf)", `hooks_dir = ["/etc/hooks", "/usr/share/containers/oci/hooks.d"]`},
		"no hooks_dir": {func(u *UnitFacts) {
			u.Hook = Hook{Installed: "/usr/share/containers/oci/hooks.d/oci-mainpid-hook.json"}
			u.Settings = containersconf.Settings{HooksDirFrom: "/etc/containers/containers.conf"}
		}, "hook", Fail, "podman reads nothing", `hooks_dir = ["/usr/share/containers/oci/hooks.d"]`},
		"hooks at home": {func(u *UnitFacts) {
			u.Hook = Hook{Unread: []error{errors.New("/home/web belongs to UID 1000, not to root"), errors.New("/x")}}
		}, "hook", Warn, "was looked into: /home/web belongs to UID 1000, not to root; and 1 more", "add the directory"},
		"shadowed":        {func(u *UnitFacts) { u.Hook = Hook{Shadow: "/etc/x.json"} }, "hook", Fail, "takes the place", "rm /etc/x.json"},
		"a file not read": {func(u *UnitFacts) { u.Problems = []error{errors.New("/home/web/x: a link")} }, "hook", Warn, "/home/web/x: a link", "that file"},
		"CONTAINERS_CONF": {func(u *UnitFacts) { u.Unit.Environment = append(u.Unit.Environment, "CONTAINERS_CONF=/x") }, "hook", Warn, "/x (CONTAINERS_CONF)", ""},
		"a --module of the container's": {func(u *UnitFacts) {
			u.Unit.Start[0].Arguments = []string{"podman", "run", "--cgroups=enabled", "img", "app", "--module"}
		}, "hook", OK, "", ""},
		"a module":                         {func(u *UnitFacts) { u.Unit.Start[0].Arguments = []string{"podman", "--module=x", "run"} }, "hook", Warn, "--module", ""},
		"one container name for two units": {func(u *UnitFacts) { u.Dropin.Planned.SameContainer = "api.service" }, "needs", Warn, "api.service has the same", "ContainerName="},
		"a need":                           {func(u *UnitFacts) { u.Needs = []Need{{"port 80/tcp is in use", "see"}} }, "needs", Fail, "port 80/tcp is in use", "see"},
		"a limit":                          {func(u *UnitFacts) { u.Limits = []string{"MemoryMax="} }, "limits", Warn, "MemoryMax= in the unit does not bind", "--cgroup=service"},
		"a limit that binds":               {func(u *UnitFacts) { u.Limits, u.Unit.Origin.Options.Cgroup = []string{"MemoryMax="}, dropin.Service }, "limits", OK, "MemoryMax= bind", ""},
		"one that would": {func(u *UnitFacts) {
			u.Limits, u.Offered = []string{"MemoryMax="}, []string{"cpu"}
			u.Controllers = u.Offered
			u.Unit.Origin.Options.Cgroup = dropin.Service
		}, "limits", Warn, "does not offer the controller memory", "cgroups"},
		"no agreement": {func(u *UnitFacts) { u.Status.Agrees, u.Status.Problem = &no, "systemd's main process is 7" }, "main process", Fail, "is 7", "oci-mainpid explain"},
		"failed":       {func(u *UnitFacts) { u.Status = status.Service{ActiveState: "failed", Result: "exit-code"} }, "main process", Warn, "exit-code", "oci-mainpid explain web.service"},
		"stopped":      {func(u *UnitFacts) { u.Status = status.Service{ActiveState: "inactive"} }, "main process", OK, "inactive", ""},
		"left over": {func(u *UnitFacts) {
			u.Status = status.Service{ActiveState: "failed", Problem: "still runs", LeftOver: []status.Conmon{{PID: 5, ContainerID: strings.Repeat("ab", 32)}}}
		}, "main process", Fail, "still runs", "oci-mainpid podman --user=web rm -f abababababab"},
		"left over, forged": {func(u *UnitFacts) {
			u.Status = status.Service{ActiveState: "failed", Problem: "still runs", LeftOver: []status.Conmon{{PID: 5, ContainerID: "$(reboot)"}}}
		}, "main process", Fail, "still runs", "kill 5"},
		"another user's container": {func(u *UnitFacts) {
			no := false
			u.Status.Agrees, u.Status.Problem, u.Status.Remedy = &no, "still runs as UID 1001", "systemctl restart web.service"
		}, "main process", Fail, "still runs as UID 1001", "systemctl restart web.service"},
		"a claim of another user's": {func(u *UnitFacts) { u.Status.Claiming = []status.Claim{{UID: 1001}} }, "main process", OK, "", ""},
		"a volume":                  {func(u *UnitFacts) { u.Unit.Post, u.Unit.Type = nil, "oneshot" }, "drop-in", OK, "", ""},
	} {
		u := goodUnit()
		c.change(&u)
		expect(t, name, u.Points(), c.what, c.level, c.found, c.remedy)
	}
}

// TestGone: a unit that runs and has lost its file, or its user, gets what ends its
// container.
func TestGone(t *testing.T) {
	for name, change := range map[string]func(*UnitFacts){
		"no file": func(u *UnitFacts) {
			u.Unit.Start = []manager.Command{{Path: "/usr/bin/oci-mainpid", Arguments: []string{"", "refuse", "--unit=x", "its file is gone"}}}
		},
		"no user": func(u *UnitFacts) {
			u.Unit.User, u.Unit.Post, u.Dropin.Origin = "", nil, dropin.NewGone("web.service", handover.Record{}, nil, dropin.Programs{}).Origin
			u.Dropin.Origin.Format, u.Dropin.Planned, u.Dropin.Current = u.Unit.Origin.Format, nil, false
		},
	} {
		u := goodUnit()
		u.Status = status.Service{ActiveState: "active", Problem: "still runs", Remedy: "systemctl stop web.service"}
		change(&u)
		var fixes []string
		for _, p := range u.Points() {
			if p.Level != OK {
				fixes = append(fixes, p.What+": "+p.Fix)
			}
		}
		if got := fixes[len(fixes)-1]; got != "main process: systemctl stop web.service" || name == "no user" && len(fixes) != 1 {
			t.Errorf("%s: %q", name, fixes)
		}
	}
}

func TestTextFits80Columns(t *testing.T) {
	bad := goodUnit()
	bad.ManagerStays = false
	bad.Dropin.Current = false
	bad.Limits = []string{"MemoryMax=", "CPUQuota="}
	bad.Hook = Hook{Installed: "/usr/share/containers/oci/hooks.d/oci-mainpid-hook.json"}
	bad.Settings = containersconf.Settings{HooksDir: []string{"/home/web/\x1b[31mhooks"}, HooksDirFrom: "/home/web/.config/containers/containers.conf"}
	other := goodUnit()
	other.Name, other.ManagerStays = "db.service", false
	machine := goodMachine().Points()
	for name, c := range map[string]struct {
		points []Point
		all    bool
	}{
		"one.txt":     {append(slices.Clone(machine), goodUnit().Points()...), false},
		"bad.txt":     {append(slices.Clone(machine), bad.Points()...), false},
		"several.txt": {slices.Concat(machine, bad.Points(), other.Points()), false},
		"verbose.txt": {slices.Concat(machine, goodUnit().Points(), other.Points()), true},
	} {
		var b bytes.Buffer
		Write(&terminal.Output{Writer: &b, Width: 80}, c.points, c.all)
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), want) {
			t.Errorf("%s: got:\n%s", name, b.String())
		}
		for line := range strings.Lines(b.String()) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 || strings.Contains(line, "\x1b") {
				t.Errorf("%s: %d columns: %q", name, n, line)
			}
		}
	}
}

func TestFindHook(t *testing.T) {
	// The directories must be root's, all the way up.
	base, err := os.MkdirTemp("/run", "diagnosis-test-")
	if err != nil {
		t.Skip("needs root: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	const good = `{"version":"1.0.0","hook":{"path":"%s/bin/oci-mainpid-hook"},"when":{"always":true},"stages":["poststart"]}`
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		path = filepath.Join(base, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	ours := fmt.Sprintf(good, base)
	write("bin/oci-mainpid-hook", "", 0o755)
	write("a/oci-mainpid-hook.json", ours, 0o644)
	write("other/seccomp.json", `{"hook":{"path":"/x"}}`, 0o644)
	write("shadow/oci-mainpid-hook.json", `{"hook":{"path":"/x"}}`, 0o644)
	write("prestart/x.json", strings.ReplaceAll(ours, "poststart", "prestart"), 0o644)
	write("annotated/x.json", strings.ReplaceAll(ours, "always\":true", "always\":false"), 0o644)
	write("gone/x.json", strings.ReplaceAll(ours, "/bin/", "/none/"), 0o644)
	write("theirs/x.json", ours, 0o644)
	write("proc/x.json", strings.ReplaceAll(ours, base, "/proc/self/root"+base), 0o644)
	write("large/x.json", ours+strings.Repeat(" ", maxJSON), 0o644)
	write("full/1.json", strings.Repeat(" ", maxJSON), 0o644)
	write("full/2.json", strings.Repeat(" ", maxJSON), 0o644)
	write("full/3.json", strings.Repeat(" ", maxJSON), 0o644)
	for i := range maxHookFiles + 1 {
		write(fmt.Sprintf("many/%d.json", i), "{}", 0o644)
	}
	if err := os.Symlink("/proc/self/root"+base+"/a", filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(base, "theirs"), 12345, -1); err != nil {
		t.Skip("needs root: ", err)
	}
	for name, c := range map[string]struct {
		dirs  []string
		check func(Hook) bool
	}{
		"there":             {[]string{"a"}, func(h Hook) bool { return strings.HasSuffix(h.JSON, "/a/oci-mainpid-hook.json") && h.Wrong == nil }},
		"among others":      {[]string{"other", "none", "a"}, func(h Hook) bool { return h.JSON != "" && h.Wrong == nil && h.Unread == nil }},
		"not there":         {[]string{"other", "none"}, func(h Hook) bool { return h.JSON == "" && h.Unread == nil }},
		"shadowed":          {[]string{"a", "shadow"}, func(h Hook) bool { return h.JSON == "" && strings.HasSuffix(h.Shadow, "/shadow/oci-mainpid-hook.json") }},
		"shadows":           {[]string{"shadow", "a"}, func(h Hook) bool { return h.JSON != "" && h.Shadow == "" }},
		"another stage":     {[]string{"prestart"}, func(h Hook) bool { return h.Wrong != nil }},
		"another condition": {[]string{"annotated"}, func(h Hook) bool { return h.Wrong != nil }},
		"no program":        {[]string{"gone"}, func(h Hook) bool { return h.Wrong != nil }},
		"below /proc":       {[]string{"/proc/self/root" + base + "/a"}, func(h Hook) bool { return h.JSON == "" && strings.Contains(several(h.Unread), "is below /proc") }},
		"a link to it":      {[]string{"link"}, func(h Hook) bool { return h.JSON == "" && strings.Contains(several(h.Unread), "is below /proc") }},
		"a program there":   {[]string{"proc"}, func(h Hook) bool { return strings.Contains(h.Wrong.Error(), "is below /proc") }},
		"large":             {[]string{"large", "a"}, func(h Hook) bool { return h.JSON != "" && strings.Contains(several(h.Unread), "more than 64 KiB") }},
		"many files":        {[]string{"many"}, func(h Hook) bool { return strings.Contains(several(h.Unread), "more than 256 files") }},
		"33 directories": {slices.Repeat([]string{"a"}, 33), func(h Hook) bool {
			return h.JSON != "" && strings.Contains(several(h.Unread), "33 directories, more than 32")
		}},
		"much in all": {slices.Repeat([]string{"full"}, 32), func(h Hook) bool {
			return strings.Contains(several(h.Unread), "the files before it are larger than 4096 KiB")
		}},
		"somebody else's": {[]string{"theirs"}, func(h Hook) bool { return h.JSON == "" && len(h.Unread) == 1 }},
	} {
		var dirs []string
		for _, d := range c.dirs {
			if !filepath.IsAbs(d) {
				d = filepath.Join(base, d)
			}
			dirs = append(dirs, d)
		}
		if h := findHook(t.Context(), dirs); !c.check(h) {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func TestFindHookEndsWithItsContext(t *testing.T) {
	dir, err := os.MkdirTemp("/run", "diagnosis-test-")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(dir+"/x.json", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if h := findHook(ctx, []string{dir}); len(h.Unread) != 1 || !errors.Is(h.Unread[0], context.Canceled) {
		t.Errorf("%+v", h)
	}
}

func TestDenials(t *testing.T) {
	for name, c := range map[string]struct {
		line string
		want bool
	}{
		"SELinux":            {`type=AVC msg=audit(1700000000.123:45): avc:  denied  { connectto } for  pid=1 comm="notify-mainpid" path="/run/systemd/notify" scontext=x`, true},
		"the hook, 15 bytes": {`avc:  denied  { read } for pid=1 comm="oci-mainpid-hoo"`, true},
		"AppArmor":           {`audit: type=1400 audit(1700000000.1:2): apparmor="DENIED" operation="open" profile="/usr/bin/pasta" name="/x" comm="pasta.avx2"`, true},
		"AppArmor, allowed":  {`audit: type=1400 audit(1.1:2): apparmor="ALLOWED" operation="open" profile="podman" comm="podman"`, false},
		"another's":          {`avc:  denied  { read } for pid=1 comm="httpd"`, false},
		"our mount":          {`avc:  denied  { mounton } for pid=1 comm="(mount)" path="/run/oci-mainpid" scontext=system_u:system_r:mount_t:s0 tcontext=system_u:object_r:oci_mainpid_runtime_t:s0 tclass=dir permissive=0`, true},
		"a thread of podman": {`avc:  denied  { search } for pid=1 comm="3" scontext=system_u:system_r:podman_t:s0 tcontext=system_u:object_r:user_runtime_root_t:s0 tclass=dir`, true},
		"a name in it":       {`avc:  denied  { read } for pid=1 comm="httpd" path="/usr/bin/podman"`, false},
		"no denial":          {`podman: something was denied`, false},
	} {
		if got := isDenial(c.line); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	log := filepath.Join(t.TempDir(), "audit.log")
	text := `type=AVC msg=audit(1600000000.1:1): avc:  denied  { read } comm="conmon"
type=SYSCALL msg=audit(1700000000.1:2): comm="conmon"
type=AVC msg=audit(1700000000.1:2): avc:  denied  { write } comm="conmon"
`
	if err := os.WriteFile(log, []byte(strings.Repeat("x\n", maxAuditLog)+text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := auditLog(log, time.Unix(1650000000, 0))
	if len(got) != 1 || !strings.Contains(got[0], "{ write }") {
		t.Errorf("%q", got)
	}
	if got := auditLog(log+"none", time.Time{}); got != nil {
		t.Errorf("%q", got)
	}
}

func TestLimits(t *testing.T) {
	const infinity = uint64(1<<64 - 1)
	unset := manager.Properties{
		"MemoryMax": infinity, "MemoryHigh": infinity, "MemorySwapMax": infinity, "CPUQuotaPerSecUSec": infinity, "CPUWeight": infinity,
		"TasksMax": uint64(4915), "IOWeight": infinity, "IPAddressDeny": [][]any{}, "AllowedCPUs": []byte{}, "DeviceAllow": [][]any{}, "Slice": "system-web.slice",
	}
	if got := limitSettings(&manager.Unit{Properties: unset}, 4915); len(got) != 0 {
		t.Errorf("%q", got)
	}
	set := manager.Properties{
		"MemoryMax": uint64(1), "CPUQuotaPerSecUSec": uint64(500000), "TasksMax": uint64(20),
		"IPAddressDeny": [][]any{{int32(2), []byte{0, 0, 0, 0}, uint32(0)}}, "AllowedCPUs": []byte{1}, "Slice": "web.slice",
	}
	want := []string{"MemoryMax=", "CPUQuota=", "TasksMax=", "Slice=", "IPAddressDeny=", "AllowedCPUs="}
	if got := limitSettings(&manager.Unit{Properties: set}, 4915); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestAtLeast(t *testing.T) {
	for version, want := range map[string]bool{"4.4": true, "4.4.1": true, "4.10": true, "5": true, "4.3.9": false, "4": false, "": false, "x": false, "5.0-rc1": true} {
		if got := atLeast(version, 4, 4); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}
