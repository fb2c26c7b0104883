package story

import (
	"fmt"
	"math"
	"strings"
	"time"

	"oci-mainpid-hook/internal/terminal"
)

// Measures of the drawing, in pixels.
const (
	svgWidth  = 960
	svgLeft   = 220
	svgRight  = 110
	svgRow    = 22
	svgTop    = 84
	svgMargin = 12
	// Widths, in characters of the fonts below.
	svgTitle = 88
	svgName  = 28
)

// svgStyle has the colours for light and dark pages.
const svgStyle = `<style>
svg { font-family: sans-serif; font-size: 13px; fill: #1f2328 }
.page { fill: #fff } .title { font-size: 16px; font-weight: bold } .dim { fill: #59636e } .tick { font-size: 11px }
.grid { stroke: #d0d7de } .step { fill: #0969da } .none { fill: #8c959f } .took { fill: #1a7f37 } .failed { fill: #cf222e }
@media (prefers-color-scheme: dark) {
svg { fill: #e6edf3 }
.page { fill: #0d1117 } .dim { fill: #9198a1 } .grid { stroke: #3d444d } .step { fill: #4493f8 } .none { fill: #7d8590 } .took { fill: #3fb950 } .failed { fill: #f85149 }
}
</style>
`

var svgClasses = map[Verdict]string{Took: "took", Refused: "failed", Failed: "failed", None: "none"}

// SVG returns the timeline as a drawing, with steps as bars and messages as marks. A
// mark shows its text when the pointer is on it.
func (s Story) SVG() []byte {
	var b strings.Builder
	steps := svgTop + svgRow*len(s.Steps)
	height := steps + 40
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d">`+"\n", svgWidth, height)
	b.WriteString(svgStyle)
	fmt.Fprintf(&b, `<rect class="page" width="%d" height="%d"/>`+"\n", svgWidth, height)
	title := fmt.Sprintf("%s: %s, %s", s.Unit, s.Outcome, duration(s.Took))
	fmt.Fprintf(&b, `<title>%s</title>`+"\n", escape(title))
	text(&b, svgMargin, 24, "start", "title", terminal.Fit(title, svgTitle))
	text(&b, svgMargin, 44, "start", "dim", s.Began.Format("2006-01-02 15:04:05 MST"))
	whole := max(s.Took, time.Microsecond)
	x := func(at time.Duration) float64 {
		at = max(0, min(at, whole))
		return svgLeft + float64(at)/float64(whole)*(svgWidth-svgLeft-svgRight)
	}
	for at, step := time.Duration(0), gridStep(whole); at <= whole; at += step {
		fmt.Fprintf(&b, `<line class="grid" x1="%.1f" y1="%d" x2="%.1[1]f" y2="%[3]d"/>`+"\n", x(at), svgTop-6, steps+6)
		text(&b, x(at), float64(svgTop-10), "middle", "dim tick", duration(at))
	}
	for i, step := range s.Steps {
		y := svgTop + svgRow*i
		class := "step"
		if step.Failed {
			class = svgClasses[Failed]
		}
		text(&b, svgLeft-8, float64(y+15), "end", "", terminal.Fit(step.Name, svgName))
		fmt.Fprintf(&b, `<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d" rx="2"><title>%s</title></rect>`+"\n",
			class, x(step.From), y+3, max(x(step.To)-x(step.From), 2), svgRow-6, escape(step.Name))
		text(&b, svgWidth-svgRight+8, float64(y+15), "start", "", duration(step.To-step.From))
	}
	// Verdicts last, so that nothing covers them.
	for _, plain := range []bool{true, false} {
		for _, e := range s.Events {
			if e.At <= s.Took+grace && plain == (e.Verdict == None) {
				fmt.Fprintf(&b, `<circle class="%s" cx="%.1f" cy="%d" r="4"><title>%s</title></circle>`+"\n",
					svgClasses[e.Verdict], x(e.At), steps+18, escape(fmt.Sprintf("+%s %s: %.500s", duration(e.At), e.Source, e.Text)))
			}
		}
	}
	text(&b, svgLeft-8, float64(steps+22), "end", "dim", "messages")
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// gridStep returns a round time for the distance of grid lines: 1, 2 or 5 times a power
// of ten, so that the whole has four to ten of them.
func gridStep(whole time.Duration) time.Duration {
	power := time.Duration(math.Pow(10, math.Floor(math.Log10(float64(whole)/4))))
	for _, n := range []time.Duration{5, 2} {
		if n*power*4 <= whole {
			return n * power
		}
	}
	return max(power, 1)
}

func text(b *strings.Builder, x, y float64, anchor, class, s string) {
	fmt.Fprintf(b, `<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", class, x, y, anchor, escape(s))
}

// escape quotes text for XML, which has no unprintable characters.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(terminal.Clean(s))
}
