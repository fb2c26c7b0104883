package diagnosis

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/quadlet"
)

// Dropin is a unit's 50-oci-mainpid.conf, compared with what would be written.
type Dropin struct {
	Path string // empty if there is none
	// Source is the file that it was made from, Generator says by which program.
	Source    string
	Generator bool
	// Foreign says that neither wrote it.
	Foreign bool
	// Text is what is in it, nil if that could not be read.
	Text *quadlet.Unit
	// Current says that it is what would be written now. Where it is not, Cgroup
	// is the mode for which it looks most like that.
	Current bool
	Cgroup  quadlet.Cgroup
	// Wanted says that the generator would write one.
	Wanted bool
	Err    error
}

// makers are how the drop-ins of package quadlet start.
const (
	generatedBy  = "# Made by oci-mainpid generate from "
	generatorsBy = "# Made by oci-mainpid-generator from "
)

// maxDropin bounds what is read of a drop-in.
const maxDropin = 1 << 20

// Generate returns the drop-ins that oci-mainpid generate --user=USER
// --cgroup=MODE FILE would write, by unit. Without a mode, it is the default.
type Generate func(user string, cgroup quadlet.Cgroup, file string) (map[string]string, error)

// comparer writes drop-ins anew, to compare with those that are there.
type comparer struct {
	programs quadlet.Programs
	generate Generate
	// generated are the generator's, by unit.
	generated func() map[string][]byte
}

func newComparer(generate Generate) *comparer {
	c := &comparer{programs: quadlet.FindPrograms(), generate: generate}
	c.generated = sync.OnceValue(func() map[string][]byte {
		texts := map[string][]byte{}
		// What is wrong with a unit is in its drop-in, too.
		for _, d := range quadlet.NewGenerator(c.programs, func(quadlet.Level, string, string) {}).Dropins() {
			texts[d.Unit] = d.Text()
		}
		return texts
	})
	return c
}

// compare compares a unit's drop-in with what would be written now. keeps says
// that writing it also makes the user's manager stay when he logs out.
func (c *comparer) compare(u *manager.Unit) (d Dropin, keeps bool) {
	userManager := fmt.Sprintf("user@%d.service", u.UID)
	d = Dropin{Path: u.Dropin}
	if d.Path == "" {
		d.Wanted = c.generated()[u.Name] != nil
		return d, c.generated()[userManager] != nil
	}
	text, err := readDropin(d.Path)
	if err != nil {
		d.Err = err
		return d, false
	}
	if d.Text, d.Err = quadlet.Parse(text); d.Err != nil {
		return d, false
	}
	first := firstLine(text)
	// That of a template serves its instances.
	unit := strings.TrimSuffix(filepath.Base(filepath.Dir(d.Path)), ".d")
	switch {
	case strings.HasPrefix(first, generatorsBy):
		d.Generator, d.Source = true, strings.TrimPrefix(first, generatorsBy)
		d.Current = bytes.Equal(text, c.generated()[unit])
		keeps = c.generated()[userManager] != nil
	case strings.HasPrefix(first, generatedBy):
		d.Source = strings.TrimPrefix(first, generatedBy)
		var written map[string]string
		d.Current, d.Cgroup, written, d.Err = c.regenerates(u, unit, d.Source, text)
		keeps = written[userManager] != ""
	default:
		d.Foreign = true
	}
	return d, keeps
}

func readDropin(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxDropin:
		return nil, fmt.Errorf("%s is no file of ordinary size", path)
	}
	return os.ReadFile(path)
}

// regenerates reports whether oci-mainpid generate would write the same text,
// and returns all that it would write. A drop-in does not say with which
// --cgroup= it was made, so each is tried; best is the one that comes closest.
func (c *comparer) regenerates(u *manager.Unit, name, source string, text []byte) (same bool, best quadlet.Cgroup, written map[string]string, err error) {
	if !filepath.IsAbs(source) {
		source = u.Fragment // generate was given a path of then
	}
	most := -1
	for _, cgroup := range []quadlet.Cgroup{"", quadlet.Mixed, quadlet.Service, quadlet.User} {
		dropins, generateErr := c.generate(u.User, cgroup, source)
		if generateErr != nil {
			err = generateErr
			continue
		}
		// The first line has the path as it was given.
		if body(dropins[name]) == body(string(text)) {
			return true, cgroup, dropins, nil
		}
		if n := linesInCommon(dropins[name], string(text)); n > most {
			most, best, written = n, cgroup, dropins
		}
	}
	if most < 0 {
		return false, "", nil, err
	}
	return false, best, written, nil
}

func body(dropin string) string {
	_, rest, _ := strings.Cut(dropin, "\n")
	return rest
}

func firstLine(text []byte) string {
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

func linesInCommon(a, b string) int {
	lines := strings.Split(b, "\n")
	n := 0
	for line := range strings.Lines(a) {
		if slices.Contains(lines, strings.TrimSuffix(line, "\n")) {
			n++
		}
	}
	return n
}

// limitSettings returns those settings of a unit that limit what it uses and
// that are not as systemd sets them by itself.
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
