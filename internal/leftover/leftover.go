// Package leftover ends what a stop of a unit has left of its start: processes of a
// container in control groups that systemd does not count as the unit's: those of the
// user's manager, and of podman as root.
//
// That happens when a unit is changed while it runs. After a daemon-reload its stop
// commands are those of another user, or for a container of another name, and find
// nothing to stop.
package leftover

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/proc"
)

// maxConmons is how many conmons of one start Cgroups looks at.
const maxConmons = 50

// Cgroups returns the control groups of a start's containers and conmons that are not
// the unit's: those of the containers first. It finds the conmons beside the one of the
// main process, of which a kube file has several.
func Cgroups(conmon, uid int) []string {
	own, err := proc.Cgroup(conmon)
	if err != nil {
		return nil
	}
	var groups []string
	add := func(cgroup string) {
		if cgroup != "" && isOutside(cgroup, uid) && !slices.Contains(groups, cgroup) {
			groups = append(groups, cgroup)
		}
	}
	conmons := []int{conmon}
	for _, pid := range proc.InCgroup(own) {
		if p, err := proc.Read(pid); err == nil && p.NamedConmon() && pid != conmon && len(conmons) < maxConmons {
			conmons = append(conmons, pid)
		}
	}
	for _, conmon := range conmons {
		// While runc creates the container, it is between conmon and the container.
		below, _ := proc.Children(conmon)
		for _, pid := range slices.Clone(below) {
			children, _ := proc.Children(pid)
			below = append(below, children...)
		}
		for _, pid := range below {
			if cgroup, err := proc.Cgroup(pid); err == nil {
				add(containerGroup(cgroup))
			}
		}
	}
	if isConmonGroup(own) {
		add(own)
	}
	return groups
}

// containerGroup returns the control group of the container that a process in cgroup
// belongs to, "" if there is none. The container may have made others below it.
func containerGroup(cgroup string) string {
	for end := range len(cgroup) + 1 {
		if end < len(cgroup) && cgroup[end] != '/' {
			continue
		}
		name := strings.TrimSuffix(filepath.Base(cgroup[:end]), ".scope")
		id, ok := strings.CutPrefix(name, "libpod-")
		if ok && len(id) == 64 {
			return cgroup[:end]
		}
	}
	return ""
}

// isConmonGroup reports whether podman gives that name to the control group of a
// conmon that is not in the unit.
func isConmonGroup(cgroup string) bool {
	name := filepath.Base(cgroup)
	return strings.HasSuffix(name, ".scope") && (strings.HasPrefix(name, "podman-") || strings.HasPrefix(name, "libpod-conmon-"))
}

// isOutside reports whether podman, run by a unit as that user, may have made the
// control group outside of the unit's.
func isOutside(cgroup string, uid int) bool {
	if uid == 0 {
		name := strings.TrimPrefix(cgroup, "/machine.slice/")
		return name != cgroup && strings.HasPrefix(name, "libpod-") && !strings.Contains(name, "/")
	}
	return strings.HasPrefix(cgroup, fmt.Sprintf("/user.slice/user-%d.slice/user@%d.service/", uid, uid)) && filepath.Clean(cgroup) == cgroup
}

// Bounds of End. The user may start processes as fast as End kills them.
const (
	cleanUpTime  = 3 * time.Second // for conmon, to have podman clean up
	maxProcesses = 20_000
	maxGroups    = 1000 // of one container
)

// End kills the processes of a start that still live in its control groups, and
// returns how many those were. It kills no process of root's, unless the start was
// root's, and none of another user's. The error says that some are left, because of
// that or because ctx is done.
func End(ctx context.Context, r handover.Record) (killed int, err error) {
	for _, cgroup := range r.Cgroups {
		if !isOutside(cgroup, r.UID) {
			return killed, fmt.Errorf("control group %.300q is none that podman makes for user %d", cgroup, r.UID)
		}
		if killed > 0 && isConmonGroup(cgroup) {
			awaitConmon(ctx, r)
		}
		n, err := empty(ctx, cgroup, r.UID)
		killed += n
		if err != nil {
			return killed, err
		}
	}
	return killed, nil
}

