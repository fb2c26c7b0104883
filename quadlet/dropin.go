package quadlet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// DropinName is the file's name in UNIT.d. Two drop-ins of one name replace each
// other, so that an administrator's in /etc takes the place of the generator's.
const DropinName = "50-oci-mainpid.conf"

// marker starts every drop-in that this package made.
const marker = "# Made by oci-mainpid"

// ErrForeign is returned by Dropin.Write where a file of another maker stands in
// the way.
var ErrForeign = errors.New("was not made by oci-mainpid, --force overwrites it")

// Dropin is the text of UNIT.d/50-oci-mainpid.conf.
type Dropin struct {
	// Unit is the service's name, such as web.service.
	Unit string
	// Maker is the program and what it read, for the first line.
	Maker string

	unit, service []byte
}

func (d *Dropin) setUnit(key, value string) { d.unit = appendSetting(d.unit, key, value) }
func (d *Dropin) set(key, value string)     { d.service = appendSetting(d.service, key, value) }

func appendSetting(section []byte, key, value string) []byte {
	section = append(append(section, key...), '=')
	section = append(section, value...)
	if strings.HasSuffix(value, `\`) {
		section = append(section, ' ') // so that it does not continue the line
	}
	return append(section, '\n')
}

// setExec gives an Exec setting again in full.
func (d *Dropin) setExec(key string, lines []string) {
	d.set(key, "")
	for _, line := range lines {
		d.set(key, line)
	}
}

// Text returns the drop-in's text.
func (d *Dropin) Text() []byte {
	return bytes.Join(d.parts(), nil)
}

// parts returns the text in pieces.
func (d *Dropin) parts() [][]byte {
	parts := [][]byte{[]byte(marker + comment(d.Maker) + "\n")}
	if len(d.unit) > 0 {
		parts = append(parts, []byte("\n[Unit]\n"), d.unit)
	}
	if len(d.service) > 0 {
		parts = append(parts, []byte("\n[Service]\n"), d.service)
	}
	return parts
}

// comment keeps text that may hold a file's name on one line.
func comment(text string) string {
	if strings.ContainsFunc(text, unicode.IsControl) {
		return strconv.Quote(text)
	}
	return text
}

// Path returns where the drop-in belongs in a directory of unit files.
func (d *Dropin) Path(dir string) string {
	return filepath.Join(dir, d.Unit+".d", DropinName)
}

// Check fails with ErrForeign if what stands at path was made by somebody else.
func Check(path string) error {
	have, err := readRegular(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(have, []byte(marker)) {
		return fmt.Errorf("%s %w", path, ErrForeign)
	}
	return nil
}

// Write puts the drop-in below dir: the whole text or nothing.
func (d *Dropin) Write(dir string) error {
	path := d.Path(dir)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+DropinName+"-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(d.Text())
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// WriteNew puts the drop-in below dir as a generator does: the directory is its
// own, new, and not read before it is done.
func (d *Dropin) WriteNew(dir string) error {
	path := d.Path(dir)
	if err := unix.Mkdir(filepath.Dir(path), 0o755); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: filepath.Dir(path), Err: err}
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
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
	if err = cmp.Or(err, unix.Close(fd)); err != nil {
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

// asUser is what every unit of the user needs, whatever it runs.
func (d *Dropin) asUser(a Account) {
	manager := "user@" + strconv.Itoa(a.UID) + ".service"
	d.setUnit("Wants", manager)
	d.setUnit("After", manager)
	d.service = slices.Grow(d.service, 2<<10) // as much as most come to
	d.set("User", strings.ReplaceAll(a.Name, "%", "%%"))
	d.set("Environment", "XDG_RUNTIME_DIR="+a.RuntimeDir())
	d.set("Environment", "DBUS_SESSION_BUS_ADDRESS=unix:path="+a.RuntimeDir()+"/bus")
}

// KeepManager returns the drop-ins that keep an account's manager, which has the
// payload in most modes, when the account's last session ends: without lingering
// systemd-logind stops it then, 10 s later (UserStopDelaySec= in logind.conf(5)).
// Dependencies, as at shutdown, stop it all the same.
func KeepManager(a Account, maker string) []*Dropin {
	var dropins []*Dropin
	// logind asks for the first to stop, to which the second is bound.
	for _, template := range []string{"user-runtime-dir@", "user@"} {
		d := &Dropin{Unit: template + strconv.Itoa(a.UID) + ".service", Maker: maker}
		d.setUnit("RefuseManualStop", "yes")
		dropins = append(dropins, d)
	}
	return dropins
}

// files are the mainpid and result files of a unit.
type files struct{ mainPID, result string }

// runFiles is where they are; the directory is conmonbridge's.
const runFiles = "/run/oci-mainpid"

// runMount is the unit that mounts a file system of its own there.
const runMount = `run-oci\x2dmainpid.mount`

func filesOf(unit string) files {
	dir := filepath.Join(runFiles, unit)
	return files{dir + "/mainpid", dir + "/result"}
}

// delivery says how the PID gets from the hook to systemd.
type delivery struct {
	// openFile: systemd opens the mainpid file as root and podman inherits it.
	// Otherwise the file is the user's and the hook opens it by name.
	openFile bool
	// handshake: the hook waits for the result, and podman for the hook.
	handshake bool
	// pause: the user's pause process must live before podman starts. Without one
	// podman forks to enter its user namespace, and the child sends READY=1 and
	// MAINPID= just before it ends: where it is gone before systemd looks, systemd
	// cannot tell whose message it was, and drops it.
	pause bool
	// kube: the main process must be the service container's conmon.
	kube bool
}

// mainPID has notify-mainpid make conmon the unit's main process. postStart and
// postStop are the lines of ExecStartPost= and ExecStopPost= that must come
// behind its own; nil leaves those that there are where they are.
func (d *Dropin) mainPID(a Account, p Programs, how delivery, postStart, postStop []string) {
	files := filesOf(d.Unit)
	name := quoteArgument(d.Unit)
	mainPID, result := quoteArgument(files.mainPID), quoteArgument(files.result)
	environment := quoteWord
	if IsTemplate(d.Unit) {
		// Only systemd knows the instance's name: %n.
		files = filesOf("%n")
		name, mainPID, result = "%n", files.mainPID, files.result
		environment = func(text string) string { return text }
	}
	// Where it does not exist or fails, the directory is in /run itself.
	wanted := runMount
	if how.pause {
		wanted += " oci-mainpid-pause@" + strconv.Itoa(a.UID) + ".service"
	}
	d.setUnit("Wants", wanted)
	d.setUnit("After", wanted)
	helper := "+" + quoteArgument(p.NotifyMainPID)
	uid := " --user=" + strconv.Itoa(a.UID)
	operands := " --unit=" + name + " " + mainPID + " " + result

	prepare := helper + " --prepare"
	if how.openFile {
		d.set("OpenFile", quoteOpenFile(files.mainPID)+":mainpidfile")
		// podman hands on to the container whatever these name.
		d.set("UnsetEnvironment", "LISTEN_FDS LISTEN_PID LISTEN_FDNAMES LISTEN_PIDFDID")
	} else {
		prepare += uid
	}
	notify := helper + uid
	if how.kube {
		notify += " --require=kube"
	}
	d.set("Environment", environment("OCI_MAINPID_FILE="+files.mainPID))
	if how.handshake {
		d.set("Environment", environment("OCI_MAINPID_RESULT="+files.result))
		// The helper starts beside podman, which may have an image to pull
		// first: TimeoutStartSec= bounds that.
		notify += " --timeout=infinity"
	}
	d.set("ExecStartPre", prepare+operands)
	d.setFirst("ExecStartPost", notify+operands, postStart)
	d.setFirst("ExecStopPost", "-"+helper+" --forget"+operands, postStop)
}

// setFirst adds a line to an Exec setting, before the others if those are given
// again.
func (d *Dropin) setFirst(key, line string, others []string) {
	if others != nil {
		d.setExec(key, append([]string{line}, others...))
	} else {
		d.set(key, line)
	}
}

// Refusal returns a drop-in with which the unit fails to start and its log says
// why, whatever else it is: nothing of podman's runs. With skip it does nothing,
// with success, so that what requires it gets to say what is wrong.
func Refusal(unit, maker string, p Programs, reason error, skip bool) *Dropin {
	d := &Dropin{Unit: unit, Maker: maker}
	for _, key := range append(execKeys, "User", "Group", "EnvironmentFile", "PIDFile") {
		d.set(key, "")
	}
	d.set("Type", "oneshot")
	d.set("RemainAfterExit", "no")
	d.set("Restart", "no")
	d.set("WorkingDirectory", "/")
	name := quoteArgument(unit)
	if IsTemplate(unit) {
		name = "%n"
	}
	prefix := ""
	if skip {
		prefix = "-"
	}
	d.set("ExecStart", prefix+quoteArgument(p.OCIMainPID)+" refuse --unit="+name+" "+quoteArgument(reason.Error()))
	return d
}

// execKeys are the settings that hold command lines, systemd.service(5).
var execKeys = []string{"ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost"}
