package quadlet

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// Member is a Quadlet unit among those that it names and that name it, and what
// became of it.
type Member struct {
	Converted

	// Owner is the user that it runs as; nil where that is root, or where Err
	// says why it must not start.
	Owner *Account
	Err   error
	// Cgroup is the mode, once Owner is set.
	Cgroup Cgroup

	asked  request
	refs   []ref
	pod    *Member // the member whose Pod= it is in
	user   string  // asked for or inherited, empty for root
	from   *Member // the member that user was inherited from
	cgroup string
}

// request is what a Quadlet file says for itself.
type request struct {
	user, cgroup string
	// present: there is something of ours in it.
	present bool
	// foreign: [Service] names a user that systemd alone can handle.
	foreign bool
	err     error
}

// ref is a unit that another one names, and by which key.
type ref struct {
	key, file string
}

// Family is every unit that Quadlet makes.
type Family struct {
	members  []*Member
	byFile   map[string]*Member
	accounts *Accounts
	warnings []string
}

// NewFamily connects the services that Quadlet makes.
func NewFamily(services []Converted, accounts *Accounts) *Family {
	f := &Family{byFile: map[string]*Member{}, accounts: accounts}
	for _, c := range services {
		m := &Member{Converted: c, asked: readRequest(c.Unit)}
		m.refs = references(c.Unit)
		f.members = append(f.members, m)
		f.byFile[c.File()] = m
	}
	slices.SortFunc(f.members, func(a, b *Member) int { return strings.Compare(a.Name, b.Name) })
	return f
}

// File returns the member that Quadlet made of the file of that name, or nil.
func (f *Family) File(name string) *Member { return f.byFile[name] }

// Members returns all of them, sorted by name.
func (f *Family) Members() []*Member { return f.members }

// Warnings are what Settle found that does not keep a unit from starting.
func (f *Family) Warnings() []string { return f.warnings }

// Ask has the member run as the user, whatever its file says; a cgroup mode that
// is not empty counts as well. It fails where the file names another user.
func (f *Family) Ask(m *Member, user string, cgroup Cgroup) error {
	if m.asked.err != nil {
		return m.asked.err
	}
	if user != "" {
		if have := m.asked.user; have != "" && f.key(have) != f.key(user) {
			return fmt.Errorf("has User=%s already, --user=%s differs", have, user)
		}
		m.asked.user = user
	}
	if cgroup != "" {
		m.asked.cgroup = string(cgroup)
	}
	m.asked.present = true
	return nil
}

// readRequest reads [X-MainPID], and User= in [Service], of a converted unit.
func readRequest(u *Unit) (r request) {
	for _, s := range u.sections {
		if s != section && meansMainPID(s) {
			r.present = true
			r.err = fmt.Errorf("section [%s]: write [%s]", s, section)
			return r
		}
	}
	service := u.Get("Service", "User")
	if u.Has(section) {
		r.present = true
		r.user = unquoteValue(u.Get(section, "User"))
		r.cgroup = unquoteValue(u.Get(section, "Cgroup"))
		for _, a := range u.Assignments {
			if a.Section == section && a.Key != "User" && a.Key != "Cgroup" {
				r.err = fmt.Errorf("[%s] has no key %s=, only User= and Cgroup=", section, a.Key)
				return r
			}
		}
		if _, err := ParseCgroup(r.cgroup); err != nil {
			r.err = err
			return r
		}
		if r.user != "" && service != "" && r.user != service {
			r.err = fmt.Errorf("User=%s in [%s] and User=%s in [Service] differ", r.user, section, service)
			return r
		}
	}
	if service != "" && r.user == "" {
		switch {
		case service == "root" || service == "0":
		case strings.Contains(service, "%") || isTrue(u.Get("Service", "DynamicUser")):
			r.foreign = true
		default:
			r.user, r.present = service, true
		}
	}
	return r
}

// isTrue reads a boolean, systemd.syntax(7).
func isTrue(v string) bool {
	switch strings.ToLower(v) {
	case "1", "yes", "y", "true", "t", "on":
		return true
	}
	return false
}

