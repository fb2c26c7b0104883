// Package printable makes text that somebody else wrote safe to show: on a
// terminal and in a log. Only the standard library is imported, because
// the programs on the path of a start use it.
package printable

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Max is the number of bytes of what Clean returns at most.
const Max = 4096

// Clean returns text on one line, in valid UTF-8, in at most Max bytes, and with
// nothing in it that a terminal acts on: control characters, and characters that
// change the direction of writing, join with their neighbours or cannot be seen,
// become escape sequences such as \x1b. Clean text stays as it is.
func Clean(text string) string { return Clip(text, Max) }

// Lines returns the lines of an error or another text, each of them clean. Where
// there are more than 100 lines, the last one says how many are left out.
func Lines(text string) []string {
	const most = 100
	text = strings.TrimSuffix(text, "\n")
	var lines []string
	for len(lines) < most {
		line, rest, more := strings.Cut(text, "\n")
		lines = append(lines, Clean(line))
		if !more {
			return lines
		}
		text = rest
	}
	return append(lines, fmt.Sprintf("... and %s more lines", Count(strings.Count(text, "\n")+1)))
}

// suffixRoom is more than the longest "... and N more bytes" has.
const suffixRoom = 48

// Clip is Clean with another bound, which must be 64 bytes or more.
func Clip(text string, most int) string {
	if len(text) <= most && isPlain(text) {
		return text
	}
	var b strings.Builder
	written, read := 0, 0 // where the result ends, and what it is of, if it is cut
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		piece := text[i : i+n]
		switch {
		case r == utf8.RuneError && n == 1, r < ' ' && r != '\t' && r != '\n', r == 0x7f:
			piece = fmt.Sprintf(`\x%02x`, text[i])
		case r == '\t' || r == '\n' || r == '\u00a0':
			piece = " "
		case !Safe(r) && r > 0xffff:
			piece = fmt.Sprintf(`\U%08x`, r)
		case !Safe(r):
			piece = fmt.Sprintf(`\u%04x`, r)
		}
		if b.Len()+len(piece) > most {
			return b.String()[:written] + "... and " + Count(len(text)-read) + " more bytes"
		}
		b.WriteString(piece)
		if i += n; b.Len() <= most-suffixRoom {
			written, read = b.Len(), i
		}
	}
	return b.String()
}

func isPlain(text string) bool {
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' || text[i] >= 0x7f {
			return false
		}
	}
	return true
}

// Safe reports whether a rune may be shown: it is printable, and has columns of
// its own on a terminal.
func Safe(r rune) bool {
	return unicode.IsPrint(r) && !unicode.In(r, unicode.Mn, unicode.Me, // they pile up on the rune before
		unicode.Other_Default_Ignorable_Code_Point, // such as U+3164, HANGUL FILLER
		joining)
}

// joining are the other runes that terminals may join with the rune before.
var joining = &unicode.RangeTable{
	R16: []unicode.Range16{{Lo: 0x1160, Hi: 0x11ff, Stride: 1}, {Lo: 0x2800, Hi: 0x2800, Stride: 1}, {Lo: 0xd7b0, Hi: 0xd7ff, Stride: 1}}, // Hangul vowels and tails; BRAILLE PATTERN BLANK
	R32: []unicode.Range32{{Lo: 0x1f1e6, Hi: 0x1f1ff, Stride: 1}, {Lo: 0x1f3fb, Hi: 0x1f3ff, Stride: 1}},                                  // letters of flags; colours of skin
}

// Count returns n as people write it: 4,312.
func Count(n int) string {
	digits := strconv.Itoa(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
