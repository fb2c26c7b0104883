package story

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/internal/journal"
	"oci-mainpid-hook/internal/manager"
)

// start is the beginning of a start.
type start struct {
	invocationID string // "" for a start that failed before systemd gave it one
	began        time.Time
	zero         time.Duration // began, on the clock of this boot
	known        bool
}

// cast has the processes and containers that take part in a start. With Cgroup=user
// their messages do not have the unit's name. Then only other messages show that the
// processes belong to the unit.
type cast struct {
	name  string
	start start
	// current is what systemd knows of the unit. It is nil if systemd's times are
	// those of another start. uid is the unit's user, -1 if unknown.
	current *manager.Unit
	uid     int
	// podmans and containers are PIDs and full container IDs.
	podmans    map[string]bool
	containers map[string]bool
	// conmons are the PIDs of conmon. When the main process ends, systemd notes its
	// PID and times with the command of ExecStart=, as if they were podman's.
	conmons map[int]bool
}

// identify finds out who takes part in the last start of the unit.
func identify(name string, unit *manager.Unit, entries []journal.Entry) *cast {
	c := &cast{name: name, start: lastStart(name, entries), uid: -1, podmans: map[string]bool{}, containers: map[string]bool{}, conmons: map[int]bool{}}
	if unit != nil {
		c.uid = unit.UID
		c.remember(unit)
	}
	// Twice, because a later message may show that an earlier one belongs here.
	for range 2 {
		for _, e := range entries {
			if c.takesPart(e) {
				c.learn(e)
			}
		}
	}
	return c
}

// lastStart finds the beginning of the last start in PID 1's messages. If a dependency
// failed, or the first process could not be started, PID 1 logs no beginning.
func lastStart(name string, entries []journal.Entry) (last start) {
	for i, e := range entries {
		if !e.FromManager() || e.Fields["UNIT"] != name {
			continue
		}
		id := e.Fields["INVOCATION_ID"]
		switch e.Fields["MESSAGE_ID"] {
		case msgStarting:
			last = startAt(e)
		case msgNotStart:
			if last.known && last.invocationID == id {
				continue
			}
			first := i
			if id != "" {
				first = slices.IndexFunc(entries, func(e journal.Entry) bool {
					return e.FromManager() && e.Fields["UNIT"] == name && e.Fields["INVOCATION_ID"] == id
				})
			}
			last = startAt(entries[first])
		}
	}
	return last
}

func startAt(e journal.Entry) start {
	return start{invocationID: e.Fields["INVOCATION_ID"], began: e.Time, zero: e.Monotonic, known: true}
}

// early is how long before its message a start can have begun: systemd logs it
// when it has started the first command.
const early = time.Second

// remember takes over what systemd knows of the unit, if it is about the same start.
func (c *cast) remember(u *manager.Unit) {
	if c.start.known && (u.InvocationID == "" || u.InvocationID != c.start.invocationID) {
		return
	}
	c.current = u
	c.start.invocationID = u.InvocationID
	if !c.start.known && u.InactiveExit > 0 {
		c.start.began, c.start.zero, c.start.known = u.Properties.Time("InactiveExitTimestamp"), u.InactiveExit, true
	}
	// While a unit waits for its restart, InactiveExit is when the wait began. So it
	// counts only if it is close to systemd's message.
	began := []time.Duration{u.InactiveExit}
	for _, command := range slices.Concat(u.Pre, u.Start) {
		began = append(began, command.StartedMonotonic)
	}
	logged := c.start.zero
	for _, at := range began {
		if at > logged-early && at < c.start.zero {
			c.start.zero = at
		}
	}
	for _, command := range u.Start {
		if command.PID > 0 {
			c.podmans[strconv.Itoa(command.PID)] = true
		}
	}
}

// takesPart reports whether an entry is about the start. It trusts the fields that
// journald sets. Other fields count only if their author may speak for the unit.
func (c *cast) takesPart(e journal.Entry) bool {
	if !c.start.known || e.Monotonic < c.start.zero-time.Millisecond {
		return false
	}
	f, id := e.Fields, c.start.invocationID
	if e.FromManager() {
		// Some messages about a unit have no INVOCATION_ID.
		return f["UNIT"] == c.name && (f["INVOCATION_ID"] == id || f["INVOCATION_ID"] == "") || c.mentions(e.Message)
	}
	return id != "" && f["_SYSTEMD_INVOCATION_ID"] == id || c.saysSo(e) || c.elsewhere(e)
}

