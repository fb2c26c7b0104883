// Package census finds the conmon(8) of every podman container that runs, and
// which unit it belongs to.
//
// It does not ask podman. A podman that root starts as the user needs the user's
// session, makes a pause process in the control group that it was started in, waits
// for the locks of the user's storage and runs what the user's configuration names.
// All that it would say of conmon is on conmon's own command line and in the file
// conmon.pid, whose path is there. So this package reads /proc and that file.
//
// First it goes by what a user cannot forge: the executable, the UID, and that the
// process is in no container. The command line, the environment and the file are the
// user's to forge, but only for the units of that user.
package census

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/internal/regular"
)

// Conmon is a conmon that runs. Its texts are as its user wrote them.
type Conmon struct {
	PID, UID int
	// ContainerID and Container are the container's, Container is its name.
	ContainerID, Container string
	// Unit is the unit that started it and InvocationID which start of it that
	// was; empty where that is not known, as with podman before 4.8, which keeps
	// its environment from conmon.
	Unit, InvocationID string
	// Cgroup is its control group, cgroups(7).
	Cgroup string
	// Recorded is the PID that podman wrote down, 0 where that is not known.
	Recorded int
	// Start is when it started, in ticks of the kernel's since boot.
	Start uint64
	// Replaced says that conmon's file was replaced since, as an upgrade does.
	Replaced bool
}

// Census is what Take found.
type Census struct {
	// Conmons are in the order in which they started.
	Conmons []Conmon
	// LeftOut says of which users Conmons has not all, and why.
	LeftOut []LeftOut
}

// LeftOut says that some processes of a user, which execute conmon, are not in a
// Census.
type LeftOut struct {
	UID       int
	Processes int
	// Why is ErrTooMany, ErrTooLarge, ErrNoAnswer, or the cause of the context's
	// end.
	Why error
}

func (l LeftOut) String() string {
	return fmt.Sprintf("%d processes of user %d that execute conmon are left out: %v", l.Processes, l.UID, l.Why)
}

// Why a process is left out.
var (
	ErrTooMany  = fmt.Errorf("there are more than %d", maxConmons)
	ErrTooLarge = errors.New("their command lines and environments are too large")
	ErrNoAnswer = errors.New("they keep the reader of their command line or environment waiting")
)

// Bounds of what is read, and how long for. Each user has bounds of their own, so
// that nobody's processes hide another user's.
const (
	maxConmons  = 1000      // of one user
	maxStrings  = 256 << 10 // bytes, the command line or the environment of a process
	maxTotal    = 16 << 20  // bytes, those of all of one user's
	maxText     = 256       // bytes of a text that is kept
	maxNoAnswer = 3         // processes of one user
)

// patience is how long a process may keep the reader of its memory waiting, as older
// kernels let it with userfaultfd(2).
const patience = 2 * time.Second

// candidate is a process that executes conmon.
type candidate struct {
	pid, uid int
	start    uint64
	replaced bool
}

// Take returns every conmon that runs as one of the users, all users if uids is nil.
// executables is what conmon is, conmonbridge.Executables for most.
// A process that ends meanwhile is not in the census. When ctx is done Take returns
// what it has, and says in LeftOut what that lacks.
func Take(ctx context.Context, uids map[int]bool, executables []string) (Census, error) {
	pids, err := proc.PIDs()
	if err != nil {
		return Census{}, err
	}
	users := map[int][]candidate{}
	for _, pid := range pids {
		if ctx.Err() != nil {
			return Census{}, fmt.Errorf("look at all processes: %w", context.Cause(ctx))
		}
		if c, ok := examine(pid, uids, executables); ok {
			users[c.uid] = append(users[c.uid], c)
		}
	}
	// All users at once: nobody waits for another user's process.
	partial := make(chan Census, len(users))
	for uid, candidates := range users {
		go func() { partial <- takeUser(ctx, uid, candidates, read) }()
	}
	var all Census
	for range users {
		user := <-partial
		all.Conmons = append(all.Conmons, user.Conmons...)
		all.LeftOut = append(all.LeftOut, user.LeftOut...)
	}
	slices.SortFunc(all.Conmons, func(a, b Conmon) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.PID, b.PID))
	})
	slices.SortFunc(all.LeftOut, func(a, b LeftOut) int { return cmp.Compare(a.UID, b.UID) })
	return all, nil
}

