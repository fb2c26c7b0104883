package run

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/internal/printable"
	"oci-mainpid-hook/internal/regular"
	"oci-mainpid-hook/internal/unitfile"
	"oci-mainpid-hook/sdnotify"
)

// Inside is what a container said of itself by its notification socket. Every field is
// as the container chose it, within these bounds: names are names of units, texts are
// printable and short.
type Inside struct {
	// Ready says whether the container is ready, as it was asked for.
	Ready bool `json:"ready"`
	// Waiting are the targets that are not active, of those it is to have.
	Waiting []string `json:"waiting,omitempty"`

	Status string `json:"status,omitempty"`
	// Errno and BusError are why it failed.
	Errno      int    `json:"errno,omitempty"`
	BusError   string `json:"bus_error,omitempty"`
	ExitStatus *int   `json:"exit_status,omitempty"`
	Stopping   bool   `json:"stopping,omitempty"`
	Reloading  bool   `json:"reloading,omitempty"`

	// What a systemd says, systemd(1) and "VM and container notifications".
	Hostname        string   `json:"hostname,omitempty"`
	MachineID       string   `json:"machine_id,omitempty"`
	SignalsLevel    int      `json:"signals_level,omitempty"`
	Active          []string `json:"active,omitempty"`
	Shutdown        string   `json:"shutdown,omitempty"`
	RebootParameter string   `json:"reboot_parameter,omitempty"`

	// Dropped counts messages that were not believed.
	Dropped int `json:"dropped,omitempty"`
}

// Bounds of Inside.
const (
	maxActive = 200 // units
	maxText   = 200 // bytes
	maxState  = 256 << 10
)

// maxExtension bounds how much more time one message may ask for.
const maxExtension = time.Minute

// hear takes a message in, and returns what of it systemd may hear. That is a list of
// assignments with values that are checked, never the container's own bytes. MAINPID=,
// NOTIFYACCESS=, FDSTORE= and all else that is not on the list are left out.
func (i *Inside) hear(m sdnotify.Message) (pass sdnotify.Message, readyNow bool) {
	for _, a := range m {
		switch v := a.Value; a.Name {
		case "READY":
			if v == "1" {
				readyNow, i.Reloading = true, false
			}
		case "STATUS":
			i.Status = text(v) // goes on with the targets, see statusLine
		case "STOPPING":
			if v == "1" {
				i.Stopping = true
				pass = append(pass, sdnotify.Stopping())
			}
		case "RELOADING":
			if v == "1" && i.Ready {
				i.Reloading = true
				pass = append(pass, sdnotify.Reloading()...)
			}
		case "WATCHDOG":
			if v == "1" {
				pass = append(pass, sdnotify.Watchdog())
			}
		case "ERRNO":
			if n, err := strconv.Atoi(v); err == nil && n > 0 && n < 4096 {
				i.Errno = n
				pass = append(pass, sdnotify.Assignment{Name: "ERRNO", Value: strconv.Itoa(n)})
			}
		case "BUSERROR":
			if isBusName(v) {
				i.BusError = v
				pass = append(pass, sdnotify.BusError(v))
			}
		case "EXIT_STATUS":
			if n, err := strconv.Atoi(v); err == nil && n >= 0 && n <= 255 {
				i.ExitStatus = &n
			}
		case "EXTEND_TIMEOUT_USEC":
			if n, err := strconv.ParseUint(v, 10, 63); err == nil && n > 0 {
				d := min(n, uint64(maxExtension.Microseconds()))
				pass = append(pass, sdnotify.ExtendTimeout(time.Duration(d)*time.Microsecond))
			}
		case "X_SYSTEMD_HOSTNAME":
			i.Hostname = word(v, 64)
		case "X_SYSTEMD_MACHINE_ID":
			if len(v) == 32 && strings.Trim(v, "0123456789abcdef") == "" {
				i.MachineID = v
			}
		case "X_SYSTEMD_SIGNALS_LEVEL":
			if n, err := strconv.Atoi(v); err == nil && n >= 0 && n < 100 {
				i.SignalsLevel = n
			}
		case "X_SYSTEMD_UNIT_ACTIVE":
			if unitfile.CheckName(v) == nil && !slices.Contains(i.Active, v) && len(i.Active) < maxActive {
				i.Active = append(i.Active, v)
			}
		case "X_SYSTEMD_UNIT_INACTIVE":
			i.Active = slices.DeleteFunc(i.Active, func(name string) bool { return name == v })
		case "X_SYSTEMD_SHUTDOWN":
			i.Shutdown = word(v, 32)
		case "X_SYSTEMD_REBOOT_PARAMETER":
			i.RebootParameter = text(v)
		}
	}
	return pass, readyNow
}

