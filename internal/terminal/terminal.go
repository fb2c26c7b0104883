// Package terminal writes for people: tables and lines that fit a terminal's
// width, and colour where it is wanted. Text that somebody else wrote must be
// clean, see package printable.
package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/text/width"

	"oci-mainpid-hook/internal/printable"
)

// defaultWidth is the width of output that goes to no terminal.
const defaultWidth = 80

// Style is how a piece of text stands out.
type Style int

// The styles. Words say what a style means, too: colour is never the only
// difference.
const (
	Plain Style = iota
	Good
	Warn
	Bad
	Faint
	Strong
)

// sgr are the parameters of Select Graphic Rendition, console_codes(4).
var sgr = map[Style]string{Good: "32", Warn: "33", Bad: "1;31", Faint: "2", Strong: "1"}

// Output writes for people.
type Output struct {
	io.Writer
	// Width is the number of columns.
	Width int
	// Terminal says that a person is watching.
	Terminal bool
	// Colour says that Paint does something.
	Colour bool
	// Unicode says that the reader can show more than ASCII.
	Unicode bool
}

// New returns an Output for w. Where that is a terminal it has the terminal's
// width, and colour unless NO_COLOR (https://no-color.org) is set or TERM is
// dumb; anything else is 80 columns wide and plain.
func New(w io.Writer) *Output {
	o := &Output{Writer: w, Width: defaultWidth, Unicode: unicodeLocale(os.Getenv)}
	f, ok := w.(*os.File)
	if !ok {
		return o
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return o
	}
	o.Terminal = true
	o.Colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	o.Resize()
	return o
}

// Resize asks the terminal for its width again, which may change at any time
// (SIGWINCH).
func (o *Output) Resize() {
	if f, ok := o.Writer.(*os.File); ok && o.Terminal {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			o.Width = max(int(size.Col), 40)
		}
	}
}

// unicodeLocale reports whether the locale's character set is UTF-8, locale(7).
func unicodeLocale(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := strings.ToLower(getenv(name)); value != "" {
			return strings.Contains(value, "utf-8") || strings.Contains(value, "utf8")
		}
	}
	return false
}

// Paint returns text, which must be clean, in a style.
func (o *Output) Paint(s Style, text string) string {
	code := sgr[s]
	if !o.Colour || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[m"
}

// Printf writes text that is clean already.
func (o *Output) Printf(format string, args ...any) { fmt.Fprintf(o.Writer, format, args...) }

// Clean is printable.Clean: text that somebody else wrote goes through it before
// it is shown.
func Clean(text string) string { return printable.Clean(text) }

// columns returns how many columns of a terminal a rune of clean text takes: 2 if
// it is wide, as Chinese characters and emoji are, else 1. Runes that take none,
// or join with others, are not in clean text.
func columns(r rune) int {
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// Columns returns how many columns of a terminal clean text takes.
func Columns(text string) int {
	n := 0
	for _, r := range text {
		n += columns(r)
	}
	return n
}

// head returns the bytes of the longest beginning of text that fits.
func head(text string, most int) int {
	for i, r := range text {
		if most -= columns(r); most < 0 {
			return i
		}
	}
	return len(text)
}

// Fit returns clean text in at most so many columns, with a ~ where it is cut.
func Fit(text string, most int) string {
	if Columns(text) <= most {
		return text
	}
	if most <= 0 {
		return ""
	}
	return text[:head(text, most-1)] + "~"
}

// Pad returns clean text in exactly so many columns.
func Pad(text string, exactly int) string {
	text = Fit(text, exactly)
	return text + strings.Repeat(" ", max(exactly-Columns(text), 0))
}

// PadLeft is Pad for numbers.
func PadLeft(text string, exactly int) string {
	text = Fit(text, exactly)
	return strings.Repeat(" ", max(exactly-Columns(text), 0)) + text
}

// Wrap breaks clean text into lines of at most so many columns, between words
// where there are several.
func Wrap(text string, most int) []string {
	var lines []string
	line := strings.TrimSpace(text)
	for Columns(line) > most {
		fits := max(head(line, most), len(string([]rune(line)[:1]))) // a wide rune in one column
		at := fits
		if line[at] != ' ' {
			if space := strings.LastIndexByte(line[:at], ' '); space > 0 {
				at = space
			}
		}
		lines = append(lines, strings.TrimRight(line[:at], " "))
		line = strings.TrimLeft(line[at:], " ")
	}
	return append(lines, line)
}

// Quote returns a word as a POSIX shell reads it back, for commands that are
// shown to be typed.
func Quote(word string) string {
	plain := word != ""
	for i := 0; i < len(word); i++ {
		c := word[i]
		plain = plain && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("@%_+=:,./-", c) >= 0)
	}
	if plain {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
