// Package diagnosis finds out whether a machine and its units can run containers as a
// user, and what to type if not.
//
// Reader gathers the facts first. Then Machine.Points and UnitFacts.Points judge
// them. These two look at the facts only.
package diagnosis

import (
	"slices"
	"strings"

	"oci-mainpid-hook/internal/printable"
	"oci-mainpid-hook/internal/terminal"
)

// Level is how bad something is.
type Level string

// The levels.
const (
	OK   Level = "ok"
	Warn Level = "warn" // works, but not as one may think
	Fail Level = "fail" // does not work
)

// Point is one thing that was checked.
type Point struct {
	// Object is the unit's name, empty for the machine.
	Object string `json:"unit,omitempty"`
	Level  Level  `json:"level"`
	What   string `json:"what"`
	Found  string `json:"found"`
	// Fix is what to type or to do. It is empty if Level is OK.
	Fix string `json:"fix,omitempty"`
}

// points collects the points of one object.
type points struct {
	object string
	list   []Point
}

func (p *points) ok(what, found string)        { p.add(OK, what, found, "") }
func (p *points) warn(what, found, fix string) { p.add(Warn, what, found, fix) }
func (p *points) fail(what, found, fix string) { p.add(Fail, what, found, fix) }

func (p *points) add(level Level, what, found, fix string) {
	p.list = append(p.list, Point{Object: p.object, Level: level, What: what, Found: printable.Clean(found), Fix: printable.Clean(fix)})
}

// NoUnits is the point for a machine that has no unit of ours.
var NoUnits = Point{Level: OK, What: "units", Found: "no unit runs its container as a user yet, see: oci-mainpid generate --help"}

// Failures returns how many of the points have the levels Fail and Warn.
func Failures(list []Point) (failures, warnings int) {
	for _, p := range list {
		switch p.Level {
		case Fail:
			failures++
		case Warn:
			warnings++
		}
	}
	return failures, warnings
}

// Columns of the text.
const (
	levelColumn = 4
	whatColumn  = 15
	indent      = 2 + levelColumn + 1 + whatColumn + 1
)

var levels = map[Level]struct {
	word  string
	style terminal.Style
}{
	OK:   {"ok", terminal.Good},
	Warn: {"warn", terminal.Warn},
	Fail: {"FAIL", terminal.Bad},
}

// Write writes the points for people, object by object. It only counts the points with
// the level OK, and a point that an earlier object has, too, refers to that object. With
// all it writes every point in full.
func Write(o *terminal.Output, list []Point, all bool) {
	var objects []string
	for _, p := range list {
		if !slices.Contains(objects, p.Object) {
			objects = append(objects, p.Object)
		}
	}
	said := map[Point]string{} // where, by the point without its object
	for _, object := range objects {
		title := object
		if title == "" {
			title = "this machine"
		}
		var shown []Point
		good := 0
		for _, p := range list {
			switch {
			case p.Object != object:
			case p.Level == OK && !all:
				good++
			default:
				shown = append(shown, p)
			}
		}
		o.Printf("%s\n", o.Paint(terminal.Strong, terminal.Clean(title)))
		if good > 0 {
			writeLine(o, OK, "", plural(good, "point", "points")+", see --verbose")
		}
		for _, p := range shown {
			key := p
			key.Object = ""
			if earlier := said[key]; !all && earlier != "" {
				writeLine(o, p.Level, p.What, "as of "+terminal.Clean(earlier))
				continue
			}
			said[key] = title
			p.write(o)
		}
	}
}

func (p Point) write(o *terminal.Output) {
	lines := terminal.Wrap(terminal.Clean(p.Found), max(o.Width-indent, 20))
	writeLine(o, p.Level, p.What, lines[0])
	for _, line := range lines[1:] {
		o.Printf("%s%s\n", strings.Repeat(" ", indent), line)
	}
	if p.Fix == "" {
		return
	}
	for i, line := range terminal.Wrap(terminal.Clean(p.Fix), max(o.Width-indent-3, 20)) {
		arrow := "   "
		if i == 0 {
			arrow = "-> "
		}
		o.Printf("%s%s%s\n", strings.Repeat(" ", indent), arrow, line)
	}
}

func writeLine(o *terminal.Output, level Level, what, found string) {
	l := levels[level]
	o.Printf("  %s %s %s\n", o.Paint(l.style, terminal.Pad(l.word, levelColumn)), terminal.Pad(what, whatColumn), found)
}
