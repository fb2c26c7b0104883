package quadlet

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/internal/unitfile"
)

// checkReload fails for a unit whose container cannot be replaced while it runs.
func (d *deriver) checkReload() error {
	if !d.Options.Reloads() {
		return nil
	}
	err := d.cannotReload()
	if err == nil {
		return nil
	}
	return fmt.Errorf("Reload=%s: %w, or remove Reload=", d.Options.Reload, err)
}

// cannotReload says why the container cannot be replaced, and what to write instead.
func (d *deriver) cannotReload() error {
	p := d.main
	switch {
	case d.isOneshot():
		return errors.New("Type=oneshot runs no container that stays; write a service")
	case p.PlaysKube() || p.StartsPod():
		return errors.New("only a .container is reloaded; write a .container")
	case d.Options.Ready != "":
		return errors.New("with Ready= a reload does not know when the new container is ready; write one of the two")
	case len(d.lines["ExecReload"]) > 0:
		return errors.New("the unit has ExecReload= (ReloadCmd=, ReloadSignal=) of its own; remove it")
	case d.unit.Get("Service", "Type") == "notify-reload":
		return errors.New("Type=notify-reload has the container reload itself; write Type=notify")
	case !d.creates || len(d.lines["ExecStart"]) != 1 || !p.HidesOutput():
		return errors.New("ExecStart= must be one podman run --detach")
	}
	if commands, err := unitfile.ParseCommands(d.unit.List("Service", "ExecStart")[0]); err != nil || len(commands) != 1 || commands[0].HasArgv0() || commands[0].AsRoot() {
		return errors.New("ExecStart= must be one podman without the prefix @, + or !")
	}
	if name, _ := p.Last("name"); name == "" {
		return errors.New("the container has no name; write ContainerName= (podman run --name=NAME)")
	}
	if timeout := d.startTimeout(); timeout != 0 && timeout < minimumTimeout {
		return fmt.Errorf("TimeoutStartSec=%v is too short for a reload, which may have to be undone; write %v or more", timeout, minimumTimeout)
	}
	if _, ok := p.Last("pod"); ok {
		return errors.New("the container is in a pod, whose containers cannot be exchanged; remove Pod=")
	}
	if d.Options.Reload == dropin.Swap {
		return nil
	}
	return d.cannotBeTwice()
}

// cannotBeTwice says why two of the unit's container cannot run at once.
func (d *deriver) cannotBeTwice() error {
	p := d.main
	for _, option := range []string{"publish", "p", "publish-all", "P"} {
		if value, ok := p.Last(option); ok && !(option == "publish-all" && podmancmd.IsFalse(value)) {
			return fmt.Errorf("two containers cannot have the published port %s; write Reload=swap, or let a socket unit listen (systemd.socket(5))", value)
		}
	}
	for _, option := range []string{"ip", "ip6", "mac-address"} {
		if value, ok := p.Last(option); ok {
			return fmt.Errorf("two containers cannot have the address --%s=%s; write Reload=swap", option, value)
		}
	}
	for _, option := range []string{"network", "net"} {
		for _, o := range p.All(option) {
			_, options, _ := strings.Cut(o.Value, ":")
			for _, o := range strings.Split(options, ",") {
				key, value, _ := strings.Cut(o, "=")
				switch key {
				case "ip", "ip6", "mac":
					return fmt.Errorf("two containers cannot have the address %s=%s; write Reload=swap", key, value)
				}
			}
		}
	}
	return nil
}

// replacement says how a reload starts the new container.
func (d *deriver) replacement(serviceType string) dropin.Replacement {
	line := d.lines["ExecStart"][0]
	commands, err := unitfile.ParseCommands(line)
	if err != nil {
		panic(err) // it was parsed before it was rewritten
	}
	c := commands[0]
	r := dropin.Replacement{
		Start: line[c.Path.Start:c.End()], Swap: d.Options.Reload == dropin.Swap,
		Sockets: len(d.sockets) > 0, Timeout: d.reloadTimeout(),
	}
	if strings.Contains(c.Prefix, ":") {
		r.Prefix = ":"
	}
	switch sdnotify, _ := d.main.Last("sdnotify"); sdnotify {
	case "", "container", "healthy":
		r.Notify = serviceType == "notify"
	}
	return r
}

// Of TimeoutStartSec=, which systemd gives each command of a reload, a new container may
// take two thirds. The rest, and never less than undoTime, is for undoing: systemd kills
// a reload that takes longer, and does not run its last commands.
const (
	usualTimeout   = 90 * time.Second // DefaultTimeoutStartSec= of systemd-system.conf(5)
	minimumTimeout = 30 * time.Second
	undoTime       = 15 * time.Second
)

// startTimeout returns TimeoutStartSec=, the usual one if it is not given or has units
// that are not read here, 0 for no limit.
func (d *deriver) startTimeout() time.Duration {
	text := strings.ReplaceAll(d.unit.Get("Service", "TimeoutStartSec"), " ", "")
	if text == "infinity" || text == "0" {
		return 0
	}
	if _, err := strconv.Atoi(text); err == nil {
		text += "s"
	}
	timeout, err := time.ParseDuration(strings.ReplaceAll(text, "min", "m"))
	if err != nil {
		return usualTimeout
	}
	return timeout
}

// reloadTimeout is how long the new container may take until it is ready.
func (d *deriver) reloadTimeout() time.Duration {
	timeout := d.startTimeout()
	if timeout == 0 {
		return time.Hour
	}
	return min(timeout*2/3, timeout-undoTime)
}
