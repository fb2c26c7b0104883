package quadlet

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/unitfile"
)

// member is a service that Quadlet makes, with its request and the Quadlet files
// that it references.
type member struct {
	Converted
	request
	decision   *Decision // nil unless the file asks
	references []reference
}

// refuse refuses the service. The first reason counts.
func (m *member) refuse(err error) {
	if m.decision != nil && m.decision.Err == nil {
		m.decision.Err = err
	}
}

// members reads the request of each service. Its keys are the names of the Quadlet
// files.
func (p *Planner) members(services []Converted) map[string]*member {
	members := make(map[string]*member, len(services))
	byService := map[string]*member{}
	for _, c := range services {
		m := &member{Converted: c, request: readRequest(c.File(), c.Unit), references: references(c.Unit)}
		if c.Err != nil {
			if text, err := os.ReadFile(c.Source); err == nil {
				m.asks, m.err = textAsks(text), c.Err
			}
		}
		members[c.File()] = m
		if m.asks {
			m.decision = p.decision(m, m.err)
		}
		if other := byService[m.Name]; other != nil {
			err := fmt.Errorf("%s and %s both make %s; give one of them another name, or ServiceName=", other.File(), m.File(), m.Name)
			m.refuse(err)
			other.refuse(err)
		}
		byService[m.Name] = m
	}
	return members
}

func (p *Planner) decision(m *member, err error) *Decision {
	return &Decision{Service: m.Name, Source: m.Source, Err: err, maker: p.Maker}
}

// lookUp finds the users' accounts.
func (p *Planner) lookUp(ctx context.Context, members map[string]*member) {
	var users []string
	for _, m := range members {
		if m.decision != nil && m.user != "" {
			users = append(users, m.user)
		}
	}
	p.Accounts.LookupAll(ctx, users)
	for _, m := range members {
		if m.decision == nil || m.decision.Err != nil {
			continue
		}
		m.decision.Account, m.decision.Err = p.Accounts.Lookup(ctx, m.user)
	}
}

// compare refuses a service that references a file of another user: podman would
// not find, say, the volume.
func (p *Planner) compare(plan *Plan, members map[string]*member) {
	for _, name := range slices.Sorted(maps.Keys(members)) {
		m := members[name]
		if user := p.insideUser(m.Unit); m.decision == nil && user != "" {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s: User=%s in [Container] is the user inside of the container; to run podman as the user %[2]s of this machine, write User=%[2]s in [Service]", m.Name, user))
		}
		if m.byPID1 && m.decision == nil {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s: User=%s in [Service] is left to systemd; to have oci-mainpid serve the unit, write a user's name", m.Name, m.Unit.Get("Service", "User")))
		}
		options := m.request.options
		for _, r := range m.references {
			to := members[r.file]
			if to == nil {
				continue
			}
			if r.key == "Pod" {
				options = options.Or(to.request.options)
			}
			switch {
			case m.decision == nil && to.decision == nil || to.decision != nil && to.decision.Err != nil:
			case m.decision == nil && r.key == "Pod":
				m.decision = p.decision(m, fmt.Errorf("its Pod=%s runs as %s; write User=%[2]s in [Service] of %s, too", r.file, to.user, m.File()))
			case m.decision == nil:
				plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s: runs as root, but %s=%s runs as %s, so podman will not find it", m.Name, r.key, r.file, to.user))
			case to.decision == nil:
				m.refuse(fmt.Errorf("runs as %s, but %s=%s runs as root; write User=%[1]s in [Service] of %[3]s, too", m.user, r.key, r.file))
			case m.decision.Err == nil && m.decision.Account.UID != to.decision.Account.UID:
				m.refuse(fmt.Errorf("runs as %s, but %s=%s runs as %s; write the same User= in [Service] of both", m.user, r.key, r.file, to.user))
			}
		}
		if m.decision != nil && kinds[filepath.Ext(name)].runs {
			m.decision.Options = options.WithDefaults()
		}
	}
}

