package diagnosis

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/containersconf"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/status"
	"oci-mainpid-hook/internal/terminal"
	"oci-mainpid-hook/quadlet"
)

// UnitFacts is what is known of a unit and its user.
type UnitFacts struct {
	Name string
	// Unit is what systemd knows. If it is nil, Err says why.
	Unit *manager.Unit
	Err  error

	// Dropin is our drop-in, compared with the one that would be written now.
	Dropin Dropin

	// Account is the unit's user; AccountErr says why they cannot run containers.
	Account    account.Account
	AccountErr error
	Home       Home
	// SharedIDs is the name of another user who has some of the same subordinate IDs.
	// FreeIDs is a range that no user has, "" if none is left.
	SharedIDs, FreeIDs string

	// UserManager is the user's user@UID.service, nil if systemd does not know it.
	UserManager *manager.Unit
	// ManagerStays says that the manager keeps running after the user's last logout.
	ManagerStays bool
	// LosesLocks says that systemd-logind removes podman's locks at the last logout.
	LosesLocks bool
	// RuntimeDir and Bus say whether /run/user/UID belongs to the user, and has a bus.
	RuntimeDir, Bus bool
	// Controllers are the cgroup controllers that the user's manager has, nil if it
	// does not run.
	Controllers []string

	Settings containersconf.Settings
	Problems []error
	Hook     Hook

	// Limits are the settings of the unit that limit what it uses.
	Limits []string
	// Needs are what a start needs and lacks.
	Needs []Need
	// Offered are the cgroup controllers that the kernel offers.
	Offered []string

	Status status.Service
}

// Home is a user's home directory.
type Home struct {
	Path string
	// Err says why podman cannot use the directory.
	Err error
}

// Points judges the unit.
func (u UnitFacts) Points() []Point {
	p := &points{object: u.Name}
	if !u.loaded(p) {
		u.changed(p)
		return p.list
	}
	u.dropin(p)
	if u.Unit.User == "" {
		u.changed(p)
		return p.list
	}
	u.account(p)
	u.manager(p)
	if _, ok := u.Unit.Notifier(); !ok {
		return p.list
	}
	u.settings(p)
	u.hook(p)
	u.limits(p)
	u.needs(p)
	u.mainPID(p)
	return p.list
}

// loaded reports whether there is anything to judge.
func (u UnitFacts) loaded(p *points) bool {
	const what = "unit"
	name := terminal.Quote(u.Name)
	switch {
	case errors.Is(u.Err, manager.ErrNoUnit) && u.Dropin.Wanted() && u.Dropin.Planned.Err != nil:
		p.fail(what, u.Dropin.Planned.Err.Error(), "correct that, then: systemctl daemon-reload && systemctl start "+name)
		return false
	case errors.Is(u.Err, manager.ErrNoUnit) && u.Dropin.Wanted():
		p.fail(what, "its Quadlet file has a user, but systemd has not read the file yet", "systemctl daemon-reload && systemctl start "+name)
		return false
	case errors.Is(u.Err, manager.ErrNoUnit):
		p.fail(what, "systemd knows no unit of this name", "write /etc/systemd/system/"+u.Name+", or a Quadlet file, then: systemctl daemon-reload")
		return false
	case u.Err != nil:
		p.fail(what, u.Err.Error(), "systemctl status "+name)
		return false
	case u.Unit.LoadState == "masked":
		p.fail(what, "is masked", "systemctl unmask "+name)
		return false
	case u.Unit.LoadState != "loaded":
		p.fail(what, strings.TrimSuffix(u.Unit.LoadState+": "+u.Unit.LoadError, ": "), "systemd-analyze verify "+name)
		return false
	}
	if reason := u.Unit.Refused(); reason != "" {
		fix := "correct that, then: "
		if missing := (*account.NoIDsError)(nil); u.Dropin.Planned != nil && errors.As(u.Dropin.Planned.Err, &missing) {
			fix = missing.Remedy() + " && "
		}
		p.fail(what, "oci-mainpid keeps it from starting: "+reason, fix+"systemctl daemon-reload && systemctl restart "+name)
		return false
	}
	if u.Unit.NeedReload {
		p.fail(what, "its files have changed since systemd read them", "systemctl daemon-reload && systemctl restart "+name)
		return true
	}
	state := u.Unit.ActiveState
	if state == "active" {
		state = u.Unit.SubState
	}
	if mode := u.Unit.Cgroup(); mode != "" {
		state += ", Cgroup=" + string(mode)
	}
	p.ok(what, state)
	return true
}

