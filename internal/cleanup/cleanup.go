// Package cleanup finds what units have left behind, and removes it: containers,
// directories, managers of users, and drop-ins.
//
// What a user says counts for what is that user's alone. What it does not know it does
// not touch.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/asuser"
	"oci-mainpid-hook/internal/census"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/leftover"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/internal/status"
	"oci-mainpid-hook/internal/unitfile"
	"oci-mainpid-hook/quadlet"
)

// Item is something that is left over. Its texts may be a user's and need cleaning, see
// package printable.
type Item struct {
	Kind Kind `json:"kind"`
	// Unit is the service that left it, "" for a user's manager.
	Unit string `json:"unit,omitempty"`
	User string `json:"user"`
	// Name is a container's name, a path, or the unit of a manager.
	Name string `json:"name"`
	// Why says why nobody needs it.
	Why     string `json:"why"`
	Removed bool   `json:"removed"`
	// Error says why it could not be removed.
	Error string `json:"error,omitempty"`

	remove func(ctx context.Context) error
}

// Kind is what kind of thing an Item is.
type Kind string

// The kinds, in the order in which they are removed.
const (
	Container Kind = "container"
	Directory Kind = "directory"
	Dropin    Kind = "drop-in"
	Manager   Kind = "manager"
)

// finder looks for what is left.
type finder struct {
	manager  *manager.Manager
	accounts account.Accounts
	// uids are the users of our units.
	uids  map[int]bool
	items []Item
}

// How long podman may take to remove a container, and its conmon to end then.
const (
	podmanTimeout = 2 * time.Minute
	endTimeout    = 10 * time.Second
)

// Find returns what is left over.
func Find(ctx context.Context, m *manager.Manager) ([]Item, error) {
	f := &finder{manager: m, uids: map[int]bool{}}
	for _, find := range []func(context.Context) error{f.containers, f.directories, f.dropins, f.managers} {
		if err := find(ctx); err != nil {
			return nil, err
		}
	}
	return f.items, nil
}

// Remove removes the items, and says in each what became of it.
func Remove(ctx context.Context, m *manager.Manager, items []Item) error {
	reload := false
	for i := range items {
		item := &items[i]
		err := context.Cause(ctx)
		if err == nil {
			err = item.remove(ctx)
		}
		if err != nil {
			item.Error = err.Error()
		} else {
			item.Removed = true
			// The generator keeps a unit that has a record.
			reload = reload || item.Kind == Dropin || item.Kind == Directory
		}
	}
	if reload {
		return m.Reload(ctx)
	}
	return nil
}

func (f *finder) add(item Item) { f.items = append(f.items, item) }

func (f *finder) userName(ctx context.Context, uid int) string {
	if uid == 0 {
		return "root"
	}
	if a, _ := f.accounts.Lookup(ctx, strconv.Itoa(uid)); a.Name != "" {
		return a.Name
	}
	return strconv.Itoa(uid)
}

// containers finds containers of earlier starts of our units, and root's of units that
// have a user now.
func (f *finder) containers(ctx context.Context) error {
	names, err := f.manager.Ours(ctx)
	if err != nil {
		return err
	}
	var units []*manager.Unit
	executables := slices.Clone(conmonbridge.Executables)
	for _, name := range names {
		u, err := f.manager.Unit(ctx, name)
		if errors.Is(err, manager.ErrNoUnit) {
			continue
		}
		if err != nil {
			return err
		}
		units = append(units, u)
		f.uids[u.UID], f.uids[u.Origin.UID] = true, true
		executables = append(executables, u.Conmon()...)
	}
	processes, err := census.Take(ctx, nil, executables)
	if err != nil {
		return err
	}
	// A user can write the name of one of their units into a conmon of another.
	current := map[string]bool{}
	for _, u := range units {
		if u.ActiveState == "inactive" || u.ActiveState == "failed" {
			continue
		}
		start := census.Start{Unit: u.Name, UID: u.UID, InvocationID: u.InvocationID, MainPID: u.MainPID, ControlGroup: u.ControlGroup}
		conmons, _ := start.Of(processes.Conmons)
		for _, c := range conmons {
			current[c.ContainerID] = true
		}
	}
	listed := map[string]bool{}
	for _, u := range units {
		if !slices.Contains([]string{"active", "inactive", "failed"}, u.ActiveState) {
			continue // it starts or stops
		}
		s := status.Of(u, processes.Conmons)
		for _, c := range s.LeftOver {
			i := slices.IndexFunc(processes.Conmons, func(p census.Conmon) bool { return p.PID == c.PID })
			if i < 0 || current[c.ContainerID] || listed[c.ContainerID] || !isID(c.ContainerID) || ofOwnManager(processes.Conmons[i]) {
				continue
			}
			listed[c.ContainerID] = true
			f.add(Item{Kind: Container, Unit: u.Name, User: u.User, Name: c.Container, Why: "of an earlier start",
				remove: func(ctx context.Context) error { return f.removeContainer(ctx, u, c, false) }})
		}
		for _, c := range s.OfRoot {
			if isID(c.ContainerID) && !listed[c.ContainerID] {
				listed[c.ContainerID] = true
				f.add(Item{Kind: Container, Unit: u.Name, User: "root", Name: c.Container, Why: "from before the unit had a user",
					remove: func(ctx context.Context) error { return f.removeContainer(ctx, u, c, true) }})
			}
		}
	}
	return nil
}