// Lives reports whether anything of the start still lives: its conmon, or a process in
// its control groups.
func Lives(r handover.Record) bool {
	if p, err := proc.Read(r.Conmon); err == nil && p.Start == r.Start && !p.Ended() {
		return true
	}
	return slices.ContainsFunc(r.Cgroups, func(cgroup string) bool {
		return isOutside(cgroup, r.UID) && len(processes(cgroup)) > 0
	})
}

// Living returns those of the start's control groups in which a process lives.
func Living(r handover.Record) []string {
	return slices.DeleteFunc(slices.Clone(r.Cgroups), func(cgroup string) bool {
		return !isOutside(cgroup, r.UID) || len(processes(cgroup)) == 0
	})
}

// empty kills the user's processes in a control group, and below, until there are
// none.
func empty(ctx context.Context, cgroup string, uid int) (killed int, err error) {
	for {
		pids, before := processes(cgroup), killed
		for _, pid := range pids {
			if kill(ctx, pid, cgroup, uid) {
				killed++
			}
		}
		switch {
		case len(pids) == 0:
			return killed, nil
		case ctx.Err() != nil:
			return killed, fmt.Errorf("%d processes in control group %.300q are left: %w", len(pids), cgroup, context.Cause(ctx))
		case killed > maxProcesses:
			return killed, fmt.Errorf("new processes in control group %.300q come without an end", cgroup)
		case killed == before && len(processes(cgroup)) > 0:
			return killed, fmt.Errorf("%d processes in control group %.300q are not of user %d", len(pids), cgroup, uid)
		}
	}
}

// processes returns the PIDs of all processes in a control group and below it.
func processes(cgroup string) (pids []int) {
	groups := 0
	filepath.WalkDir("/sys/fs/cgroup"+cgroup, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // it has just been removed
		}
		if !entry.IsDir() {
			return nil
		}
		if groups++; groups > maxGroups {
			return filepath.SkipAll
		}
		pids = append(pids, proc.InCgroup(strings.TrimPrefix(path, "/sys/fs/cgroup"))...)
		return nil
	})
	return pids
}

// kill kills a process, if it is the user's and in the control group, and waits for
// its end.
func kill(ctx context.Context, pid int, cgroup string, uid int) bool {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false // it has ended
	}
	defer unix.Close(pidfd)
	// The pidfd shows in the end that this was one process all the time.
	in, err := proc.Cgroup(pid)
	if err != nil || in != cgroup && !strings.HasPrefix(in, cgroup+"/") || !isTheirs(pid, uid) {
		return false
	}
	if unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) != nil {
		return false
	}
	await(ctx, pidfd)
	return true
}

// isTheirs reports whether a process below a user's manager is the user's: it has the
// user's UID, or is in a user namespace of a container with any UID but root's. What is
// in a control group of root's container is root's.
func isTheirs(pid, uid int) bool {
	if uid == 0 {
		return true
	}
	status, err := proc.ReadStatus(pid)
	if err != nil || slices.Contains(status.UIDs, "0") {
		return false
	}
	if status.UIDs[0] == strconv.Itoa(uid) {
		return true
	}
	namespace, err := proc.UserNamespace(pid)
	return err == nil && namespace != proc.InitialUserNamespace
}

// awaitConmon gives the conmon of the main process time to have podman remove the
// container, whose processes have ended.
func awaitConmon(ctx context.Context, r handover.Record) {
	pidfd, err := unix.PidfdOpen(r.Conmon, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd)
	if p, err := proc.Read(r.Conmon); err == nil && p.Start == r.Start {
		ctx, cancel := context.WithTimeout(ctx, cleanUpTime)
		defer cancel()
		await(ctx, pidfd)
	}
}

// await waits for the end of a process, at most until ctx is done.
func await(ctx context.Context, pidfd int) {
	timeout := cleanUpTime
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, max(0, int(timeout/time.Millisecond)))
}
