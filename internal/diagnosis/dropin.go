package diagnosis

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/unitfile"
	"oci-mainpid-hook/quadlet"
)

// Dropin is a unit's drop-in, compared with the drop-in that the unit would get now.
type Dropin struct {
	Path   string // empty if the unit has none
	Origin dropin.Origin
	// Foreign says that the drop-in was written by hand.
	Foreign bool
	// Text is the drop-in's text, nil if it could not be read.
	Text *unitfile.File
	// Current says that the unit would get the same drop-in now.
	Current bool
	// Planned is what the unit would get now. It is nil if the unit would get no
	// drop-in, or if that is not known.
	Planned *quadlet.Decision
	Err     error
}

// Wanted reports whether the unit has no drop-in although the generator would write
// one.
func (d Dropin) Wanted() bool { return d.Path == "" && d.Planned != nil }

// planner plans drop-ins anew, to compare them with the drop-ins that are there.
type planner struct {
	// generator returns the plan that the generator would write.
	generator func() *quadlet.Plan
	generate  *quadlet.Planner
}

func newPlanner(ctx context.Context) *planner {
	return &planner{
		generator: sync.OnceValue(func() *quadlet.Plan { return quadlet.NewPlanner(dropin.Generator).Quadlet(ctx) }),
		generate:  quadlet.NewPlanner(dropin.Generate),
	}
}

// compare compares a unit's drop-in with the plan for it.
func (p *planner) compare(ctx context.Context, u *manager.Unit) Dropin {
	d := Dropin{Path: u.Dropin, Origin: u.Origin}
	if d.Path == "" {
		d.Planned = p.generator().Of(u.Name)
		return d
	}
	text, err := unitfile.Read(d.Path)
	if err == nil {
		d.Text, err = unitfile.Parse(text)
	}
	switch {
	case err != nil:
		d.Err = err
		return d
	case u.OriginErr == dropin.ErrForeign:
		d.Foreign = true
		return d
	case u.OriginErr != nil:
		d.Err = u.OriginErr
		return d
	}
	// The drop-in of a template serves its instances.
	service := strings.TrimSuffix(filepath.Base(filepath.Dir(d.Path)), ".d")
	d.Planned, d.Err = p.plan(ctx, service, u)
	if d.Planned != nil {
		d.Current = bytes.Equal(text, d.Planned.Dropin.Text())
		if d.Planned.Err != nil && !d.Current {
			d.Err = d.Planned.Err
		}
	}
	return d
}

// plan returns what a service would get now from the program that made its drop-in.
func (p *planner) plan(ctx context.Context, service string, u *manager.Unit) (*quadlet.Decision, error) {
	o := u.Origin
	switch {
	case o.Maker == dropin.Generator:
		return p.generator().Of(service), nil
	case quadlet.IsQuadlet(o.Source):
		plan, err := p.generate.QuadletFiles(ctx, []string{o.Source}, o.Options)
		if err != nil {
			return nil, err
		}
		return plan.Of(service), nil
	}
	source, user := o.Source, o.User
	if !filepath.IsAbs(source) { // a drop-in of a time before records
		source = u.Fragment
	}
	if user == "" {
		user = u.User
	}
	return p.generate.Service(ctx, source, user, o.Options), nil
}

// limitSettings returns the settings of a unit that limit what it uses, without those
// that have systemd's defaults.
func limitSettings(u *manager.Unit, defaultTasksMax uint64) []string {
	const infinity = 1<<64 - 1
	var set []string
	for _, l := range []struct {
		property, name string
		unset          []uint64
	}{
		{"MemoryMax", "MemoryMax", []uint64{infinity}},
		{"MemoryHigh", "MemoryHigh", []uint64{infinity}},
		{"MemorySwapMax", "MemorySwapMax", []uint64{infinity}},
		{"MemoryZSwapMax", "MemoryZSwapMax", []uint64{infinity}},
		{"CPUQuotaPerSecUSec", "CPUQuota", []uint64{infinity}},
		{"CPUWeight", "CPUWeight", []uint64{infinity, 100}},
		{"TasksMax", "TasksMax", []uint64{infinity, defaultTasksMax}},
		{"IOWeight", "IOWeight", []uint64{infinity, 100}},
	} {
		if v, ok := u.Properties.Uint(l.property); ok && !slices.Contains(l.unset, v) {
			set = append(set, l.name+"=")
		}
	}
	if slice := u.Properties.String("Slice"); slice != "" && !strings.HasPrefix(slice, "system") {
		set = append(set, "Slice=")
	}
	for _, name := range []string{
		"IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax",
		"IPAddressAllow", "IPAddressDeny", "DeviceAllow",
	} {
		if list, ok := u.Properties[name].([][]any); ok && len(list) > 0 {
			set = append(set, name+"=")
		}
	}
	for _, name := range []string{"AllowedCPUs", "AllowedMemoryNodes"} {
		if mask, ok := u.Properties[name].([]byte); ok && len(mask) > 0 {
			set = append(set, name+"=")
		}
	}
	return set
}