// missing returns the targets that are not active.
func (i *Inside) missing(targets []string) []string {
	return slices.DeleteFunc(slices.Clone(targets), func(name string) bool { return slices.Contains(i.Active, name) })
}

// statusLine describes the container for systemctl status.
func (i *Inside) statusLine(targets []string) string {
	var s string
	switch {
	case i.Shutdown != "":
		s = "Shutting down: " + i.Shutdown
	case len(targets) == 0 && i.Ready:
		s = "Ready"
	case len(targets) == 0:
		s = "Waiting for READY=1 of the container"
	case len(i.Waiting) == 0:
		s = "Active: " + strings.Join(targets, ", ")
	case i.Ready:
		s = "No longer active: " + strings.Join(i.Waiting, ", ")
	default:
		s = "Waiting for " + strings.Join(i.Waiting, ", ")
	}
	if i.Status != "" {
		s += "; inside: " + i.Status
	}
	return s
}

// String describes what is inside in a line, for oci-mainpid status.
func (i *Inside) String() string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if i.Hostname != "" {
		add("host %s", i.Hostname)
	}
	if i.MachineID != "" {
		add("machine %s", i.MachineID)
	}
	if n := len(i.Active); n > 0 {
		add("%d units active, the last %s", n, i.Active[n-1])
	}
	if len(i.Waiting) > 0 {
		add("not active: %s", strings.Join(i.Waiting, ", "))
	}
	if i.SignalsLevel > 0 {
		add("signals level %d", i.SignalsLevel)
	}
	if i.Shutdown != "" {
		add("shutdown: %s %s", i.Shutdown, i.RebootParameter)
	}
	if i.Status != "" {
		add("%s", i.Status)
	}
	return "inside: " + strings.Join(parts, "; ")
}

// text returns what may be shown of a text of the container's.
func text(s string) string { return printable.Clip(s, maxText) }

// word returns s if it is short and of letters, digits, dots and dashes, else "".
func word(s string, limit int) string {
	const characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	if len(s) > limit || strings.Trim(s, characters) != "" {
		return ""
	}
	return s
}

// isBusName reports whether s can be the name of a D-Bus error.
func isBusName(s string) bool {
	return strings.Contains(s, ".") && word(s, 255) != "" && !strings.Contains(s, "-")
}

// ReadInside returns what the container of that name said, whose user has that UID. It
// is for root: the file belongs to the user, who may write anything into it. The error is
// fs.ErrNotExist if the container was not started by run, or has no socket.
func ReadInside(uid int, container string) (Inside, error) {
	var i Inside
	if !isName(container) {
		return i, fmt.Errorf("%.80q is no name of a container", container)
	}
	base := BaseDir(uid)
	top := base[:len(base)-len("/oci-mainpid/run")]
	b, err := regular.ReadBelow(top, base+"/"+container+"/state", maxState)
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(b, &i); err != nil {
		return i, fmt.Errorf("%s/%s/state: %w", base, container, err)
	}
	i.clean()
	return i, nil
}

// clean makes what a file of a user's says fit to be shown.
func (i *Inside) clean() {
	i.Status, i.RebootParameter = text(i.Status), text(i.RebootParameter)
	i.Hostname, i.MachineID, i.Shutdown = word(i.Hostname, 64), word(i.MachineID, 32), word(i.Shutdown, 32)
	i.BusError = word(i.BusError, 255)
	for _, list := range []*[]string{&i.Active, &i.Waiting} {
		*list = slices.DeleteFunc((*list)[:min(len(*list), maxActive)], func(name string) bool { return unitfile.CheckName(name) != nil })
	}
}