// account judges the user.
func (u UnitFacts) account(p *points) {
	const what = "user"
	name := terminal.Quote(u.Unit.User)
	missing := (*account.NoIDsError)(nil)
	switch {
	case errors.As(u.AccountErr, &missing):
		p.fail(what, fmt.Sprintf("%s has no subordinate %s IDs", name, strings.Join(missing.Missing, " and ")), missing.Remedy()+" && systemctl daemon-reload && systemctl restart "+terminal.Quote(u.Name))
		return
	case errors.Is(u.AccountErr, account.ErrNoAnswer):
		p.fail(what, u.AccountErr.Error(), "see whether this answers: getent passwd "+name)
		return
	case u.AccountErr != nil:
		p.fail(what, u.AccountErr.Error(), "write the name of a user that exists and is not root")
		return
	case u.SharedIDs != "":
		p.warn(what, fmt.Sprintf("%s shares subordinate IDs with %s: the containers of each can change the files of the other's", u.Account.Name, u.SharedIDs),
			fmt.Sprintf("usermod --add-subuids %s --add-subgids %[1]s %s, remove the old ranges with --del-subuids and --del-subgids; as the user: podman system migrate", cmp.Or(u.FreeIDs, "FIRST-LAST"), name))
	default:
		p.ok(what, fmt.Sprintf("%s (UID %d), has subordinate IDs", u.Account.Name, u.Account.UID))
	}
	if u.Home.Err != nil {
		p.fail("home", u.Home.Err.Error(), fmt.Sprintf("install -d -m 700 -o %s %s", terminal.Quote(u.Account.Name), terminal.Quote(u.Home.Path)))
	} else {
		p.ok("home", u.Home.Path)
	}
}

// manager judges the user's manager, its bus and its controllers.
func (u UnitFacts) manager(p *points) {
	const what = "user's manager"
	if u.AccountErr != nil {
		return
	}
	service := fmt.Sprintf("user@%d.service", u.Account.UID)
	name := terminal.Quote(u.Account.Name)
	running := u.UserManager != nil && u.UserManager.ActiveState == "active"
	switch {
	case !slices.Contains(u.Unit.After, service) || !slices.Contains(u.Unit.Wants, service):
		p.fail(what, "the unit does not have Wants= and After="+service+", so it may not be there when podman needs it", u.regenerate())
		return
	case u.UserManager != nil && u.UserManager.ActiveState == "failed":
		p.fail(what, service+" has failed", "systemctl status "+service)
		return
	case running && !u.RuntimeDir:
		p.fail(what, fmt.Sprintf("%s is not a directory of the user's", u.Account.RuntimeDir()), "systemctl restart "+service)
		return
	case running && !u.Bus:
		p.warn(what, fmt.Sprintf("no bus at %s/bus: podman cannot ask for control groups", u.Account.RuntimeDir()),
			"install the package dbus-user-session (Debian) or dbus-broker, then: systemctl restart "+service)
		return
	case running:
		p.ok(what, service+" is running, with a bus")
	default:
		p.ok(what, service+" is not running, the unit starts it")
	}
	switch {
	case u.ManagerStays && u.LosesLocks:
		p.warn("logout", fmt.Sprintf("the user's manager stays, but after each login of %s, such as su - or ssh, systemd-logind removes podman's locks (RemoveIPC=yes): deadlocks may follow", name),
			fmt.Sprintf("loginctl enable-linger %s, or RemoveIPC=no in logind.conf(5)", name))
	case u.ManagerStays:
		p.ok("logout", "the user's manager stays when they log out")
	default:
		fix := "loginctl enable-linger " + name
		if u.Dropin.Planned != nil && u.Dropin.Planned.Err == nil {
			fix = u.regenerate()
		}
		p.warn("logout", fmt.Sprintf("after the last logout of %s systemd-logind stops %s, and the container with it", u.Account.Name, service), fix)
	}
	if !running {
		return
	}
	var lost []string
	for _, c := range missing(u.Controllers) {
		if slices.Contains(u.Offered, c) {
			lost = append(lost, c)
		}
	}
	switch {
	case len(lost) > 0:
		p.warn("controllers", fmt.Sprintf("%s was not delegated %s: podman cannot limit that", service, strings.Join(lost, ", ")),
			"systemctl edit user@.service, with [Service] and Delegate=cpu cpuset io memory pids; then: systemctl restart "+service)
	case len(u.Controllers) == 0:
		p.ok("controllers", "none, the kernel offers none to delegate")
	default:
		p.ok("controllers", "delegated: "+strings.Join(u.Controllers, " "))
	}
}

