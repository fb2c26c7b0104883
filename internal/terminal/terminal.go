// Package terminal is what output for people needs: text without control
// characters, lines of a known width, colour where it is wanted.
package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// defaultWidth is the width of output that goes to no terminal.
const defaultWidth = 80

// Style is how a piece of text stands out.
type Style int

// The styles. What they mean is said in words as well: colour is never the only
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

// Resize takes over the terminal's width, which changes with SIGWINCH.
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

// Printf writes what is clean already.
func (o *Output) Printf(format string, args ...any) { fmt.Fprintf(o.Writer, format, args...) }

// Clean returns text on one line with nothing in it that a terminal acts on:
// control characters, and those that change the direction of writing or cannot
// be seen, become escape sequences such as \x1b. Text that others wrote goes
// through it before it is shown.
func Clean(text string) string {
	clean := true
	for i := 0; i < len(text) && clean; i++ {
		clean = text[i] >= ' ' && text[i] < 0x7f
	}
	if clean {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && n == 1, r < ' ' && r != '\t' && r != '\n', r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case r == '\t' || r == '\n' || r == '\u00a0':
			b.WriteByte(' ')
		case unicode.Is(unicode.Mn, r) || !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(text[i : i+n])
		}
		i += n
	}
	return b.String()
}

// Fit returns clean text in at most width columns, with a ~ where it is cut. A
// rune counts as one column.
func Fit(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	if width <= 0 {
		return ""
	}
	return string([]rune(text)[:width-1]) + "~"
}

// Pad returns clean text in exactly width columns.
func Pad(text string, width int) string {
	text = Fit(text, width)
	return text + strings.Repeat(" ", width-utf8.RuneCountInString(text))
}

// PadLeft is Pad for numbers.
func PadLeft(text string, width int) string {
	text = Fit(text, width)
	return strings.Repeat(" ", width-utf8.RuneCountInString(text)) + text
}

// Wrap breaks clean text into lines of at most width columns, between words
// where there are any.
func Wrap(text string, width int) []string {
	var lines []string
	line := []rune(strings.TrimSpace(text))
	for len(line) > width {
		at := width
		for at > 0 && line[at] != ' ' {
			at--
		}
		rest := at + 1
		if at == 0 { // a word that is too long
			at, rest = width, width
		}
		lines = append(lines, strings.TrimRight(string(line[:at]), " "))
		line = []rune(strings.TrimLeft(string(line[rest:]), " "))
	}
	return append(lines, string(line))
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
