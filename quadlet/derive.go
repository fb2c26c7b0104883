package quadlet

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Cgroup says where a unit's processes live.
type Cgroup string

const (
	// Mixed: conmon in the unit's control group, the payload below the user's
	// manager.
	Mixed Cgroup = "mixed"
	// Service: both in the unit's control group.
	Service Cgroup = "service"
	// User: both below the user's manager.
	User Cgroup = "user"
)

// ParseCgroup returns the mode of that name, Mixed for an empty one.
func ParseCgroup(s string) (Cgroup, error) {
	switch c := Cgroup(s); c {
	case "":
		return Mixed, nil
	case Mixed, Service, User:
		return c, nil
	}
	return "", fmt.Errorf("Cgroup=%s is none of mixed, service, user", s)
}

// Request asks for the drop-in of one unit.
type Request struct {
	// Name is the service's name and Unit its text with all drop-ins but ours.
	Name string
	Unit *Unit
	// Quadlet says that Quadlet made the unit, not a person.
	Quadlet bool
	// Maker is for the drop-in's first line.
	Maker string

	Account Account
	Cgroup  Cgroup
	// Sockets are the socket units that the service gets descriptors from.
	Sockets []string
	// SystemdVersion is systemd's version number, 0 if unknown.
	SystemdVersion int
	Programs       Programs
}

// openFileVersion is the first systemd that has OpenFile=, systemd.service(5).
const openFileVersion = 253

// Result is a drop-in and what its reader should know.
type Result struct {
	Dropin   *Dropin
	Account  Account
	Warnings []string
	// Repeated are the settings of the unit that the drop-in gives again, so
	// that later changes of them in the unit have no effect.
	Repeated []string
}

// Derive decides what the unit needs. It fails for a unit that cannot be served,
// the error says why and what to write instead.
func Derive(r Request) (Result, error) {
	if err := CheckServiceName(r.Name); err != nil {
		return Result{}, err
	}
	if !r.Unit.Has("Service") {
		return Result{}, fmt.Errorf("no [Service] section: %w", ErrNotUnit)
	}
	if len(r.Unit.List("Service", "ExecStart")) == 0 {
		return Result{}, errors.New("no ExecStart=, so no podman that could start a container")
	}
	d := deriver{Request: r}
	d.out.Dropin, d.out.Account = &Dropin{Unit: r.Name, Maker: r.Maker}, r.Account
	if err := d.readExec(); err != nil {
		return Result{}, err
	}
	serviceType := r.Unit.Get("Service", "Type")
	if r.Quadlet && serviceType == "oneshot" {
		// A volume, a network, an image, a build, a job that ends: podman itself
		// is the main process.
		d.out.Dropin.asUser(r.Account)
		if d.creates {
			d.delegate()
		}
		d.repeatExec()
		return d.out, nil
	}
	how, err := d.delivery(serviceType)
	if err != nil {
		return Result{}, err
	}
	d.out.Dropin.asUser(r.Account)
	d.delegate()
	d.serviceType(serviceType, how)
	var postStart, postStop []string
	if how.handshake {
		// What the unit does once podman is up must not keep podman waiting.
		postStart = d.takeExec("ExecStartPost")
	}
	if slices.ContainsFunc(d.lines["ExecStopPost"], canFail) {
		// systemd runs none of the lines behind one that fails.
		postStop = d.takeExec("ExecStopPost")
	}
	d.repeatExec()
	slices.SortFunc(d.out.Repeated, func(a, b string) int { return slices.Index(execKeys, a) - slices.Index(execKeys, b) })
	d.out.Dropin.mainPID(r.Account, r.Programs, how, postStart, postStop)
	d.advise()
	return d.out, nil
}

// deriver collects what Derive learns of the unit.
type deriver struct {
	Request
	out Result

	// lines are the Exec settings as the drop-in wants them, changed says which
	// of them differ from the unit's.
	lines   map[string][]string
	changed map[string]bool

	main podman // of ExecStart=
	// known: ExecStart= is a podman that starts a container.
	// creates: and one that has --cgroups.
	known, creates bool
	removed        bool
}

// readExec reads the unit's command lines and rewrites what must be rewritten.
func (d *deriver) readExec() error {
	d.lines, d.changed = map[string][]string{}, map[string]bool{}
	for _, key := range execKeys {
		for _, line := range d.Unit.List("Service", key) {
			rewritten, err := d.rewrite(key, line)
			if err != nil {
				return fmt.Errorf("%s=%s: %w", key, clip(line), err)
			}
			d.lines[key] = append(d.lines[key], rewritten)
			if rewritten != line {
				d.changed[key] = true
			}
		}
	}
	return nil
}