// mentions reports whether PID 1 logged a message about one of our processes for
// another unit, because it took the process for that unit's.
func (c *cast) mentions(message string) bool {
	m := rejected().FindStringSubmatch(message)
	return m != nil && !strings.HasPrefix(message, c.name+":") && (len(c.podmans) == 0 || c.near(m[1]))
}

// near reports whether a process is one of the unit's podmans, or was started right
// after one. podman starts such a child to join its user namespace.
func (c *cast) near(pid string) bool {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return false
	}
	for podman := range c.podmans {
		if p, err := strconv.Atoi(podman); err == nil && n >= p && n < p+1000 {
			return true
		}
	}
	return false
}

// elsewhere reports whether a process below the user's manager belongs to the unit:
// it is the unit's podman, by PID or command line, or in one of the unit's
// containers.
func (c *cast) elsewhere(e journal.Entry) bool {
	f := e.Fields
	if c.current == nil || c.uid < 0 || f["_UID"] != strconv.Itoa(c.uid) || !strings.HasPrefix(f["_SYSTEMD_UNIT"], "user@") {
		return false
	}
	if c.podmans[f["_PID"]] || c.isPodman(f["_CMDLINE"]) {
		return true
	}
	for pid := range c.podmans {
		if strings.Contains(e.Message, "podman-"+pid+".scope") {
			return true
		}
	}
	for id := range c.containers {
		if f["CONTAINER_ID_FULL"] == id || strings.Contains(e.Message, id[:shortID]) || strings.Contains(f["_CMDLINE"], id) {
			return true
		}
	}
	return false
}

// isPodman reports whether a command line is that of the unit's podman.
func (c *cast) isPodman(line string) bool {
	return line != "" && c.current != nil && slices.ContainsFunc(c.current.Start, func(command manager.Command) bool {
		return unquoted(line) == unquoted(strings.Join(command.Arguments, " "))
	})
}

// unquoted removes quotes and backslashes, so that command lines can be compared.
func unquoted(s string) string { return strings.NewReplacer(`"`, "", `'`, "", `\`, "").Replace(s) }

// saysSo reports whether a message of our own programs says that it is about this
// start. That is needed because journald does not know the control group of a process
// that has ended, and because with Cgroup=user the hook is not in the unit's. Only
// messages of root and of the unit's user count. root's invocation ID alone does not
// count: it may come from a file of another unit's user (EnvironmentFile=).
func (c *cast) saysSo(e journal.Entry) bool {
	f, id := e.Fields, c.start.invocationID
	return id != "" && f["INVOCATION_ID"] == id && f["UNIT"] == c.name && ownKind(e) != nil &&
		(f["_UID"] == "0" || c.uid >= 0 && f["_UID"] == strconv.Itoa(c.uid))
}

// learn takes note of the processes and containers that an entry shows.
func (c *cast) learn(e journal.Entry) {
	f := e.Fields
	if e.FromManager() {
		return
	}
	if c.isPodman(f["_CMDLINE"]) {
		c.podmans[f["_PID"]] = true
	}
	switch {
	case isConmon(program(e)):
		c.conmons[e.PID()] = true
	case c.sourceOf(e) == "podman" && isContainerID(e.Message):
		c.containers[e.Message] = true
	case f["PODMAN_EVENT"] != "" && isContainerID(f["PODMAN_ID"]) && f["PODMAN_TYPE"] != "image":
		c.containers[f["PODMAN_ID"]] = true
	}
}

const shortID = 12

// isContainerID reports whether text is a container's ID as podman prints it.
func isContainerID(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

// commandOf returns the setting of the unit's command that has this PID, or "".
func (c *cast) commandOf(pid int) string {
	if c.current == nil || pid == 0 || c.conmons[pid] {
		return ""
	}
	for _, command := range slices.Concat(c.current.Pre, c.current.Start, c.current.Post, c.current.Stop, c.current.StopPost) {
		if command.PID == pid {
			return command.Name()
		}
	}
	return ""
}
