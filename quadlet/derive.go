package quadlet

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/unitfile"
)

// openFileVersion is the first systemd that has OpenFile=, systemd.service(5).
const openFileVersion = 253

// derive makes the drop-in that the unit of a decision needs. It fails for a unit that
// cannot be served. The error says why, and what to write instead.
func (p *Planner) derive(d *Decision, unit *unitfile.File, madeByQuadlet bool) error {
	if err := checkServiceName(d.Service); err != nil {
		return err
	}
	if !unit.Has("Service") {
		return fmt.Errorf("no [Service] section: %w", unitfile.ErrNotUnit)
	}
	if len(unit.List("Service", "ExecStart")) == 0 {
		return errors.New("no ExecStart=, so no podman that could start a container")
	}
	dr := deriver{
		Decision: d, unit: unit, madeByQuadlet: madeByQuadlet, dropin: &dropin.Dropin{Unit: d.Service, Origin: d.origin()},
		sockets: p.machine.sockets.Of(d.Service, unit), systemdVersion: p.machine.systemdVersion,
	}
	dr.programs = p.Programs
	if err := dr.derive(p.Programs); err != nil {
		return err
	}
	d.Dropin = dr.dropin
	return nil
}

// checkServiceName fails if systemd takes no service of that name, or if it would
// apply the service's drop-ins to other units, too.
func checkServiceName(name string) error {
	if err := unitfile.CheckServiceName(name); err != nil {
		return err
	}
	if unitfile.IsPrefix(name) {
		prefix, _, _ := strings.Cut(unitfile.Stem(name), "@")
		return fmt.Errorf("the drop-ins of %s would change every unit whose name begins with %q, see systemd.unit(5); give the file a name that does not end with a dash", name, prefix)
	}
	return nil
}

// deriver makes the drop-in of one unit.
type deriver struct {
	*Decision
	unit           *unitfile.File // with all drop-ins except ours
	madeByQuadlet  bool           // rather than written by hand
	dropin         *dropin.Dropin
	sockets        []string // the socket units that pass descriptors to the service
	systemdVersion int      // 0 if unknown
	programs       dropin.Programs

	// lines are the Exec settings as the unit shall have them. changed says which of
	// these settings differ from the unit's own.
	lines   map[string][]string
	changed map[string]bool

	main    podmancmd.Podman // of ExecStart=
	starts  bool             // ExecStart= is a podman that starts a container
	creates bool             // a command of the unit creates its container
	removes bool             // a command of the unit stops or removes its container
}

func (d *deriver) derive(programs dropin.Programs) error {
	if home := d.unit.Get("Service", "ProtectHome"); home != "" && !isFalse(home) {
		return fmt.Errorf("ProtectHome=%s keeps podman from its storage in %s and from %s; write ProtectHome=no", home, d.Account.Home, d.Account.RuntimeDir())
	}
	if err := d.readExec(); err != nil {
		return err
	}
	if err := d.checkReady(); err != nil {
		return err
	}
	d.adviseHome()
	if err := d.checkReload(); err != nil {
		return err
	}
	if d.isOneshot() {
		// podman itself is the main process.
		d.dropin.AsUser(d.Account)
		if d.creates {
			d.delegate()
		}
		d.repeatExec()
		return nil
	}
	serviceType := d.unit.Get("Service", "Type")
	how, err := d.delivery(serviceType)
	if err != nil {
		return err
	}
	d.dropin.AsUser(d.Account)
	d.delegate()
	d.serviceType(serviceType, how)
	var postStart, postStop []string
	if how.Handshake {
		// podman waits for notify-mainpid, so that must run before the unit's own
		// lines.
		postStart = d.takeExec("ExecStartPost")
	}
	if slices.ContainsFunc(d.lines["ExecStopPost"], canFail) {
		// If a line fails, systemd does not run the lines after it.
		postStop = d.takeExec("ExecStopPost")
	}
	if d.Options.Reloads() {
		d.lines["ExecStop"] = append([]string{d.dropin.StopReload(programs)}, d.lines["ExecStop"]...)
		d.changed["ExecStop"] = true
	}
	d.repeatExec()
	slices.SortFunc(d.Repeated, func(a, b string) int {
		return slices.Index(dropin.ExecKeys, a) - slices.Index(dropin.ExecKeys, b)
	})
	d.dropin.MainPID(d.Account, programs, how, postStart, postStop)
	if d.Options.Reloads() {
		d.dropin.Replace(d.Account, programs, d.replacement(serviceType))
	}
	d.advise()
	return nil
}