func (d *deriver) rewrite(key, line string) (string, error) {
	commands, err := parseExec(line)
	if err != nil {
		return "", err
	}
	var e edits
	for _, c := range commands {
		end := c.path.end
		if len(c.args) > 0 {
			end = c.args[len(c.args)-1].end
		}
		p, isPodman := c.podman()
		// podman generate systemd writes ExecStartPre=/bin/rm -f %t/….
		if !c.asRoot() && (isPodman || filepath.Base(c.path.text) == "rm") {
			e.moveRuntimeDir(line, c.path.start, end, d.Account.RuntimeDir())
		}
		if !isPodman {
			if d.Cgroup == Mixed && !c.asRoot() && strings.Contains(line[c.path.end:end], "podman exec") {
				d.warn("%s=%s: Cgroup=mixed: podman exec from the unit's control group cannot enter the container; write systemd-run --user --scope podman exec", key, clip(line))
			}
			continue
		}
		if c.asRoot() {
			d.warn("%s=%s: the prefix %s runs this podman as root, not as %s", key, clip(line), c.prefix, d.Account.Name)
		}
		switch {
		case key == "ExecStart":
			d.main = p
			d.known = d.known || p.starts()
			if d.known && p.creates() {
				d.creates = true
				d.setCgroups(&e, p)
			}
		case p.creates() && !p.starts():
			d.creates = true
			d.setCgroups(&e, p)
		case p.starts() && !d.plain():
			// Not the unit's container: the hook shall leave it alone.
			wrap(&e, line, c, "/usr/bin/env", "-u OCI_MAINPID_FILE -u OCI_MAINPID_RESULT")
		case p.enters() && d.Cgroup == Mixed && !c.asRoot():
			// It starts in the unit's control group, and nobody but root may move
			// it from there into the container's.
			wrap(&e, line, c, "/usr/bin/systemd-run", "--user --scope --quiet")
		}
		if (key == "ExecStop" || key == "ExecStopPost") && p.removes() {
			d.removed = true
		}
	}
	return e.apply(line), nil
}

// plain reports whether the unit needs no main PID.
func (d *deriver) plain() bool { return d.Quadlet && d.Unit.Get("Service", "Type") == "oneshot" }

// setCgroups makes podman put the container where the mode says.
func (d *deriver) setCgroups(e *edits, p podman) {
	want := ""
	value, given := p.last("cgroups")
	switch {
	case value == "disabled":
		// conmon and the payload stay where podman is, in any mode.
	case d.Cgroup == Mixed && value == "split":
		want = "enabled"
	case d.Cgroup == User && value == "split":
		want = "no-conmon"
	case d.Cgroup == Service && value != "split":
		want = "split"
	}
	if want == "" {
		return
	}
	if !given {
		e.replace(p.verbEnd, p.verbEnd, " --cgroups="+want)
		return
	}
	for _, o := range p.options {
		switch {
		case o.name != "cgroups":
		case o.joined:
			e.replace(o.at.start, o.at.end, "--cgroups="+want)
		default:
			e.replace(o.at.start, o.at.end, want)
		}
	}
}

// wrap has another program run the command.
func wrap(e *edits, line string, c command, program, args string) {
	path := line[c.path.start:c.path.end]
	if strings.Contains(c.prefix, "@") && len(c.args) > 0 {
		e.replace(c.path.start, c.path.end, program)
		e.replace(c.args[0].start, c.args[0].end, filepath.Base(program)+" "+args+" "+path)
		return
	}
	e.replace(c.path.start, c.path.start, program+" "+args+" ")
}

// delivery chooses how the PID travels, and refuses what cannot work.
func (d *deriver) delivery(serviceType string) (how delivery, err error) {
	switch serviceType {
	case "oneshot":
		return how, errors.New("Type=oneshot has no main process that outlives podman; for a service that keeps running write Type=exec")
	case "dbus", "idle":
		return how, fmt.Errorf("Type=%s is not supported; write Type=notify with podman run --sdnotify=conmon, or Type=exec", serviceType)
	}
	pods := strings.HasPrefix(d.main.verb, "pod ")
	how.kube = d.main.verb == "kube play" || d.main.verb == "play kube"
	if d.Cgroup == Service && (pods || how.kube) {
		return how, fmt.Errorf("Cgroup=service: podman %s puts pods into a control group of their own and cannot put them into the unit's; write Cgroup=mixed", d.main.verb)
	}
	notifies := serviceType == "notify" || serviceType == "notify-reload"
	if notifies && d.Cgroup == User && d.creates {
		switch sdnotify, _ := d.main.last("sdnotify"); sdnotify {
		case "", "container":
			return how, errors.New("Cgroup=user: the container's READY=1 would be lost, only processes in the unit's control group may send it; write Cgroup=mixed, or Notify=no (podman run --sdnotify=conmon)")
		case "healthy":
			return how, errors.New("Cgroup=user: the READY=1 of a healthy container would be lost, only processes in the unit's control group may send it; write Cgroup=mixed, or Notify=no (podman run --sdnotify=conmon)")
		}
	}
	sdnotify, _ := d.main.last("sdnotify")
	// Where systemd is old, podman may be, too: before 4.8 it keeps its environment
	// from conmon, so that it must still be there when conmon is verified.
	old := d.SystemdVersion > 0 && d.SystemdVersion < openFileVersion
	how.handshake = !notifies || d.Cgroup == User || old && sdnotify == "conmon"
	how.pause = d.known
	how.openFile = d.SystemdVersion >= openFileVersion && !IsTemplate(d.Name) && len(d.Sockets) == 0
	return how, nil
}

