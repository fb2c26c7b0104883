package dropin

import (
	"path/filepath"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/unitfile"
)

// Gone is for a unit that runs with a drop-in of ours and would now get none: somebody
// has removed its file, its User= or its drop-in. systemd would no longer know the
// command that ends the container.
type Gone struct {
	*Dropin
	programs Programs
}

// goneReason says why such a unit does not start again, if it has no file.
const goneReason = "its file is gone; write it again, then: systemctl daemon-reload"

// NewGone returns what the unit gets. Its record says what it was started with. own are
// the unit's own lines of ExecStopPost=, nil if they are not known: they come last,
// because systemd runs no line after one that fails.
func NewGone(unit string, record handover.Record, own []string, p Programs) *Gone {
	d := &Dropin{Unit: unit, Origin: Origin{Maker: Generator}}
	_, _, operands := d.operands(record.UID)
	d.setFirst("ExecStopPost", forget(p)+operands, own)
	return &Gone{d, p}
}

// IsGone reports whether the record is that of a drop-in that only ends what was
// started before.
func (o Origin) IsGone() bool {
	return o.Maker == Generator && o.Source == "" && o.User == "" && o.Current()
}

// UnitText returns the text of a unit file. It counts only if the unit has no other one:
// without a file, systemd would not read the drop-in.
func (g *Gone) UnitText() []byte {
	text := []byte(g.Origin.String() + "\n\n[Unit]\n")
	text = appendSetting(text, "Description", unitfile.Clip(g.Unit)+", whose file is gone")
	text = append(text, "\n[Service]\nType=oneshot\n"...)
	// As long as podman-stop(1) gives a container.
	text = appendSetting(text, "TimeoutStopSec", "10s")
	return appendSetting(text, "ExecStart", refuse(unitfile.QuoteArgument(g.Unit), g.programs, goneReason))
}

// WriteUnit writes the unit file into dir, a directory of unit files in which nobody
// else writes.
func (g *Gone) WriteUnit(dir string) error {
	return writeWhole(filepath.Join(dir, g.Unit), [][]byte{g.UnitText()})
}
