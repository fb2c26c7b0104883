package quadlet

import (
	"path/filepath"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

// keepStops has the units that run with a drop-in of ours, and that the plan does not
// serve any more, end their containers all the same.
func (p *Planner) keepStops(plan *Plan) {
	if p.Recorded == nil {
		return
	}
	units := p.Recorded()
	if len(units) == 0 {
		return
	}
	decisions := make(map[string]*Decision, len(plan.Decisions))
	for _, d := range plan.Decisions {
		decisions[d.Service] = d
	}
	refused := map[*Decision]bool{}
	for _, unit := range units {
		d := decisions[unit]
		if d == nil {
			d = decisions[unitfile.TemplateOf(unit)]
		}
		if d != nil && (d.Err == nil || refused[d]) || checkServiceName(unit) != nil {
			continue
		}
		var own []string
		if d == nil {
			var ends bool
			if own, ends = p.ownStops(unit); ends {
				continue
			}
		}
		record, err := p.ReadRecord(unit)
		if err != nil {
			continue
		}
		if d != nil {
			d.Dropin.Forget(record.UID, p.Programs)
			refused[d] = true
			continue
		}
		plan.Gone = append(plan.Gone, dropin.NewGone(unit, record, own, p.Programs))
	}
}

// ownStops returns the lines of ExecStopPost= of a unit that somebody wrote by hand, nil
// if there is no such unit. ends says that the unit has a command that ends its container:
// in our drop-in, or in its own file.
func (p *Planner) ownStops(unit string) (lines []string, ends bool) {
	path := UnitFile(p.UnitDirs, unit)
	if path == "" {
		path = UnitFile(p.UnitDirs, unitfile.TemplateOf(unit))
	}
	if path == "" {
		return nil, false
	}
	for _, name := range []string{unit, unitfile.TemplateOf(unit)} {
		if UnitFile(p.UnitDirs, filepath.Join(name+".d", dropin.Name)) != "" {
			return nil, true
		}
	}
	file, err := LoadService(path, p.UnitDirs)
	if err != nil {
		return nil, false
	}
	lines = append([]string{}, file.List("Service", "ExecStopPost")...)
	return lines, slices.ContainsFunc(lines, func(line string) bool {
		return strings.Contains(line, "notify-mainpid") && strings.Contains(line, "--forget")
	})
}