// insideUser returns the User= of [Container] if a user of this machine has the same
// name, which looks like a mistake. Else it returns "".
func (p *Planner) insideUser(u *unitfile.File) string {
	name, _, _ := strings.Cut(unquoteValue(u.Get("X-Container", "User")), ":")
	if _, err := strconv.Atoi(name); err == nil || name == "" || name == "root" {
		return ""
	}
	here := account.Accounts{Etc: p.Accounts.Etc, Getent: "-"}
	if a, err := here.Lookup(context.Background(), name); err != nil && a.Name == "" {
		return ""
	}
	return name
}

// add derives the drop-ins of the members and adds the decisions to the plan. If
// only has files, it adds these files and what they reference.
func (p *Planner) add(plan *Plan, members map[string]*member, foreign map[string]string, only []string) {
	var chosen []*member
	for _, name := range slices.Sorted(maps.Keys(p.related(members, only))) {
		m := members[name]
		if m.decision == nil {
			continue
		}
		if err := unitfile.CheckServiceName(m.Name); err != nil {
			plan.Errors = append(plan.Errors, fmt.Sprintf("%s: %v, so systemd ignores it", m.Source, err))
			continue
		}
		if dir := foreign[m.Name]; dir != "" {
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s: %s has precedence over the unit of %s, which is left alone", m.Name, filepath.Join(dir, m.Name), m.Source))
			continue
		}
		chosen = append(chosen, m)
	}
	Parallel(len(chosen), func(i int) {
		m := chosen[i]
		d := m.decision
		if d.Err == nil {
			d.Err = p.derive(d, m.Unit, true)
		}
		if d.Err != nil {
			d.refuse(p.Programs)
		}
	})
	compareContainers(chosen)
	for _, m := range chosen {
		if err := checkServiceName(m.Name); err != nil {
			// systemd would apply the refusing drop-in to other units, too.
			plan.Errors = append(plan.Errors, fmt.Sprintf("%s: %v", m.Source, err))
			plan.Masked = append(plan.Masked, m.Name)
			continue
		}
		plan.Decisions = append(plan.Decisions, m.decision)
		if m.decision.Err == nil {
			p.step(m.Name, "%s: user %s, UID %d, Cgroup=%s", m.Source, m.decision.Account.Name, m.decision.Account.UID, m.decision.Options.Cgroup)
		}
	}
}

// compareContainers warns of services of one user whose containers have one name.
func compareContainers(members []*member) {
	type container struct {
		uid  int
		name string
	}
	first := map[container]*Decision{}
	for _, m := range members {
		d := m.decision
		if d.Err != nil || d.containerName == "" {
			continue
		}
		key := container{d.Account.UID, d.containerName}
		other := first[key]
		if other == nil {
			first[key] = d
			continue
		}
		for _, pair := range [][2]*Decision{{d, other}, {other, d}} {
			pair[0].SameContainer = pair[1].Service
			pair[0].Warnings = append(pair[0].Warnings, fmt.Sprintf("its container has the name %s, as that of %s has: each start removes the other's container; write another ContainerName=", d.containerName, pair[1].Service))
		}
	}
}

// related returns the members of the files, all members that these reference, and
// all containers of their pods. Without files it returns all members.
func (p *Planner) related(members map[string]*member, files []string) map[string]bool {
	found := map[string]bool{}
	var queue []string
	for _, file := range files {
		if m := members[filepath.Base(file)]; m != nil && sameFile(m.Source, file) {
			queue = append(queue, m.File())
		}
	}
	if files == nil {
		queue = slices.Collect(maps.Keys(members))
	}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if members[name] == nil || found[name] {
			continue
		}
		found[name] = true
		for _, r := range members[name].references {
			queue = append(queue, r.file)
		}
		for _, other := range members {
			if slices.Contains(other.references, reference{"Pod", name}) {
				queue = append(queue, other.File())
			}
		}
	}
	return found
}