// regenerate returns what to type to make the unit's drop-in again.
func (u UnitFacts) regenerate() string {
	name := terminal.Quote(u.Name)
	apply := "systemctl daemon-reload && systemctl restart " + name
	o := u.Dropin.Origin
	source := o.Source
	if source == "" {
		source = cmp.Or(u.Unit.Source, u.Unit.Fragment)
	}
	user := "USER"
	if u.Unit.User != "" {
		user = terminal.Quote(u.Unit.User)
	}
	switch {
	case o.Maker == dropin.Generator || u.Dropin.Planned != nil && u.Dropin.Planned.Err == nil && u.Dropin.Path == "":
		return apply
	case o.Maker == "" && quadlet.IsQuadlet(source):
		return fmt.Sprintf("write User=%s in [Service] of %s, then: %s", user, terminal.Quote(source), apply)
	case quadlet.IsQuadlet(source):
		user = ""
	default:
		user = " --user=" + user
	}
	if mode := o.Options.Cgroup; mode != "" && mode != dropin.Mixed {
		user += " --cgroup=" + string(mode)
	}
	if o.Options.Ready != "" {
		user += " --ready=" + o.Options.Ready
	}
	if o.Options.Reloads() {
		user += " --reload=" + string(o.Options.Reload)
	}
	return "oci-mainpid generate" + user + " " + terminal.Quote(source) + " && " + apply
}

