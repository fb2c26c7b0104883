// Package dropin is what a unit gets: the text of UNIT.d/50-oci-mainpid.conf. Its
// first line is a record that can be read back, see Origin.
package dropin

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/unitfile"
)

// Name is the file's name in UNIT.d. Two drop-ins of one name replace each
// other, so that an administrator's in /etc takes the place of the generator's.
const Name = "50-oci-mainpid.conf"

// Dropin is the text of UNIT.d/50-oci-mainpid.conf.
type Dropin struct {
	// Unit is the service's name, such as web.service.
	Unit   string
	Origin Origin

	unit, service []byte
}

// SetUnit adds a setting to [Unit].
func (d *Dropin) SetUnit(key, value string) { d.unit = appendSetting(d.unit, key, value) }

// Set adds a setting to [Service].
func (d *Dropin) Set(key, value string) { d.service = appendSetting(d.service, key, value) }

func appendSetting(section []byte, key, value string) []byte {
	section = append(append(section, key...), '=')
	section = append(section, value...)
	if strings.HasSuffix(value, `\`) {
		section = append(section, ' ') // so that it does not continue the line
	}
	return append(section, '\n')
}

// SetExec sets all lines of an Exec setting anew.
func (d *Dropin) SetExec(key string, lines []string) {
	d.Set(key, "")
	for _, line := range lines {
		d.Set(key, line)
	}
}

// Text returns the drop-in's text.
func (d *Dropin) Text() []byte {
	return bytes.Join(d.parts(), nil)
}

// parts returns the text in pieces.
func (d *Dropin) parts() [][]byte {
	parts := [][]byte{[]byte(d.Origin.String() + "\n")}
	if len(d.unit) > 0 {
		parts = append(parts, []byte("\n[Unit]\n"), d.unit)
	}
	if len(d.service) > 0 {
		parts = append(parts, []byte("\n[Service]\n"), d.service)
	}
	return parts
}

// Path returns where the drop-in belongs in a directory of unit files.
func (d *Dropin) Path(dir string) string {
	return filepath.Join(dir, d.Unit+".d", Name)
}

// Check fails with ErrForeign if the file at path was made by another program.
func Check(path string) error {
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = ParseOrigin(have)
	}
	if errors.Is(err, ErrForeign) {
		return fmt.Errorf("%s %w; --force overwrites it", path, err)
	}
	return err
}

// Write puts the drop-in below dir, a directory of unit files: the whole text, or
// nothing and an error.
func (d *Dropin) Write(dir string) error {
	path := d.Path(dir)
	err := unix.Mkdir(filepath.Dir(path), 0o755)
	if err == unix.ENOENT {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: filepath.Dir(path), Err: err}
	}
	// systemd reads *.conf only.
	temporary := path + ".new"
	fd, err := unix.Open(temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "open", Path: temporary, Err: err}
	}
	parts := d.parts()
	size := 0
	for _, part := range parts {
		size += len(part)
	}
	n, err := unix.Writev(fd, parts)
	if err == nil && n < size {
		err = unix.ENOSPC
	}
	if err == nil {
		err = unix.Fchmod(fd, 0o644) // the umask does not count
	}
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	if err == nil {
		err = unix.Rename(temporary, path)
	}
	if err != nil {
		unix.Unlink(temporary)
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// Programs are the paths of what the drop-ins run.
type Programs struct {
	// OCIMainPID is oci-mainpid itself, NotifyMainPID the helper.
	OCIMainPID, NotifyMainPID string
}

// FindPrograms derives the paths from where the running program is installed,
// PREFIX/bin/oci-mainpid. Where the kernel does not tell, PREFIX is /usr.
func FindPrograms() Programs {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		self = "/usr/bin/oci-mainpid"
	}
	prefix := filepath.Dir(filepath.Dir(self))
	return Programs{
		OCIMainPID:    self,
		NotifyMainPID: filepath.Join(prefix, "libexec/oci-mainpid/notify-mainpid"),
	}
}

// AsUser adds what every unit of the user needs, whatever it runs.
func (d *Dropin) AsUser(a account.Account) {
	d.SetUnit("Wants", a.Manager())
	d.SetUnit("After", a.Manager())
	d.service = slices.Grow(d.service, 2<<10) // as much as most come to
	d.Set("User", strings.ReplaceAll(a.Name, "%", "%%"))
	d.Set("Environment", "XDG_RUNTIME_DIR="+a.RuntimeDir())
	d.Set("Environment", "DBUS_SESSION_BUS_ADDRESS=unix:path="+a.RuntimeDir()+"/bus")
}

// KeepManager returns the drop-ins that keep an account's manager, which has the
// payload in most modes, when the account's last session ends: without lingering
// systemd-logind stops it then, 10 s later (UserStopDelaySec= in logind.conf(5)).
// Dependencies, as at shutdown, stop it all the same.
func KeepManager(a account.Account, maker Maker) []*Dropin {
	var dropins []*Dropin
	// logind asks for the first to stop, to which the second is bound.
	for _, template := range []string{"user-runtime-dir@", "user@"} {
		d := &Dropin{Unit: template + strconv.Itoa(a.UID) + ".service", Origin: Origin{Maker: maker, User: a.Name, UID: a.UID}}
		d.SetUnit("RefuseManualStop", "yes")
		dropins = append(dropins, d)
	}
	return dropins
}

// runMount is the unit that mounts a file system of its own on handover.Dir.
const runMount = `run-oci\x2dmainpid.mount`

// Delivery says how the PID gets from the hook to systemd.
type Delivery struct {
	// OpenFile: systemd opens the mainpid file as root and podman inherits it.
	// Otherwise the file is the user's and the hook opens it by name.
	OpenFile bool
	// Handshake: the hook waits for the result, and podman for the hook.
	Handshake bool
	// Pause: the user's pause process must live before podman starts. Without one
	// podman forks to enter its user namespace, and the child sends READY=1 and
	// MAINPID= just before it ends: where it is gone before systemd looks, systemd
	// cannot tell whose message it was, and drops it.
	Pause bool
	// Kube: the main process must be the service container's conmon.
	Kube bool
	// HookFirst: the hook has run before systemd runs ExecStartPost=.
	HookFirst bool
}

// MainPID has notify-mainpid make conmon the unit's main process. postStart and
// postStop are the lines of ExecStartPost= and ExecStopPost= that must come
// behind its own; nil leaves those that there are where they are.
func (d *Dropin) MainPID(a account.Account, p Programs, how Delivery, postStart, postStop []string) {
	mainPIDFile, resultFile := handover.Files(d.Unit, a.UID)
	name, argument, word := unitfile.QuoteArgument(d.Unit), unitfile.QuoteArgument, unitfile.QuoteWord
	if unitfile.IsTemplate(d.Unit) {
		// Only systemd knows the instance's name: %n.
		mainPIDFile, resultFile = handover.Files("%n", a.UID)
		asIs := func(text string) string { return text }
		name, argument, word = "%n", asIs, asIs
	}
	// Where it does not exist or fails, the directory is in /run itself.
	wanted := runMount
	if how.Pause {
		wanted += " oci-mainpid-pause@" + strconv.Itoa(a.UID) + ".service"
	}
	d.SetUnit("Wants", wanted)
	d.SetUnit("After", wanted)
	helper := "+" + unitfile.QuoteArgument(p.NotifyMainPID)
	uid := " --user=" + strconv.Itoa(a.UID)
	operands := " --unit=" + name + " " + argument(mainPIDFile) + " " + argument(resultFile)

	prepare := helper + " --prepare"
	if how.OpenFile {
		d.Set("OpenFile", unitfile.QuoteOpenFile(mainPIDFile)+":"+handover.DescriptorName)
		// podman hands on to the container whatever these name.
		d.Set("UnsetEnvironment", "LISTEN_FDS LISTEN_PID LISTEN_FDNAMES LISTEN_PIDFDID")
	} else {
		prepare += uid
	}
	notify := helper + uid
	if how.Kube {
		notify += " --require=kube"
	}
	d.Set("Environment", word(handover.EnvMainPIDFile+"="+mainPIDFile))
	if how.Handshake {
		d.Set("Environment", word(handover.EnvResultFile+"="+resultFile))
		// The helper starts beside podman, which may have an image to pull
		// first: TimeoutStartSec= bounds that.
		notify += " --timeout=infinity"
	} else if how.HookFirst {
		// What is not in the file by now will not come.
		notify += " --timeout=5s"
	}
	d.Set("ExecStartPre", prepare+operands)
	d.setFirst("ExecStartPost", notify+operands, postStart)
	d.setFirst("ExecStopPost", "-"+helper+" --forget"+operands, postStop)
}

// setFirst adds a line to an Exec setting, before the others if those are given
// again.
func (d *Dropin) setFirst(key, line string, others []string) {
	if others != nil {
		d.SetExec(key, append([]string{line}, others...))
	} else {
		d.Set(key, line)
	}
}

// Refusal returns a drop-in with which the unit fails to start and its log says
// why, whatever else it is: nothing of podman's runs.
func Refusal(unit string, origin Origin, p Programs, reason error) *Dropin {
	d := &Dropin{Unit: unit, Origin: origin}
	for _, key := range append(ExecKeys, "User", "Group", "EnvironmentFile", "PIDFile") {
		d.Set(key, "")
	}
	d.Set("Type", "oneshot")
	d.Set("RemainAfterExit", "no")
	d.Set("Restart", "no")
	d.Set("WorkingDirectory", "/")
	name := unitfile.QuoteArgument(unit)
	if unitfile.IsTemplate(unit) {
		name = "%n"
	}
	d.Set("ExecStart", unitfile.QuoteArgument(p.OCIMainPID)+" refuse --unit="+name+" "+unitfile.QuoteArgument(reason.Error()))
	return d
}

// ExecKeys are the settings that hold command lines, systemd.service(5).
var ExecKeys = []string{"ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost"}
