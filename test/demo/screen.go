package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A layout says what becomes of lines that are wider than the screen.
type layout int

const (
	wrapped layout = iota
	cut
)

// A screen lays out what the demonstration says.
type screen struct {
	w       io.Writer
	width   int
	colours bool
	gap     bool // the last line is blank
}

func newScreen(f *os.File) *screen {
	s := &screen{w: f, width: 96}
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
		if size.Col > 0 {
			s.width = min(max(int(size.Col), 60), 100)
		}
		s.colours = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return s
}

// SGR parameters (console_codes(4)).
const (
	bold  = "1"
	dim   = "2"
	green = "32"
	cyan  = "36"
)

func (s *screen) paint(colour, text string) string {
	if !s.colours {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (s *screen) line(text string) {
	fmt.Fprintln(s.w, text)
	s.gap = false
}

// blank separates, once.
func (s *screen) blank() {
	if !s.gap {
		s.line("")
		s.gap = true
	}
}

func (s *screen) title(text string) {
	s.blank()
	s.line(s.paint(bold, text))
	s.line(s.paint(dim, strings.Repeat("─", utf8.RuneCountInString(text))))
}

// say explains what follows.
func (s *screen) say(text string) {
	s.blank()
	for _, line := range wrap(text, s.width, "") {
		s.line(line)
	}
	s.blank()
}

// command shows a command as one types it.
func (s *screen) command(text string) {
	lines := wrap("$ "+text, s.width-2, "    ")
	s.line(s.paint(cyan, strings.Join(lines, " \\\n")))
}

// output shows what a command said, indented.
func (s *screen) output(text string, layout layout) {
	const indent = "  "
	width := s.width - len(indent)
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		lines := []string{line}
		switch {
		case utf8.RuneCountInString(line) <= width:
		case layout == cut:
			lines = []string{string([]rune(line)[:width-1]) + "…"}
		default:
			lines = wrap(line, width, "    ")
		}
		for _, l := range lines {
			s.line(strings.TrimRight(indent+l, " "))
		}
	}
}

// checked shows a claim that was found to hold.
func (s *screen) checked(text string) {
	for i, line := range wrap(text, s.width-2, "") {
		mark := "✓ "
		if i > 0 {
			mark = "  "
		}
		s.line(s.paint(green, mark+line))
	}
	s.blank()
}

// wrap breaks a line at blanks where it is wider than width; the lines from the
// second on begin with indent. A word that is too wide stays whole.
func wrap(text string, width int, indent string) []string {
	var lines []string
	line := ""
	for i, word := range strings.Split(text, " ") {
		switch {
		case i == 0:
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = indent + word
		}
	}
	return append(lines, line)
}

// progress returns a writer for the lines of progress while the machine is
// built and booted.
func (s *screen) progress() io.Writer { return &progress{screen: s} }

type progress struct {
	screen *screen
	rest   []byte
}

func (p *progress) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		line, rest, found := bytes.Cut(p.rest, []byte("\n"))
		if !found {
			return len(b), nil
		}
		p.rest = rest
		p.screen.output(string(line), cut)
	}
}