// isID reports whether text is the ID of a container.
func isID(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

// ofOwnManager reports whether a conmon is that of a service of the user's own manager,
// which may have the name of a unit of ours. That manager keeps the invocation IDs of
// its units as links, as systemd does in /run/systemd/units.
func ofOwnManager(c census.Conmon) bool {
	id, err := os.Readlink(fmt.Sprintf("/run/user/%d/systemd/units/invocation:%s", c.UID, c.Unit))
	if err == nil && id == c.InvocationID {
		return true
	}
	_, below, ok := strings.Cut(c.Cgroup, fmt.Sprintf("/user@%d.service/", c.UID))
	return ok && strings.Contains(below+"/", ".service/")
}

// removeContainer has a unit's user, or root, remove a container.
func (f *finder) removeContainer(ctx context.Context, u *manager.Unit, c status.Conmon, ofRoot bool) error {
	conmon, err := unix.PidfdOpen(c.PID, 0)
	if err != nil || conmonbridge.ContainerOf(c.PID).ID != c.ContainerID {
		return nil // it has ended
	}
	defer unix.Close(conmon)
	args := []string{"podman", "rm", "--force", "--volumes", "--", c.ContainerID}
	if ofRoot {
		ctx, cancel := context.WithTimeout(ctx, podmanTimeout)
		defer cancel()
		var out []byte
		if out, err = exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
		}
	} else {
		var a account.Account
		a, err = f.accounts.Lookup(ctx, strconv.Itoa(u.UID))
		if err == nil || errors.As(err, new(*account.NoIDsError)) {
			_, _, err = asuser.Command{Account: a, Env: u.PodmanEnvironment(), Timeout: podmanTimeout, Args: args}.Output(ctx, nil)
		}
	}
	if err != nil {
		return fmt.Errorf("podman rm %.12s: %w", c.ContainerID, err)
	}
	// podman does not mind a container that it does not know.
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(conmon), Events: unix.POLLIN}}, int(endTimeout.Milliseconds())); n == 0 {
		return fmt.Errorf("its conmon still runs; type: kill %d", c.PID)
	}
	return nil
}

// directories finds what is in /run/oci-mainpid of units that are gone, and containers
// that such a unit was started with.
func (f *finder) directories(ctx context.Context) error {
	done := map[string]bool{}
	add := func(unit string, uid int) error {
		gone, err := f.manager.IsGone(ctx, unit)
		if err != nil || !gone || done[unit] {
			return err
		}
		done[unit] = true
		record, err := handover.ReadRecord(unit)
		item := Item{Kind: Directory, Unit: unit, Name: filepath.Join(handover.Dir, unit), Why: "the unit is gone"}
		lives := err == nil && leftover.Lives(record)
		if err == nil {
			uid = record.UID
		}
		if lives {
			item.Kind, item.Name, item.Why = Container, record.Container, "it runs, and the unit is gone"
		}
		item.User = f.userName(ctx, uid)
		item.remove = func(ctx context.Context) error {
			if gone, err := f.manager.IsGone(ctx, unit); err != nil || !gone {
				return errors.Join(errors.New("the unit is there again"), err)
			}
			if lives {
				ctx, cancel := context.WithTimeout(ctx, time.Minute)
				defer cancel()
				if _, err := leftover.End(ctx, record); err != nil {
					return err
				}
			}
			mainPIDFile, resultFile := handover.Files(unit, uid)
			return handover.Forget(mainPIDFile, resultFile)
		}
		f.add(item)
		return nil
	}
	for _, unit := range handover.Recorded() {
		uid := 0
		for _, u := range handover.Users() {
			if slices.Contains(handover.UnitsOf(u), unit) {
				uid = u
			}
		}
		if err := add(unit, uid); err != nil {
			return err
		}
	}
	for _, uid := range handover.Users() {
		units := handover.UnitsOf(uid)
		for _, unit := range units {
			if err := add(unit, uid); err != nil {
				return err
			}
		}
		if !f.uids[uid] && !slices.ContainsFunc(units, func(u string) bool { return !done[u] }) {
			f.add(Item{Kind: Directory, User: f.userName(ctx, uid), Name: handover.UserDir(uid), Why: "the user has no unit",
				remove: func(context.Context) error { return handover.RemoveUserDir(uid) }})
		}
	}
	return nil
}