// references returns the Quadlet files that a converted unit names in Volume=,
// Network=, Image=, Pod= and Mount=.
func references(u *Unit) []ref {
	var refs []ref
	add := func(key, file string, types ...string) {
		r := ref{key, file}
		if slices.Contains(types, filepath.Ext(file)) && !slices.Contains(refs, r) {
			refs = append(refs, r)
		}
	}
	for _, s := range u.sections {
		if !strings.HasPrefix(s, "X-") || s == section {
			continue
		}
		for _, v := range u.List(s, "Volume") {
			source, _, _ := strings.Cut(v, ":")
			add("Volume", source, ".volume")
		}
		for _, v := range u.List(s, "Network") {
			source, _, _ := strings.Cut(v, ":")
			add("Network", source, ".network", ".container")
		}
		add("Image", unquoteValue(u.Get(s, "Image")), ".image", ".build")
		add("Pod", unquoteValue(u.Get(s, "Pod")), ".pod")
		for _, v := range u.List(s, "Mount") {
			words, err := splitWords(v)
			if err != nil {
				continue
			}
			for _, w := range words {
				for _, field := range strings.Split(w.text, ",") {
					key, source, _ := strings.Cut(field, "=")
					if key == "source" || key == "src" {
						add("Mount", source, ".volume", ".image", ".build", ".artifact")
					}
				}
			}
		}
	}
	return refs
}

// key makes two spellings of one user equal.
func (f *Family) key(user string) string {
	if a, err := f.accounts.Lookup(user); err == nil {
		return a.Name
	}
	return user
}

// passive reports whether the unit is there for those that name it.
func (m *Member) passive() bool {
	switch filepath.Ext(m.File()) {
	case ".volume", ".network", ".image", ".build", ".artifact":
		return true
	}
	return false
}

// follows reports whether what is wrong with the unit is wrong with those that
// name it, and so theirs to say.
func (m *Member) follows() bool {
	return m.passive() && m.asked.user == "" && m.asked.err == nil
}

// Settle decides for each member whom it runs as.
func (f *Family) Settle() {
	for _, m := range f.members {
		m.user, m.Err = m.asked.user, m.asked.err
		m.cgroup = m.asked.cgroup
		for _, r := range m.refs {
			if r.key == "Pod" {
				m.pod = f.byFile[r.file]
			}
		}
	}
	f.pods()
	f.spread()
	f.keepRoot()
	f.resolve()
}

// pods gives the containers of a pod and the pod the same user: that of the pod,
// or else the one that its containers ask for.
func (f *Family) pods() {
	for _, m := range f.members {
		if m.pod != nil && m.user != "" && m.Err == nil && m.pod.asked.user == "" {
			f.give(m, "Pod", m.pod)
		}
	}
	for _, m := range f.members {
		pod := m.pod
		if pod == nil || pod.user == "" && pod.Err == nil {
			continue
		}
		switch {
		case m.user == "" && pod.Err != nil:
			m.Err = errors.Join(m.Err, fmt.Errorf("its pod %s is not started: %w", pod.File(), pod.Err))
		case m.user == "":
			m.user, m.from = pod.user, pod
		case m.Err == nil && pod.user != "" && f.key(m.user) != f.key(pod.user):
			m.Err = fmt.Errorf("runs as %s, but its Pod=%s as %s; a pod and its containers have one user", m.user, pod.File(), pod.user)
		}
		if m.cgroup == "" {
			m.cgroup = pod.cgroup
		}
	}
}

// spread passes the user on to what a unit names, and so on.
func (f *Family) spread() {
	queue := slices.Clone(f.members)
	for len(queue) > 0 {
		m := queue[0]
		queue = queue[1:]
		if m.user == "" {
			continue
		}
		for _, r := range m.refs {
			to := f.byFile[r.file]
			if to == nil || r.key == "Pod" {
				continue
			}
			if f.give(m, r.key, to) {
				queue = append(queue, to)
			}
		}
	}
}

