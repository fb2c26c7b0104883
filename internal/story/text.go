package story

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/internal/terminal"
)

// Columns of the text.
const (
	timeColumn   = 9
	sourceColumn = 14
	indent       = timeColumn + 2 + sourceColumn + 2
	nameColumn   = 24

	// maxText bounds one event's text, and maxLines how many lines it gets.
	maxText  = 1000
	maxLines = 8
)

var styles = map[Verdict]terminal.Style{Took: terminal.Good, Refused: terminal.Bad, Failed: terminal.Bad}

// Write writes the story for people.
func (s Story) Write(o *terminal.Output) {
	s.header(o)
	over := s.Took + grace
	for i, e := range s.Events {
		if s.Outcome != Starting && e.At > over && (i == 0 || s.Events[i-1].At <= over) {
			o.Printf("%s\n", o.Paint(terminal.Faint, "After the start:"))
		}
		e.write(o)
	}
	for _, source := range slices.Sorted(maps.Keys(s.LeftOut)) {
		s.warn(o, fmt.Sprintf("%d more messages are left out here (%s)", s.LeftOut[source], source))
	}
	for _, missing := range s.Missing {
		s.warn(o, missing)
	}
	if len(s.LeftOut)+len(s.Missing) > 0 {
		s.warn(o, "All messages: journalctl -u "+terminal.Quote(terminal.Clean(s.Unit)))
	}
	if len(s.Steps) > 0 && s.Took > 0 {
		o.Printf("\n")
		s.timeline(o)
	}
	if s.LastReload != nil {
		s.LastReload.write(o)
	}
	s.ending(o)
}

func (s Story) warn(o *terminal.Output, text string) { paragraph(o, terminal.Warn, clip(text)) }

// ending writes what the unit does now, why, and the container's last lines.
func (s Story) ending(o *terminal.Output) {
	if s.Now != "" {
		o.Printf("\n")
		paragraph(o, terminal.Plain, "Now: "+clip(s.Now)+".")
	}
	if s.Reason != "" {
		title := "Odd, though: "
		if s.failed {
			title = "Why it failed: "
		}
		o.Printf("\n")
		paragraph(o, terminal.Strong, title+clip(s.Reason))
		if s.Remedy != "" {
			paragraph(o, terminal.Plain, "-> "+clip(s.Remedy))
		}
	}
	if len(s.Output) == 0 {
		return
	}
	title := "The last lines that the container wrote:"
	if s.Exit != "" {
		title = "The container " + s.Exit + ". The last lines that it wrote:"
	}
	o.Printf("\n")
	paragraph(o, terminal.Plain, clip(title))
	for _, line := range s.Output {
		for _, part := range firstLines(terminal.Wrap(clip(line), max(o.Width-4, 20))) {
			o.Printf("    %s\n", part)
		}
	}
}

func (s Story) header(o *terminal.Output) {
	outcome, style := "is starting, since "+duration(s.Took), terminal.Warn
	switch s.Outcome {
	case Started:
		outcome, style = "started in "+duration(s.Took), terminal.Good
	case StartFailed:
		outcome, style = "failed to start", terminal.Bad
		if s.Took > 0 {
			outcome += ", after " + duration(s.Took)
		}
	}
	line := o.Paint(terminal.Strong, terminal.Clean(s.Unit)) + ": " + o.Paint(style, outcome)
	if s.User != "" {
		line += ", as " + terminal.Clean(s.User)
	}
	if s.Cgroup != "" {
		line += ", Cgroup=" + s.Cgroup
	}
	when := s.Began.Format("Mon 2006-01-02 15:04:05 MST")
	if s.InvocationID != "" {
		when += ", invocation " + terminal.Clean(s.InvocationID)
	}
	o.Printf("%s\n%s\n\n", line, o.Paint(terminal.Faint, when))
}

func (e Event) write(o *terminal.Output) {
	text := clip(e.Text)
	switch {
	case e.Verdict != None:
		text = string(e.Verdict) + ": " + text
	case looksLikeVerdict(text):
		text = strconv.Quote(text)
	}
	if e.Again > 0 {
		text += fmt.Sprintf(" (%d times more, until +%s)", e.Again, duration(e.Last))
	}
	lines := firstLines(terminal.Wrap(text, max(o.Width-indent, 20)))
	style := styles[e.Verdict]
	if e.Derived && e.Verdict == None {
		style = terminal.Faint
	}
	for i, line := range lines {
		prefix := strings.Repeat(" ", indent)
		if i == 0 {
			prefix = terminal.PadLeft("+"+duration(e.At), timeColumn) + "  " + terminal.Pad(terminal.Clean(e.Source), sourceColumn) + "  "
		}
		o.Printf("%s%s\n", prefix, o.Paint(style, line))
	}
	if e.Meaning != "" {
		for i, line := range terminal.Wrap(e.Meaning, max(o.Width-indent-3, 20)) {
			arrow := "   "
			if i == 0 {
				arrow = "-> "
			}
			o.Printf("%s%s%s\n", strings.Repeat(" ", indent), arrow, line)
		}
	}
}

// firstLines bounds how many lines one message gets.
func firstLines(lines []string) []string {
	if len(lines) > maxLines {
		return append(lines[:maxLines-1], "...")
	}
	return lines
}

// looksLikeVerdict reports whether a user's text begins like a line with a verdict.
func looksLikeVerdict(text string) bool {
	for verdict := range styles {
		if strings.HasPrefix(text, string(verdict)+": ") {
			return true
		}
	}
	return false
}

// timeline draws the steps, one in each line.
func (s Story) timeline(o *terminal.Output) {
	column := 0
	for _, step := range s.Steps {
		column = max(column, len(step.took()))
	}
	width := max(o.Width-nameColumn-column-4, 10)
	scale := terminal.Pad("0", width-len(duration(s.Took))) + duration(s.Took)
	o.Printf("%s  %s\n", strings.Repeat(" ", nameColumn), o.Paint(terminal.Faint, scale))
	full, edge := "#", "|"
	if o.Unicode {
		full, edge = "█", "▏"
	}
	for _, step := range s.Steps {
		from, to := position(step.From, s.Took, width), position(step.To, s.Took, width)
		bar := strings.Repeat(" ", min(from, width-1))
		style := terminal.Plain
		if step.Failed {
			style = terminal.Bad
		}
		if to > from {
			bar += o.Paint(style, strings.Repeat(full, to-from))
		} else {
			bar += o.Paint(style, edge)
			to = min(from, width-1) + 1
		}
		o.Printf("%s  %s%s  %s\n", terminal.Pad(terminal.Clean(step.Name), nameColumn), bar, strings.Repeat(" ", width-to), step.took())
	}
}

func (s Step) took() string {
	if s.Failed {
		return duration(s.To-s.From) + " failed"
	}
	return duration(s.To - s.From)
}

// position returns the column of a point in time, on a line that stands for whole.
func position(at, whole time.Duration, width int) int {
	return max(0, min(width, int((at*time.Duration(width)+whole/2)/whole)))
}

// clip bounds and cleans a user's text.
func clip(text string) string { return terminal.Clean(fmt.Sprintf("%.*s", maxText, text)) }

func paragraph(o *terminal.Output, style terminal.Style, text string) {
	for _, line := range terminal.Wrap(text, o.Width) {
		o.Printf("%s\n", o.Paint(style, line))
	}
}

// duration returns a duration in a few digits.
func duration(d time.Duration) string {
	switch {
	case d < 50*time.Microsecond:
		return "0 ms"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 100*time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
