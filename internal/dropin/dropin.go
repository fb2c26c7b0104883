// Package dropin makes and writes the drop-in of a unit, UNIT.d/50-oci-mainpid.conf.
// The drop-in's first line is a record that can be read back, see Origin.
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

// Name is the file's name in UNIT.d. Of two drop-ins with the same name, systemd
// reads only the one in the directory with precedence. So an administrator's drop-in
// in /etc replaces the generator's.
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

// SetExec replaces all lines of an Exec setting by the given ones.
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

// Write writes the drop-in below dir, a directory of unit files. It writes the whole
// text, or changes nothing and returns an error. It does not wait for the disk.
func (d *Dropin) Write(dir string) error {
	path := d.Path(dir)
	err := unix.Mkdir(filepath.Dir(path), 0o755)
	if err == unix.ENOENT {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: filepath.Dir(path), Err: err}
	}
	return writeWhole(path, d.parts())
}

// writeWhole writes a file whole or not at all.
func writeWhole(path string, parts [][]byte) error {
	temporary := path + ".new" // systemd reads no file of such a name
	fd, err := unix.Open(temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "open", Path: temporary, Err: err}
	}
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

// Programs are the paths of the programs that drop-ins run.
type Programs struct {
	// OCIMainPID is the path of oci-mainpid, NotifyMainPID that of notify-mainpid.
	OCIMainPID, NotifyMainPID string
}

// FindPrograms derives the paths from the path of the running program, which is
// installed as PREFIX/bin/oci-mainpid. If the kernel does not tell that path, PREFIX
// is /usr. notify-mainpid is in PREFIX/libexec, or in PREFIX/lib where a distribution
// has no libexec.
func FindPrograms() Programs {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		self = "/usr/bin/oci-mainpid"
	}
	prefix := filepath.Dir(filepath.Dir(self))
	at := func(dir string) string { return filepath.Join(prefix, dir, "oci-mainpid/notify-mainpid") }
	p := Programs{OCIMainPID: self, NotifyMainPID: at("libexec")}
	if _, err := os.Stat(p.NotifyMainPID); err != nil {
		if _, err := os.Stat(at("lib")); err == nil {
			p.NotifyMainPID = at("lib")
		}
	}
	return p
}

// AsUser adds the settings that every unit of the user needs, whatever it runs.
func (d *Dropin) AsUser(a account.Account) {
	d.SetUnit("Wants", a.Manager())
	d.SetUnit("After", a.Manager())
	d.service = slices.Grow(d.service, 2<<10) // enough for most drop-ins
	d.Set("User", strings.ReplaceAll(a.Name, "%", "%%"))
	d.Set("Environment", "XDG_RUNTIME_DIR="+a.RuntimeDir())
	d.Set("Environment", "DBUS_SESSION_BUS_ADDRESS=unix:path="+a.RuntimeDir()+"/bus")
}

// KeepManager returns the drop-ins that keep a user's manager running when the user
// logs out. In most modes the container is in the manager's control group. Without
// these drop-ins or lingering, systemd-logind stops the manager 10 s after the last
// logout (UserStopDelaySec= in logind.conf(5)). A shutdown stops it all the same.
func KeepManager(a account.Account, maker Maker) []*Dropin {
	var dropins []*Dropin
	// logind stops the first unit. The second one is bound to it.
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
	// OpenFile: systemd opens the mainpid file as root, and podman inherits the
	// descriptor. Otherwise the file belongs to the user, and the hook opens it by
	// name.
	OpenFile bool
	// Handshake: the hook waits for the result, and podman for the hook.
	Handshake bool
	// Pause: the user's pause process must run before podman starts. Without it,
	// podman forks to enter its user namespace, and the child sends READY=1 and
	// MAINPID= just before it ends. If it has ended before systemd looks, systemd
	// does not know whose message it was and drops it.
	Pause bool
	// Kube: the main process must be the service container's conmon.
	Kube bool
	// HookFirst: the hook has run before systemd runs ExecStartPost=.
	HookFirst bool
}

// MainPID adds the settings with which notify-mainpid makes conmon the unit's main
// process. postStart and postStop are the unit's own lines of ExecStartPost= and
// ExecStopPost=, if they must run after notify-mainpid. nil leaves them before it.
func (d *Dropin) MainPID(a account.Account, p Programs, how Delivery, postStart, postStop []string) {
	mainPIDFile, resultFile, operands := d.operands(a.UID)
	word := unitfile.QuoteWord
	if unitfile.IsTemplate(d.Unit) {
		word = func(text string) string { return text } // with %n
	}
	// If the mount does not exist or fails, the directory is in /run itself.
	wanted := runMount
	if how.Pause {
		wanted += " oci-mainpid-pause@" + strconv.Itoa(a.UID) + ".service"
	}
	d.SetUnit("Wants", wanted)
	d.SetUnit("After", wanted)
	helper := "+" + unitfile.QuoteArgument(p.NotifyMainPID)
	uid := " --user=" + strconv.Itoa(a.UID)

	prepare := helper + " --prepare"
	if how.OpenFile {
		d.Set("OpenFile", unitfile.QuoteOpenFile(mainPIDFile)+":"+handover.DescriptorName)
		// podman passes the descriptors that these variables announce to the container.
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
		// notify-mainpid starts beside podman, which may have to pull an image first.
		// TimeoutStartSec= bounds that.
		notify += " --timeout=infinity"
	} else if how.HookFirst {
		// What is not in the file by now will not come.
		notify += " --timeout=500ms"
	}
	d.Set("ExecStartPre", prepare+operands)
	d.setFirst("ExecStartPost", notify+operands, postStart)
	d.setFirst("ExecStopPost", forget(p)+operands, postStop)
}

// operands returns the unit's mainpid and result files, and what follows the options of
// notify-mainpid.
func (d *Dropin) operands(uid int) (mainPIDFile, resultFile, operands string) {
	unit, quote := d.Unit, unitfile.QuoteArgument
	if unitfile.IsTemplate(unit) {
		// Only systemd knows the instance's name, so %n stands for it.
		unit, quote = "%n", func(text string) string { return text }
	}
	mainPIDFile, resultFile = handover.Files(unit, uid)
	return mainPIDFile, resultFile, " --unit=" + quote(unit) + " " + quote(mainPIDFile) + " " + quote(resultFile)
}

func forget(p Programs) string {
	return "-+" + unitfile.QuoteArgument(p.NotifyMainPID) + " --forget"
}

// Forget adds a line that ends what is left of a start as the user with that UID, once
// the unit has stopped.
func (d *Dropin) Forget(uid int, p Programs) {
	_, _, operands := d.operands(uid)
	d.Set("ExecStopPost", forget(p)+operands)
}

// setFirst adds a line to an Exec setting. If others is not nil, it replaces the
// unit's own lines, and line comes first.
func (d *Dropin) setFirst(key, line string, others []string) {
	if others != nil {
		d.SetExec(key, append([]string{line}, others...))
	} else {
		d.Set(key, line)
	}
}

// Refusal returns a drop-in with which the unit fails to start, and its log has the
// reason. The drop-in replaces all commands of the unit, so podman does not run.
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
	d.Set("ExecStart", refuse(name, p, reason.Error()))
	return d
}

// refuse is a command that fails and logs the reason.
func refuse(quotedUnit string, p Programs, reason string) string {
	return unitfile.QuoteArgument(p.OCIMainPID) + " refuse --unit=" + quotedUnit + " " + unitfile.QuoteArgument(reason)
}

// ExecKeys are the settings that hold command lines, systemd.service(5).
var ExecKeys = []string{"ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost"}