// dropins finds drop-ins of oci-mainpid generate whose unit has no file, and those of
// users' managers that no other one needs.
func (f *finder) dropins(ctx context.Context) error {
	all, err := dropin.WrittenBelow(quadlet.UnitDirs[0])
	if err != nil {
		return err
	}
	needed := map[int]bool{}
	remove := func(w dropin.Written, why string) {
		f.add(Item{Kind: Dropin, Unit: w.Unit, User: w.Origin.User, Name: w.Path, Why: why, remove: func(context.Context) error {
			if err := os.Remove(w.Path); err != nil {
				return err
			}
			os.Remove(filepath.Dir(w.Path)) // unless there is more in it
			return nil
		}})
	}
	for _, w := range all {
		if manager.IsUserManager(w.Unit) {
			continue
		}
		gone, err := f.manager.IsGone(ctx, w.Unit)
		if unitfile.IsTemplate(w.Unit) {
			gone, err = f.templateIsGone(ctx, w.Unit)
		}
		if err != nil {
			return err
		}
		if _, missing := os.Lstat(w.Origin.Source); gone && errors.Is(missing, fs.ErrNotExist) {
			remove(w, "the unit has no file")
		} else {
			needed[w.Origin.UID] = true
		}
	}
	for _, w := range all {
		if manager.IsUserManager(w.Unit) && !needed[w.Origin.UID] {
			remove(w, "no unit of the user has a drop-in there")
		}
	}
	return nil
}

// templateIsGone reports whether a template has no file and no instance.
func (f *finder) templateIsGone(ctx context.Context, name string) (bool, error) {
	if quadlet.UnitFile(quadlet.AllUnitDirs, name) != "" {
		return false, nil
	}
	loaded, err := f.manager.Loaded(ctx)
	prefix, _, _ := strings.Cut(name, "@")
	return !slices.ContainsFunc(loaded, func(n string) bool { return strings.HasPrefix(n, prefix+"@") }), err
}

// managers finds the managers that starts of our units have left: of users who have no
// unit of ours any more, whose manager nobody needs, and runs nothing.
func (f *finder) managers(ctx context.Context) error {
	for _, uid := range handover.Users() {
		a, err := f.accounts.Lookup(ctx, strconv.Itoa(uid))
		if f.uids[uid] || err != nil && a.Name == "" || !idle(a) {
			continue
		}
		if needed, err := f.manager.NeedsManager(ctx, uid, a.Name); err != nil || needed {
			continue
		}
		f.add(Item{Kind: Manager, User: a.Name, Name: a.Manager(), Why: "it runs nothing, and no unit needs it", remove: func(ctx context.Context) error {
			if needed, err := f.manager.NeedsManager(ctx, uid, a.Name); err != nil || needed || !idle(a) {
				return errors.Join(errors.New("it is needed again"), err)
			}
			return f.manager.Stop(ctx, a.Manager())
		}})
	}
	return nil
}

// maxGroups bounds how many control groups of a user's are looked at.
const maxGroups = 1000

// idle reports whether the user's manager runs, and nothing below it but its bus and
// podman's pause process.
func idle(a account.Account) bool {
	top := fmt.Sprintf("/sys/fs/cgroup/user.slice/user-%d.slice/%s", a.UID, a.Manager())
	runs, groups := false, 0
	err := filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		if groups++; groups > maxGroups {
			return errors.New("too many control groups")
		}
		name := filepath.Base(path)
		if name == "init.scope" {
			runs = true
			return nil
		}
		known := name == "dbus.service" || name == "dbus-broker.service" || strings.HasPrefix(name, "podman-pause-")
		if !known && len(proc.InCgroup(strings.TrimPrefix(path, "/sys/fs/cgroup"))) > 0 {
			return errors.New("runs something")
		}
		return nil
	})
	return err == nil && runs
}
