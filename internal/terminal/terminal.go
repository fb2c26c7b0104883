// Package terminal writes for people: tables and lines that fit a terminal's width,
// and colours. Text of a user's must be cleaned first, see package printable.
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

// defaultWidth is the width, in columns, of output that goes to no terminal.
const defaultWidth = 80

// Style is how a piece of text stands out.
type Style int

// The styles. A word must say the same as the style: colour is never the only
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
	// Terminal says that the output goes to a terminal.
	Terminal bool
	// Colour says that Paint adds colours.
	Colour bool
	// Unicode says that the reader can show more than ASCII.
	Unicode bool
}

// New returns an Output for w. If w is a terminal, the Output has the terminal's width.
// It has colours unless NO_COLOR (https://no-color.org) is set or TERM is dumb. For
// anything else it is 80 columns wide, without colours.
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

// Resize asks the terminal for its width again. The width may change at any time,
// which SIGWINCH tells.
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

// Printf writes text that must be clean.
func (o *Output) Printf(format string, args ...any) { fmt.Fprintf(o.Writer, format, args...) }

// Clean is printable.Clean. Text of a user's must go through it before it is shown.
func Clean(text string) string { return printable.Clean(text) }

// columns returns how many columns of a terminal a rune of clean text takes: 2 for a
// wide rune, such as a Chinese character or an emoji, else 1. Clean text has no runes
// that take no column or join with others.
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

// head returns how many bytes the longest beginning of text has that takes at most so
// many columns.
func head(text string, most int) int {
	for i, r := range text {
		if most -= columns(r); most < 0 {
			return i
		}
	}
	return len(text)
}

// Fit returns clean text in at most so many columns. If it is cut, it ends with a ~.
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

// PadLeft is Pad with the text at the right, for numbers.
func PadLeft(text string, exactly int) string {
	text = Fit(text, exactly)
	return strings.Repeat(" ", max(exactly-Columns(text), 0)) + text
}

// Wrap breaks clean text into lines of at most so many columns, between words if it
// can.
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

// Quote quotes a word for a POSIX shell, for commands that are shown to be typed.
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