// settings judges what counts in the end, whatever file it is from.
func (u UnitFacts) settings(p *points) {
	const what = "settings"
	unit := u.Unit
	notifier, _ := unit.Notifier()
	prepares := slices.ContainsFunc(unit.Pre, func(c manager.Command) bool {
		return c.IsNotifyMainPID() && slices.Contains(c.Arguments, "--prepare") && c.AsRoot()
	})
	file := unit.Env(handover.EnvMainPIDFile)
	podman, _ := unit.Podman()
	cgroups, _ := podman.Last("cgroups")
	wrong := ""
	switch {
	case !notifier.AsRoot():
		wrong = "ExecStartPost= runs notify-mainpid without +: only root can tell systemd the main PID of a process outside the unit"
	case !prepares:
		wrong = "no ExecStartPre=+ runs notify-mainpid --prepare"
	case file == "":
		wrong = handover.EnvMainPIDFile + " is not in the unit's environment: the hook leaves its containers alone"
	case !slices.Contains(notifier.Arguments, file):
		wrong = fmt.Sprintf("the hook writes %s, but notify-mainpid waits for another file", file)
	case unit.Env("XDG_RUNTIME_DIR") != u.Account.RuntimeDir() && u.AccountErr == nil:
		wrong = "XDG_RUNTIME_DIR is not " + u.Account.RuntimeDir()
	case u.overridden() != "":
		wrong = u.overridden()
	case !unit.Delegate && cgroups == "split":
		wrong = "Delegate=no, but podman has --cgroups=split: it may not make control groups in the unit's"
	case unit.NotifyAccess == "none" || unit.NotifyAccess == "main":
		wrong = fmt.Sprintf("NotifyAccess=%s: systemd does not listen to notify-mainpid", unit.NotifyAccess)
	case (unit.Type == "notify" || unit.Type == "notify-reload") && !unit.Delegate && unit.Origin.Options.Ready == "":
		wrong = "Type=notify without Delegate=: READY=1 is lost with the first podman after boot"
	case unit.Type != "notify" && unit.Type != "notify-reload" && unit.Env(handover.EnvResultFile) == "":
		wrong = fmt.Sprintf("Type=%s, and %s is not in the environment: podman can end before systemd has the main PID", unit.Type, handover.EnvResultFile)
	case unit.Properties.String("PIDFile") != "":
		wrong = "PIDFile= is set: systemd would look there for the main PID, too"
	}
	switch {
	case wrong != "" && (u.Dropin.Current || u.overridden() != ""):
		p.fail(what, wrong, fmt.Sprintf("see what comes after %s in: systemctl cat %s", dropin.Name, terminal.Quote(u.Name)))
		return
	case wrong != "":
		p.fail(what, wrong, u.regenerate())
		return
	}
	how := "by name, owned by the user"
	if slices.Contains(unit.OpenFiles, file) {
		how = "by OpenFile="
	}
	p.ok(what, fmt.Sprintf("Type=%s, Delegate=%s, mainpid file %s", unit.Type, map[bool]string{true: "yes", false: "no"}[unit.Delegate], how))
}

// overridden says which setting of our drop-in another drop-in replaces, or returns
// "" if none does.
func (u UnitFacts) overridden() string {
	if u.Dropin.Text == nil {
		return ""
	}
	access := u.Unit.NotifyAccess
	if access == "exec" && u.Unit.Origin.Options.Reloads() {
		access = "all" // a reload has changed it until the next start
	}
	for _, s := range []struct{ key, counts string }{
		{"Delegate", map[bool]string{true: "yes", false: "no"}[u.Unit.Delegate]},
		{"Type", u.Unit.Type},
		{"NotifyAccess", access},
		{"User", u.Unit.User},
	} {
		if want := u.Dropin.Text.Get("Service", s.key); want != "" && want != s.counts {
			return fmt.Sprintf("%s=%s is what counts, not %[1]s=%[3]s of the drop-in", s.key, s.counts, want)
		}
	}
	return ""
}

func (u UnitFacts) hook(p *points) {
	podman, _ := u.Unit.Podman()
	s, problems := u.Settings, u.Problems
	if _, ok := podman.Global("module"); ok {
		problems = append(problems, errors.New("podman has --module"))
	}
	if file := u.Unit.Env("CONTAINERS_CONF"); file != "" {
		problems = append(problems, fmt.Errorf("%s (CONTAINERS_CONF)", file))
	}
	if file := u.Unit.Env("CONTAINERS_CONF_OVERRIDE"); file != "" {
		problems = append(problems, fmt.Errorf("%s (CONTAINERS_CONF_OVERRIDE)", file))
	}
	u.Hook.point(p, s, problems)
}

func (u UnitFacts) limits(p *points) {
	const what = "limits"
	if len(u.Limits) == 0 {
		p.ok(what, "none in the unit")
		return
	}
	set := strings.Join(u.Limits, ", ")
	if u.Unit.Cgroup() != dropin.Service {
		p.warn(what, fmt.Sprintf("%s in the unit does not bind the container, whose processes are in the control group of the user's manager", set),
			"oci-mainpid generate --cgroup=service (in a Quadlet file: Cgroup=service), or give the limit to podman")
		return
	}
	for controller, settings := range map[string]string{"memory": "Memory", "cpu": "CPU", "pids": "Tasks", "io": "IO"} {
		if !slices.Contains(u.Offered, controller) && slices.ContainsFunc(u.Limits, func(l string) bool { return strings.HasPrefix(l, settings) }) {
			p.warn(what, fmt.Sprintf("%s: the kernel does not offer the controller %s, so it does not bind", set, controller), "see the point cgroups of this machine")
			return
		}
	}
	p.ok(what, set+" bind the container")
}