// readExec reads the unit's command lines into lines, and rewrites those of podman.
func (d *deriver) readExec() error {
	d.lines, d.changed = map[string][]string{}, map[string]bool{}
	for _, key := range dropin.ExecKeys {
		for _, line := range d.unit.List("Service", key) {
			rewritten, err := d.rewrite(key, line)
			if err != nil {
				return fmt.Errorf("%s=%s: %w", key, unitfile.Clip(line), err)
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
	commands, err := unitfile.ParseCommands(line)
	if err != nil {
		return "", err
	}
	var e unitfile.Edits
	for _, c := range commands {
		p, isPodman := podmancmd.Parse(c.Path.Text, c.Arguments())
		// podman generate systemd writes ExecStartPre=/bin/rm -f %t/….
		if !c.AsRoot() && (isPodman || filepath.Base(c.Path.Text) == "rm") {
			d.moveSpecifiers(&e, line, c.Path.Start, c.End(), d.dropPIDFile(&e, p))
		} else if !c.AsRoot() && hasHome(line[c.Path.Start:c.End()]) {
			d.warn("%s=%s: %%h is root's home here; write %s", key, unitfile.Clip(line), d.Account.Home)
		}
		if !isPodman {
			if d.Options.Cgroup == dropin.Mixed && !c.AsRoot() && strings.Contains(line[c.Path.End:c.End()], "podman exec") {
				d.warn("%s=%s: Cgroup=mixed: podman exec from the unit's control group cannot enter the container; write systemd-run --user --scope podman exec", key, unitfile.Clip(line))
			}
			continue
		}
		if c.AsRoot() {
			d.warn("%s=%s: the prefix %s runs this podman as root, not as %s", key, unitfile.Clip(line), c.Prefix, d.Account.Name)
		} else if key == "ExecStart" || key == "ExecStartPre" {
			d.advisePaths(key, p, line[c.Path.Start:c.End()])
		}
		switch {
		case key == "ExecStart":
			d.main = p
			d.starts = d.starts || p.StartsContainer()
			if d.starts && p.CreatesContainer() {
				d.creates = true
				if name, _ := p.Last("name"); !strings.ContainsAny(name, "%$") {
					d.containerName = name
				}
				d.setCgroups(&e, p)
			}
			if p.PlaysKube() {
				if err := addServiceContainer(&e, p); err != nil {
					return "", err
				}
			}
			d.setLogDriver(&e, p)
			if d.Options.Ready != "" && !d.isOneshot() {
				if podmancmd.IsRun(c.Path.Text, c.Arguments()) {
					return "", fmt.Errorf("Ready=%s: the command is oci-mainpid run already; remove one of the two", d.Options.Ready)
				}
				if err := p.CheckSupervised(); err != nil {
					return "", fmt.Errorf("Ready=%s: %w", d.Options.Ready, err)
				}
				wrap(&e, line, c, unitfile.QuoteArgument(d.programs.OCIMainPID), "run --ready="+d.Options.Ready+" --")
			}
		case p.CreatesContainer() && !p.StartsContainer():
			d.creates = true
			d.setCgroups(&e, p)
			d.setLogDriver(&e, p)
		case p.StartsContainer() && !d.isOneshot():
			// This starts a container that is not the unit's main one. Without these
			// variables the hook leaves it alone.
			wrap(&e, line, c, "/usr/bin/env", "-u "+handover.EnvMainPIDFile+" -u "+handover.EnvResultFile)
		case p.EntersContainer() && d.Options.Cgroup == dropin.Mixed && !c.AsRoot():
			// The command starts in the unit's control group. Only root may move a
			// process from there into the container's control group.
			wrap(&e, line, c, "/usr/bin/systemd-run", "--user --scope --quiet")
		}
		if (key == "ExecStop" || key == "ExecStopPost") && p.RemovesContainer() {
			d.removes = true
		}
	}
	return e.Apply(line), nil
}

// checkReady fails if Ready= cannot work in the unit.
func (d *deriver) checkReady() error {
	reason := ""
	switch {
	case d.Options.Ready == "":
		return nil
	case d.isOneshot():
		reason = "Type=oneshot has no main process that could be ready; write Type=notify"
	case !d.main.CreatesContainer():
		reason = "ExecStart= is no podman run, so there is no container whose systemd could be heard; write podman run -d --rm --name=NAME"
	case d.systemdVersion > 0 && d.systemdVersion < openFileVersion:
		reason = fmt.Sprintf("needs systemd %d or later; remove Ready=", openFileVersion)
	}
	if reason == "" {
		return nil
	}
	return fmt.Errorf("Ready=%s: %s", d.Options.Ready, reason)
}

// isOneshot reports whether the unit needs no main PID: a volume, a network, an image,
// a build, or a job that ends.
func (d *deriver) isOneshot() bool {
	return d.unit.Get("Service", "Type") == "oneshot"
}

// setCgroups sets podman's --cgroups= as the mode needs it.
func (d *deriver) setCgroups(e *unitfile.Edits, p podmancmd.Podman) {
	want := ""
	value, given := p.Last("cgroups")
	switch {
	case value == "disabled":
		// In each mode conmon and the container stay in podman's control group.
	case d.Options.Cgroup == dropin.Mixed && value == "split":
		want = "enabled"
	case d.Options.Cgroup == dropin.User && value == "split":
		want = "no-conmon"
	case d.Options.Cgroup == dropin.Service && value != "split":
		want = "split"
	}
	if want == "" {
		return
	}
	if !given {
		e.Replace(p.VerbEnd, p.VerbEnd, " --cgroups="+want)
		return
	}
	for _, o := range p.All("cgroups") {
		text := want
		if o.Joined {
			text = "--cgroups=" + want
		}
		e.Replace(o.At.Start, o.At.End, text)
	}
}

// addServiceContainer has podman kube play make the service container, which stands
// for all pods: its conmon is the unit's main process.
func addServiceContainer(e *unitfile.Edits, p podmancmd.Podman) error {
	value, given := p.Last("service-container")
	if !given {
		e.Replace(p.VerbEnd, p.VerbEnd, " --service-container=true")
	} else if podmancmd.IsFalse(value) {
		return errors.New("no container stands for all pods; write --service-container=true")
	}
	return nil
}

// dropPIDFile has podman write no file for PIDFile=, which the unit loses: nobody
// would remove that file. It returns the parts of the line that go.
func (d *deriver) dropPIDFile(e *unitfile.Edits, p podmancmd.Podman) (removed []span) {
	path := d.unit.Get("Service", "PIDFile")
	if path == "" || d.isOneshot() {
		return nil
	}
	for _, name := range []string{"conmon-pidfile", "infra-conmon-pidfile"} {
		for _, o := range p.All(name) {
			if o.Value == path {
				// With the space before it.
				e.Replace(o.Start-1, o.At.End, "")
				removed = append(removed, span{o.Start - 1, o.At.End})
			}
		}
	}
	return removed
}

// setLogDriver makes podman write the container's output to the journal, unless the
// unit's author chose a log driver. Otherwise podman would write to a file if the user
// may not read the journal, and --rm removes that file.
func (d *deriver) setLogDriver(e *unitfile.Edits, p podmancmd.Podman) {
	_, driver := p.Last("log-driver")
	_, options := p.Last("log-opt")
	if !driver && !options && p.HidesOutput() {
		e.Replace(p.VerbEnd, p.VerbEnd, " --log-driver=journald")
	}
}

// wrap puts another program with its arguments in front of a command.
func wrap(e *unitfile.Edits, line string, c unitfile.Command, program, args string) {
	path := line[c.Path.Start:c.Path.End]
	if c.HasArgv0() {
		e.Replace(c.Path.Start, c.Path.End, program)
		e.Replace(c.Args[0].Start, c.Args[0].End, filepath.Base(program)+" "+args+" "+path)
		return
	}
	e.Replace(c.Path.Start, c.Path.Start, program+" "+args+" ")
}

// delivery chooses how conmon's PID gets from the hook to systemd. It fails for a
// unit with which no way works.
func (d *deriver) delivery(serviceType string) (how dropin.Delivery, err error) {
	switch serviceType {
	case "dbus", "idle":
		return how, fmt.Errorf("Type=%s is not supported; write Type=notify with podman run --sdnotify=conmon, or Type=exec", serviceType)
	}
	how.Kube = d.main.PlaysKube()
	if d.Options.Cgroup == dropin.Service && (d.main.StartsPod() || how.Kube) {
		return how, fmt.Errorf("Cgroup=service: podman %s puts pods into a control group of their own and cannot put them into the unit's; write Cgroup=mixed", d.main.Verb)
	}
	notifies := serviceType == "notify" || serviceType == "notify-reload"
	openFile := d.systemdVersion >= openFileVersion && !unitfile.IsTemplate(d.Service) && len(d.sockets) == 0
	if d.Options.Ready != "" {
		// oci-mainpid run sends READY=1, from the unit's control group, after the hook.
		return dropin.Delivery{Pause: true, HookFirst: true, OpenFile: openFile}, nil
	}
	if notifies && d.Options.Cgroup == dropin.User && d.creates {
		switch sdnotify, _ := d.main.Last("sdnotify"); sdnotify {
		case "", "container":
			return how, errors.New("Cgroup=user: the container's READY=1 would be lost, only processes in the unit's control group may send it; write Cgroup=mixed, or Notify=no (podman run --sdnotify=conmon)")
		case "healthy":
			return how, errors.New("Cgroup=user: the READY=1 of a healthy container would be lost, only processes in the unit's control group may send it; write Cgroup=mixed, or Notify=no (podman run --sdnotify=conmon)")
		}
	}
	sdnotify, _ := d.main.Last("sdnotify")
	// With an old systemd, podman may be old, too. podman before 4.8 does not pass its
	// environment to conmon. So podman must still run when conmon is verified.
	old := d.systemdVersion > 0 && d.systemdVersion < openFileVersion
	how.Handshake = !notifies || d.Options.Cgroup == dropin.User || old && sdnotify == "conmon"
	// podman sends READY=1 itself once the runtime has run the hook; a container may
	// send it as soon as it runs.
	how.HookFirst = how.Kube || d.creates && (sdnotify == "conmon" || sdnotify == "healthy")
	how.Pause = d.starts
	how.OpenFile = openFile
	return how, nil
}

func (d *deriver) delegate() {
	if d.Options.Cgroup == dropin.User {
		d.dropin.Set("Delegate", "no")
	} else {
		d.dropin.Set("Delegate", "yes")
	}
}

// serviceType sets Type=, NotifyAccess= and PIDFile=: when systemd calls the unit
// started, and from whom it takes messages.
func (d *deriver) serviceType(serviceType string, how dropin.Delivery) {
	access := d.unit.Get("Service", "NotifyAccess")
	if how.Handshake {
		if serviceType != "exec" {
			d.dropin.Set("Type", "exec")
		}
		// notify-mainpid is a control process of the unit, which "exec" admits.
		if access != "exec" && access != "all" {
			d.dropin.Set("NotifyAccess", "exec")
		}
	} else if access != "all" {
		d.dropin.Set("NotifyAccess", "all")
	}
	if d.Options.Ready != "" {
		if serviceType != "notify" && serviceType != "notify-reload" {
			d.dropin.Set("Type", "notify")
		}
		// A reboot inside ends conmon with 129, a power-off with 130 (reboot(2)).
		d.dropin.Set("SuccessExitStatus", "129 130")
		d.dropin.Set("RestartForceExitStatus", "129")
	}
	if d.unit.Get("Service", "PIDFile") != "" {
		d.dropin.Set("PIDFile", "")
	}
}

// repeatExec writes the Exec settings that changed into the drop-in.
func (d *deriver) repeatExec() {
	for _, key := range dropin.ExecKeys {
		if d.changed[key] {
			d.dropin.SetExec(key, d.takeExec(key))
		}
	}
}

// takeExec returns the lines of a setting, or nil if there are none. The caller must
// write them into the drop-in.
func (d *deriver) takeExec(key string) []string {
	lines := d.lines[key]
	if lines != nil {
		d.Repeated = append(d.Repeated, key)
		d.changed[key] = false
	}
	return lines
}

// canFail reports whether the unit fails if a command line fails: "Command lines" in
// systemd.service(5).
func canFail(line string) bool {
	commands, err := unitfile.ParseCommands(line)
	return err != nil || slices.ContainsFunc(commands, func(c unitfile.Command) bool { return !c.MayFail() })
}

func (d *deriver) warn(format string, args ...any) {
	d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...))
}

// advise warns about what may surprise in a unit that can be served.
func (d *deriver) advise() {
	switch {
	case !d.starts:
		d.warn("ExecStart= is not a podman that starts a container, so --cgroups= was left as it is; Cgroup=%s needs podman run --cgroups=%s", d.Options.Cgroup, podmanCgroups[d.Options.Cgroup])
	case (d.main.Verb == "start" || d.main.Verb == "container start") && !d.creates:
		d.warn("podman start keeps the --cgroups= that the container was created with; Cgroup=%s needs %s", d.Options.Cgroup, podmanCgroups[d.Options.Cgroup])
	}
	if !d.removes {
		d.warn("neither ExecStop= nor ExecStopPost= stops the container: a failed start would leave it running; write ExecStopPost=-podman rm -f -i NAME")
	}
	if d.Options.Cgroup != dropin.Service {
		var limits []string
		for _, key := range limitKeys {
			if d.unit.Get("Service", key) != "" {
				limits = append(limits, key+"=")
			}
		}
		if len(limits) > 0 {
			d.warn("Cgroup=%s: %s in [Service] does not bind the container, which is in the control group of the user's manager; write Cgroup=service, or give the limit to podman", d.Options.Cgroup, strings.Join(limits, " "))
		}
	}
	d.adviseCredentials()
	sdnotify, given := d.main.Last("sdnotify")
	healthCmd, health := d.main.Last("health-cmd")
	health = health && healthCmd != "none" // "none" turns the image's health check off
	runtime, _ := d.main.Global("runtime")
	switch {
	case !d.creates || d.Options.Ready != "":
	case d.Options.Cgroup == dropin.Service && (health || sdnotify == "healthy") && filepath.Base(runtime) != "runc":
		d.warn("Cgroup=service: health checks start in the user's control group, and crun may not move them into the unit's, so each fails; write Cgroup=mixed, or use runc")
	case !d.madeByQuadlet && strings.HasPrefix(d.unit.Get("Service", "Type"), "notify") && !given:
		d.warn("Type=notify without --sdnotify=: the container itself must send READY=1; write --sdnotify=conmon if it does not")
	}
}

// adviseCredentials warns of credentials, systemd.exec(5), that the container does not see.
func (d *deriver) adviseCredentials() {
	if !d.creates {
		return
	}
	for _, a := range d.unit.Assignments {
		if strings.HasPrefix(a.Key, "Exec") && (strings.Contains(a.Value, "%d") || strings.Contains(a.Value, "CREDENTIALS_DIRECTORY")) {
			return
		}
	}
	for _, key := range []string{"LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted", "ImportCredential"} {
		if d.unit.Get("Service", key) != "" {
			d.warn("%s=: the container does not see the unit's credentials; write Volume=%%d:/run/credentials:ro (podman run -v %%d:/run/credentials:ro)", key)
			return
		}
	}
}

// podmanCgroups is podman's --cgroups= for each mode.
var podmanCgroups = map[dropin.Cgroup]string{dropin.Mixed: "enabled", dropin.Service: "split", dropin.User: "no-conmon"}

// limitKeys are the keys in systemd.resource-control(5) that limit what a unit uses.
var limitKeys = []string{
	"CPUWeight", "CPUQuota", "AllowedCPUs", "AllowedMemoryNodes",
	"MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "MemorySwapMax", "MemoryZSwapMax", "MemoryLimit",
	"Slice", "TasksMax", "IOWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax",
	"IPAddressAllow", "IPAddressDeny", "DeviceAllow", "DevicePolicy", "SocketBindAllow", "SocketBindDeny", "RestrictNetworkInterfaces",
}