// give makes to run as m does and reports whether that is news. Where to has
// another user, both cannot be served.
func (f *Family) give(m *Member, key string, to *Member) bool {
	switch {
	case to.asked.foreign:
		m.Err = fmt.Errorf("%s=%s: %s has User=%s in [Service], which only systemd can tell; write the user's name", key, to.File(), to.File(), to.Unit.Get("Service", "User"))
	case to.user == "" && !to.passive() && key != "Pod":
		m.Err = fmt.Errorf("runs as %s, but %s=%s as root; write User=%s there, too", m.user, key, to.File(), m.user)
	case to.user == "":
		to.user, to.from = m.user, m
		return true
	case f.key(to.user) == f.key(m.user):
	case to.from != nil:
		err := fmt.Errorf("%s of %s and %s of %s both name %s, which can have one user only", to.from.File(), to.user, m.File(), m.user, to.File())
		m.Err, to.Err = err, err
		if to.from.Err == nil {
			to.from.Err = err
		}
	default:
		m.Err = fmt.Errorf("runs as %s, but %s=%s as %s", m.user, key, to.File(), to.user)
	}
	return false
}

// keepRoot leaves to root what a unit that runs as root names: nobody asked to
// change that unit.
func (f *Family) keepRoot() {
	seen := map[*Member]bool{}
	var claim func(root, m *Member)
	claim = func(root, m *Member) {
		if seen[m] {
			return
		}
		seen[m] = true
		for _, r := range m.refs {
			to := f.byFile[r.file]
			if to == nil {
				continue
			}
			if to.asked.present {
				if to.user == "" {
					continue
				}
				f.warnings = append(f.warnings, fmt.Sprintf("%s: runs as root, but %s=%s as %s: it will not find it", m.Name, r.key, to.File(), to.user))
				continue
			}
			if to.user != "" && to.passive() {
				for _, other := range f.members {
					if other.user != "" && slices.ContainsFunc(other.refs, func(r ref) bool { return r.file == to.File() }) {
						other.Err = fmt.Errorf("%s of %s and %s of root both name %s, which can have one user only", other.File(), other.user, root.File(), to.File())
					}
				}
				to.user, to.from, to.Err = "", nil, nil
			}
			claim(root, to)
		}
	}
	for _, m := range f.members {
		if m.user == "" && m.Err == nil && !m.asked.present && !m.asked.foreign && !m.passive() {
			claim(m, m)
		}
	}
	// What only units name that must not start, must not run as root either.
	for _, m := range f.members {
		if m.user == "" && m.Err != nil {
			f.refuse(m, seen)
		}
	}
}

// refuse keeps from starting what m names, unless somebody else needs it.
func (f *Family) refuse(m *Member, byRoot map[*Member]bool) {
	for _, r := range m.refs {
		to := f.byFile[r.file]
		if to == nil || to.user != "" || to.Err != nil || to.asked.present || !to.passive() || byRoot[to] {
			continue
		}
		to.Err = fmt.Errorf("%s names it and is not started: %w", m.File(), m.Err)
		f.refuse(to, byRoot)
	}
}

// resolve looks the users up.
func (f *Family) resolve() {
	for _, m := range f.members {
		switch {
		case m.Err != nil:
			continue
		case m.asked.foreign:
			f.warnings = append(f.warnings, fmt.Sprintf("%s: User=%s in [Service] is left to systemd; to have oci-mainpid serve the unit write a user's name in [%s]", m.Name, m.Unit.Get("Service", "User"), section))
			continue
		case m.user == "" && m.asked.present:
			m.Err = fmt.Errorf("[%s] has no User=", section)
			continue
		case m.user == "":
			continue
		}
		account, err := f.accounts.Lookup(m.user)
		if err != nil {
			if m.from != nil {
				err = fmt.Errorf("%w (the user of %s)", err, m.from.File())
			}
			m.Err = err
			continue
		}
		m.Owner = &account
		// readRequest checked the words.
		m.Cgroup, m.Err = ParseCgroup(m.cgroup)
	}
}

// Related returns the members with all that Settle made run as their users
// because they name each other, sorted by name.
func (f *Family) Related(members ...*Member) []*Member {
	found := map[*Member]bool{}
	queue := slices.Clone(members)
	for len(queue) > 0 {
		m := queue[0]
		queue = queue[1:]
		if m == nil || found[m] || m.Owner == nil && m.Err == nil {
			continue
		}
		found[m] = true
		for _, r := range m.refs {
			queue = append(queue, f.byFile[r.file])
		}
		for _, other := range f.members {
			if other.pod == m {
				queue = append(queue, other)
			}
		}
	}
	related := slices.Collect(maps.Keys(found))
	slices.SortFunc(related, func(a, b *Member) int { return strings.Compare(a.Name, b.Name) })
	return related
}