// examine reports whether a process is a conmon that counts, by what cannot be
// forged and costs little to read. It does not read the memory of the process, and
// so is not kept waiting.
func examine(pid int, uids map[int]bool, executables []string) (candidate, bool) {
	p, err := proc.Read(pid)
	if err != nil || !p.NamedConmon() || p.Ended() {
		return candidate{}, false
	}
	status, err := proc.ReadStatus(pid)
	if err != nil || status.Contained() {
		return candidate{}, false
	}
	uid, ok := status.UID()
	if !ok || uids != nil && !uids[uid] {
		return candidate{}, false
	}
	c := candidate{pid, uid, p.Start, false}
	if conmonbridge.VerifyExecutable(pid, executables) != nil {
		c.replaced = conmonbridge.ExecutesReplaced(pid, executables)
		return c, c.replaced
	}
	return c, true
}

// takeUser returns what the conmons of one user say of themselves, by read.
func takeUser(ctx context.Context, uid int, candidates []candidate, read func(candidate) (Conmon, int, error)) Census {
	var all Census
	leaveOut := func(why error, n int) {
		for i := range all.LeftOut {
			if all.LeftOut[i].Why == why {
				all.LeftOut[i].Processes += n
				return
			}
		}
		if n > 0 {
			all.LeftOut = append(all.LeftOut, LeftOut{uid, n, why})
		}
	}
	if len(candidates) > maxConmons {
		leaveOut(ErrTooMany, len(candidates)-maxConmons)
		candidates = candidates[:maxConmons]
	}
	total, noAnswer := 0, 0
	for i, c := range candidates {
		rest := len(candidates) - i
		switch {
		case ctx.Err() != nil:
			leaveOut(context.Cause(ctx), rest)
			return all
		case total >= maxTotal:
			leaveOut(ErrTooLarge, rest)
			return all
		case noAnswer >= maxNoAnswer:
			leaveOut(ErrNoAnswer, rest)
			return all
		}
		type answer struct {
			conmon Conmon
			size   int
			err    error
		}
		answered := make(chan answer, 1)
		go func() {
			conmon, size, err := read(c)
			answered <- answer{conmon, size, err}
		}()
		select {
		case a := <-answered:
			total += a.size
			switch {
			case a.err == nil:
				all.Conmons = append(all.Conmons, a.conmon)
			case errors.Is(a.err, regular.ErrTooLarge):
				total += maxStrings
				leaveOut(ErrTooLarge, 1)
			}
		case <-time.After(patience):
			noAnswer++
			leaveOut(ErrNoAnswer, 1)
		case <-ctx.Done():
			leaveOut(context.Cause(ctx), rest)
			return all
		}
	}
	return all
}

// errExec says that a conmon is that of a podman-exec(1).
var errExec = errors.New("is of a podman exec")

// read reads what a conmon says of itself, and how many bytes that was.
func read(c candidate) (conmon Conmon, size int, err error) {
	conmon = Conmon{PID: c.pid, UID: c.uid, Start: c.start, Replaced: c.replaced}
	if conmon.Cgroup, err = proc.Cgroup(c.pid); err != nil {
		return conmon, 0, err
	}
	line, size, err := conmonbridge.ReadCommandLine(c.pid, maxStrings)
	if err != nil {
		return conmon, size, err
	}
	if line.Session != line.Container.ID {
		return conmon, size, errExec
	}
	conmon.ContainerID, conmon.Container = line.Container.ID, line.Container.Name
	environ, err := proc.Environ(c.pid, maxStrings)
	size += len(environ)
	if err != nil {
		return conmon, size, err
	}
	conmon.InvocationID = short(environ.Get("INVOCATION_ID"))
	// Quadlet sets PODMAN_SYSTEMD_UNIT. A unit that a person wrote may have only the
	// mainpid file.
	if conmon.Unit = short(environ.Get("PODMAN_SYSTEMD_UNIT")); conmon.Unit == "" {
		conmon.Unit = handover.UnitOf(short(environ.Get(handover.EnvMainPIDFile)))
	}
	// podman keeps the file in the user's runtime directory, unless its configuration
	// says otherwise. Files elsewhere are not opened.
	conmon.Recorded = ReadPID("/run/user/"+strconv.Itoa(c.uid), line.PIDFile)
	return conmon, size, nil
}