func (d *deriver) delegate() {
	if d.Cgroup == User {
		d.out.Dropin.set("Delegate", "no")
	} else {
		d.out.Dropin.set("Delegate", "yes")
	}
}

// serviceType sets when systemd takes the unit for started and whom it listens to.
func (d *deriver) serviceType(serviceType string, how delivery) {
	access := d.Unit.Get("Service", "NotifyAccess")
	if how.handshake {
		if serviceType != "exec" {
			d.out.Dropin.set("Type", "exec")
		}
		// notify-mainpid is one of the unit's control processes.
		if access != "exec" && access != "all" {
			d.out.Dropin.set("NotifyAccess", "exec")
		}
	} else if access != "all" {
		d.out.Dropin.set("NotifyAccess", "all")
	}
	if d.Unit.Get("Service", "PIDFile") != "" {
		d.out.Dropin.set("PIDFile", "")
	}
}

// repeatExec gives again what changed.
func (d *deriver) repeatExec() {
	for _, key := range execKeys {
		if d.changed[key] {
			d.out.Dropin.setExec(key, d.takeExec(key))
		}
	}
}

// takeExec returns the lines of a setting, nil if there are none, for the caller
// to give again.
func (d *deriver) takeExec(key string) []string {
	lines := d.lines[key]
	if lines != nil {
		d.out.Repeated = append(d.out.Repeated, key)
		d.changed[key] = false
	}
	return lines
}

// canFail reports whether systemd takes the failure of a command line for one of
// the unit; see "Command lines" in systemd.service(5).
func canFail(line string) bool {
	commands, err := parseExec(line)
	return err != nil || slices.ContainsFunc(commands, func(c command) bool { return !strings.Contains(c.prefix, "-") })
}

func (d *deriver) warn(format string, args ...any) {
	d.out.Warnings = append(d.out.Warnings, fmt.Sprintf(format, args...))
}

// advise adds the warnings about a unit that can be served.
func (d *deriver) advise() {
	switch {
	case !d.known:
		d.warn("ExecStart= is not a podman that starts a container, so --cgroups= was left as it is; Cgroup=%s needs podman run --cgroups=%s", d.Cgroup, map[Cgroup]string{Mixed: "enabled", Service: "split", User: "no-conmon"}[d.Cgroup])
	case d.main.verb == "start" || d.main.verb == "container start":
		d.warn("podman start keeps the --cgroups= that the container was created with; Cgroup=%s needs %s", d.Cgroup, map[Cgroup]string{Mixed: "enabled", Service: "split", User: "no-conmon"}[d.Cgroup])
	}
	if !d.removed {
		d.warn("neither ExecStop= nor ExecStopPost= stops the container: a failed start would leave it running; write ExecStopPost=-podman rm -f -i NAME")
	}
	if d.Cgroup != Service {
		var limits []string
		for _, key := range limitKeys {
			if d.Unit.Get("Service", key) != "" {
				limits = append(limits, key+"=")
			}
		}
		if len(limits) > 0 {
			d.warn("Cgroup=%s: %s in [Service] does not bind the container, which is in the control group of the user's manager; write Cgroup=service, or give the limit to podman", d.Cgroup, strings.Join(limits, " "))
		}
	}
	sdnotify, given := d.main.last("sdnotify")
	_, health := d.main.last("health-cmd")
	switch {
	case !d.creates:
	case d.Cgroup == Service && (health || sdnotify == "healthy") && filepath.Base(d.main.runtime) != "runc":
		d.warn("Cgroup=service: health checks start in the user's control group, and crun may not move them into the unit's, so each fails; write Cgroup=mixed, or use runc")
	case !d.Quadlet && strings.HasPrefix(d.Unit.Get("Service", "Type"), "notify") && !given:
		d.warn("Type=notify without --sdnotify=: the container itself must send READY=1; write --sdnotify=conmon if it does not")
	}
}

// limitKeys are those of systemd.resource-control(5) that limit what a unit uses.
var limitKeys = []string{
	"CPUWeight", "CPUQuota", "AllowedCPUs", "AllowedMemoryNodes",
	"MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "MemorySwapMax", "MemoryZSwapMax", "MemoryLimit",
	"TasksMax", "IOWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax",
	"IPAddressAllow", "IPAddressDeny", "DeviceAllow", "DevicePolicy", "SocketBindAllow", "SocketBindDeny", "RestrictNetworkInterfaces",
}
