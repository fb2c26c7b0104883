package story

import (
	"fmt"
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
	svgTop    = 64
	svgMargin = 12
)

var svgColours = map[Verdict]string{Took: "#1a7f37", Refused: "#cf222e", Failed: "#cf222e", None: "#6e7781"}

// SVG returns the timeline as a drawing: the steps as bars, what was said as
// marks, with its text where the pointer is.
func (s Story) SVG() []byte {
	var b strings.Builder
	steps := svgTop + svgRow*len(s.Steps)
	height := steps + 40
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="13">`+"\n", svgWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", svgWidth, height)
	title := fmt.Sprintf("%s: %s, %s", s.Unit, s.Outcome, duration(s.Took))
	fmt.Fprintf(&b, `<title>%s</title>`+"\n", escape(title))
	text(&b, svgMargin, 24, "start", "#1f2328", `font-size="16" font-weight="bold"`, title)
	text(&b, svgMargin, 44, "start", "#6e7781", "", s.Began.Format("2006-01-02 15:04:05 MST"))
	whole := max(s.Took, time.Microsecond)
	x := func(at time.Duration) float64 {
		at = max(0, min(at, whole))
		return svgLeft + float64(at)/float64(whole)*(svgWidth-svgLeft-svgRight)
	}
	const lines = 4
	for i := range lines + 1 {
		at := whole * time.Duration(i) / lines
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1[1]f" y2="%[3]d" stroke="#d0d7de"/>`+"\n", x(at), svgTop-6, steps+6)
		text(&b, x(at), float64(svgTop-10), "middle", "#6e7781", `font-size="11"`, duration(at))
	}
	for i, step := range s.Steps {
		y := svgTop + svgRow*i
		colour := "#0969da"
		if step.Failed {
			colour = svgColours[Failed]
		}
		text(&b, svgLeft-8, float64(y+15), "end", "#1f2328", "", step.Name)
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" rx="2" fill="%s"/>`+"\n",
			x(step.From), y+3, max(x(step.To)-x(step.From), 2), svgRow-6, colour)
		text(&b, svgWidth-svgRight+8, float64(y+15), "start", "#1f2328", "", duration(step.To-step.From))
	}
	for _, e := range s.Events {
		fmt.Fprintf(&b, `<circle cx="%.1f" cy="%d" r="4" fill="%s"><title>%s</title></circle>`+"\n",
			x(e.At), steps+18, svgColours[e.Verdict], escape(fmt.Sprintf("+%s %s: %.500s", duration(e.At), e.Source, e.Text)))
	}
	text(&b, svgLeft-8, float64(steps+22), "end", "#6e7781", "", "messages")
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

func text(b *strings.Builder, x, y float64, anchor, colour, more, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" %s>%s</text>`+"\n", x, y, anchor, colour, more, escape(s))
}

// escape makes text harmless in XML: what is not printable is no character there.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(terminal.Clean(s))
}