// mainProcess is the point of mainPID and changed.
const mainProcess = "main process"

// changed judges what runs and is not what the unit's files say now.
func (u UnitFacts) changed(p *points) {
	if u.Status.Remedy != "" {
		p.fail(mainProcess, u.Status.Problem, u.Status.Remedy)
	}
}

func (u UnitFacts) mainPID(p *points) {
	const what = mainProcess
	s := u.Status
	name := terminal.Quote(u.Name)
	switch {
	case s.Remedy != "":
		u.changed(p)
	case len(s.LeftOver) > 0:
		p.fail(what, s.Problem, u.remove(s.LeftOver[0]))
	case s.Agrees != nil && !*s.Agrees:
		p.fail(what, s.Problem, "oci-mainpid explain "+name+"; systemctl restart "+name)
	case s.Agrees != nil:
		text := fmt.Sprintf("%d, conmon of container %s, verified", s.MainPID, s.Conmon.Container)
		if s.Conmon.Replaced {
			text += "; conmon was replaced since (package upgrade)"
		}
		p.ok(what, text)
	case s.ActiveState == "failed":
		p.warn(what, fmt.Sprintf("the last start failed (%s)", s.Result), "oci-mainpid explain "+name)
	default:
		p.ok(what, "none, the unit is "+s.ActiveState)
	}
}

// remove returns the command that removes a left-over container.
func (u UnitFacts) remove(c status.Conmon) string {
	// The user may have forged the ID. Root must not type anything but a real one.
	if len(c.ContainerID) != 64 || strings.Trim(c.ContainerID, "0123456789abcdef") != "" || u.AccountErr != nil {
		return fmt.Sprintf("kill %d", c.PID)
	}
	return u.podman(fmt.Sprintf("rm -f %.12s", c.ContainerID))
}

// dropin judges our drop-in.
func (u UnitFacts) dropin(p *points) {
	const what = "drop-in"
	d := u.Dropin
	_, notifies := u.Unit.Notifier()
	switch {
	case d.Wanted():
		p.fail(what, "its Quadlet file has a user, but systemd has no drop-in of the generator", u.regenerate())
	case d.Path == "" && notifies:
		p.ok(what, "none: the unit runs notify-mainpid of itself")
	case d.Path == "":
		user := ", and no User="
		if u.Unit.User != "" {
			user = ""
		}
		p.fail(what, dropin.Name+" is not there"+user, u.regenerate())
	case d.Err != nil && u.AccountErr != nil:
		// The point "user" has this error.
	case d.Err != nil:
		p.warn(what, fmt.Sprintf("%s could not be compared with what would be written now: %v", d.Path, d.Err), u.regenerate())
	case d.Origin.IsGone():
		p.ok(what, "none any more: what is in "+shorten(d.Path)+" only ends what was started before")
	case d.Foreign:
		p.ok(what, d.Path+", written by hand, not compared")
	case d.Current:
		p.ok(what, "current: "+shorten(d.Path))
	case d.Planned == nil:
		p.fail(what, d.Path+" would not be written now: "+d.Origin.Source+" is gone, or has no user any more", u.regenerate())
	case !d.Origin.Current():
		p.warn(what, d.Path+" was made by another version of oci-mainpid; it works, but is not what would be written now", u.regenerate())
	default:
		p.fail(what, d.Path+" is not what would be written now: the unit or oci-mainpid has changed since", u.regenerate())
	}
}

// shorten returns the directory that the drop-in's own directory is in.
func shorten(path string) string { return filepath.Dir(filepath.Dir(path)) }
