package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/proc"
)

// place is the directory of one container: lock, mainpid, state and notify/notify.
type place struct {
	dir  string
	lock *os.File
}

// BaseDir returns the directory in which the user with that UID has one for each
// container: below the user's runtime directory, or root's /run.
func BaseDir(uid int) string {
	if uid == 0 {
		return "/run/oci-mainpid/run"
	}
	return "/run/user/" + strconv.Itoa(uid) + "/oci-mainpid/run"
}

// ownBaseDir returns this user's BaseDir, and the first directory of that path that this
// program makes. Where there is no runtime directory, it is in /tmp.
func ownBaseDir() (dir, top string) {
	uid := os.Geteuid()
	if uid == 0 {
		return BaseDir(0), handover.Dir
	}
	for _, runtime := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/run/user/" + strconv.Itoa(uid)} {
		if filepath.IsAbs(runtime) && isOwn(runtime) == nil {
			return filepath.Join(runtime, "oci-mainpid/run"), filepath.Join(runtime, "oci-mainpid")
		}
	}
	top = "/tmp/oci-mainpid-" + strconv.Itoa(uid)
	return top + "/run", top
}

// isOwn fails unless path is a directory of this user's that nobody else may write.
func isOwn(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return &fs.PathError{Op: "use", Path: path, Err: errors.New("is no directory of this user's that nobody else may write")}
	}
	return nil
}

// makeOwn makes a directory, and those above it that are missing, up to top.
func makeOwn(path, top string) error {
	if path != top {
		if err := makeOwn(filepath.Dir(path), top); err != nil {
			return err
		}
	}
	mode := os.FileMode(0o700)
	if path == handover.Dir {
		mode = 0o711 // others have files there, too
	}
	err := os.Mkdir(path, mode)
	if errors.Is(err, fs.ErrExist) {
		err = isOwn(path)
	}
	return err
}

// takePlace makes the container's directory below base, and what is missing of that from
// top on. It fails if another run has it, and waits until each podman that a killed run
// has left behind has ended.
func takePlace(base, top, name string) (*place, error) {
	p := &place{dir: filepath.Join(base, name)}
	for {
		if err := makeOwn(p.dir, top); err != nil {
			return nil, err
		}
		fd, err := unix.Open(p.path("lock"), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err == unix.ENOENT {
			continue // the run before has just removed the directory
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: p.path("lock"), Err: err}
		}
		p.lock = os.NewFile(uintptr(fd), p.path("lock"))
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
			p.lock.Close()
			return nil, fmt.Errorf("container %s: another oci-mainpid run has it; stop that first", name)
		}
		mine, err := p.lock.Stat()
		there, err2 := os.Stat(p.path("lock"))
		if err == nil && err2 == nil && os.SameFile(mine, there) {
			break
		}
		p.lock.Close()
	}
	if _, err := os.Lstat(p.path("mainpid")); err == nil {
		p.awaitPodman()
	}
	for _, file := range []string{"mainpid", "state", "notify/notify"} {
		os.Remove(p.path(file))
	}
	return p, nil
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

// makeMainPID makes the mainpid file, for the hook.
func (p *place) makeMainPID() (string, error) {
	f, err := os.OpenFile(p.path("mainpid"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// podmanTime is how long a podman that a killed run has left behind may go on.
const podmanTime = 30 * time.Second

// awaitPodman waits for each podman of a run that was killed. It kills one that takes too
// long, such as one that pulls an image: this start pulls it itself.
func (p *place) awaitPodman() {
	pids, _ := proc.PIDs()
	for _, pid := range pids {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		// From here on it is one process, whatever happens to the number.
		if p.startedPodman(pid) {
			awaitEnd(pidfd)
		}
		unix.Close(pidfd)
	}
}

// startedPodman reports whether a process is a podman that a run of this container has
// started: it has the mainpid file in its environment. The user's pause process may have
// that, too, and has another name.
func (p *place) startedPodman(pid int) bool {
	status, err := proc.ReadStatus(pid)
	if uid, ok := status.UID(); err != nil || !ok || uid != os.Geteuid() {
		return false
	}
	self, _ := proc.Read(os.Getpid())
	for range 100 {
		env, err := proc.Environ(pid, proc.MaxStrings)
		if err != nil {
			return false
		}
		process, err := proc.Read(pid)
		if err != nil || process.Ended() || process.Comm != "podman" && process.Comm != self.Comm {
			return false
		}
		if len(env) > 0 {
			return process.Comm == "podman" && env.Get(handover.EnvMainPIDFile) == p.path("mainpid")
		}
		// execve(2) has let go of the lock, and is not done yet.
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// awaitEnd waits for the end of a process, asks it for that after podmanTime, and kills it
// after another one.
func awaitEnd(pidfd int) {
	ended := await(pidfd)
	for _, sig := range []unix.Signal{0, unix.SIGTERM, unix.SIGKILL} {
		if sig != 0 {
			unix.PidfdSendSignal(pidfd, sig, nil, 0)
		}
		select {
		case <-ended:
			return
		case <-time.After(podmanTime):
		}
	}
}

// close removes the directory, and lets the next run have it.
func (p *place) close() {
	for _, file := range []string{"mainpid", "state", "notify/notify", "notify", "lock", ""} {
		os.Remove(p.path(file))
	}
	p.lock.Close()
}

// writeWhole writes a file whole or not at all. It follows no link in the file's place:
// the new file replaces whatever is there.
func writeWhole(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