// short returns a text that may be kept, "" for one that is too long to be what it
// has to be.
func short(text string) string {
	if len(text) > maxText {
		return ""
	}
	return text
}

// ReadPID reads a PID that the user may have written into a file below dir, 0
// where there is none.
func ReadPID(dir, path string) int {
	b, err := regular.ReadBelow(dir, path, 32)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// Start is a start of a unit.
type Start struct {
	Unit         string
	UID          int
	InvocationID string
	// MainPID is systemd's main PID, Told is the PID in the mainpid file, and
	// ControlGroup is the unit's.
	MainPID, Told int
	ControlGroup  string
	// Executables is what conmon is.
	Executables []string
	// Kube says that the unit's main process is the service container's conmon.
	Kube bool
}

// Of returns the conmons that a unit started. current are those of this start, by
// the invocation ID, or for a conmon without one, by its PID or control group.
// leftOver are those of earlier starts.
func (s Start) Of(all []Conmon) (current, leftOver []Conmon) {
	for _, c := range all {
		switch {
		case c.UID != s.UID:
		case c.InvocationID != "" && c.InvocationID == s.InvocationID,
			c.InvocationID == "" && (c.PID == s.MainPID || c.PID == s.Told || s.contains(c.Cgroup)):
			current = append(current, c)
		case c.Unit == s.Unit:
			leftOver = append(leftOver, c)
		}
	}
	return current, leftOver
}

// Elsewhere returns the conmons that name the unit and are not of its user. ofRoot are
// root's, which only root can have started so. claiming are those of other users, who
// may write any unit's name.
func (s Start) Elsewhere(all []Conmon) (ofRoot, claiming []Conmon) {
	for _, c := range all {
		switch {
		case c.UID == s.UID:
		case c.UID == 0 && (c.Unit == s.Unit || c.InvocationID != "" && c.InvocationID == s.InvocationID):
			ofRoot = append(ofRoot, c)
		case c.UID != 0 && c.Unit == s.Unit:
			claiming = append(claiming, c)
		}
	}
	return ofRoot, claiming
}

func (s Start) contains(cgroup string) bool {
	return s.ControlGroup != "" && strings.HasPrefix(cgroup+"/", s.ControlGroup+"/")
}

// Main returns the conmon of this start that is, or should be, the unit's main
// process: systemd's main process if that is one of them, else the service
// container's of a kube unit, else the first.
func (s Start) Main(current []Conmon) (Conmon, bool) {
	for _, c := range current {
		if c.PID == s.MainPID {
			return c, true
		}
	}
	for _, c := range current {
		if !s.Kube || strings.HasSuffix(c.Container, "-service") {
			return c, true
		}
	}
	return Conmon{}, false
}

// Verify reports whether a conmon is what the unit's main process must be, by
// the rules of notify-mainpid(8). The error says what it is not.
func (s Start) Verify(c Conmon) error {
	claim, err := conmonbridge.NewClaim(c.PID)
	if err != nil {
		return err
	}
	defer claim.Close()
	want := conmonbridge.Expected{
		Requirement: conmonbridge.RequireConmon, UID: s.UID,
		InvocationID: s.InvocationID, Executables: s.Executables, Replaced: c.Replaced,
	}
	switch {
	case c.InvocationID == "":
		// notify-mainpid went by podman's control group, but podman has ended. The
		// census has looked at the executable.
		want.Requirement = conmonbridge.RequireUser
	case s.Kube:
		want.Requirement = conmonbridge.RequireKube
	}
	done := make(chan error, 1)
	go func() { done <- claim.Verify(want) }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("process %d: its environment cannot be read, it keeps the reader waiting", c.PID)
	}
}
