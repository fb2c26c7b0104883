package printable

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestCleanLeavesNothingThatATerminalActsOn(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"plain":                  {"web.service", "web.service"},
		"other letters":          {"Überprüfung “x”", "Überprüfung “x”"},
		"wide letters":           {"漢字", "漢字"},
		"colour":                 {"\x1b[31mred", `\x1b[31mred`},
		"title, with a bell":     {"\x1b]0;x\a", `\x1b]0;x\x07`},
		"one byte CSI":           {"\u009b31m", `\u009b31m`},
		"the same, not UTF-8":    {"\x9b31m", `\x9b31m`},
		"next line of C1":        {"a\u0085b", `a\u0085b`},
		"lines":                  {"a\nb\tc\r", `a b c\x0d`},
		"right to left":          {"a\u202eb", `a\u202eb`},
		"an isolate":             {"a\u2066b\u2069", `a\u2066b\u2069`},
		"a mark of direction":    {"\u200e\u200f\u061c", `\u200e\u200f\u061c`},
		"zero width":             {"a\u200bb\ufeff", `a\u200bb\ufeff`},
		"separators":             {"a\u2028b\u2029", `a\u2028b\u2029`},
		"piled up marks":         {"a\u0300", `a\u0300`},
		"an enclosing mark":      {"a\u20dd", `a\u20dd`},
		"delete":                 {"a\x7f", `a\x7f`},
		"half of a rune":         {"a\xe2\x82", `a\xe2\x82`},
		"a surrogate":            {"\xed\xa0\x80", `\xed\xa0\x80`},
		"a tag":                  {"\U000e0041", `\U000e0041`},
		"a filler":               {"\u3164", `\u3164`},
		"a family":               {"👨\u200d👩", `👨\u200d👩`},
		"a flag":                 {"🇩🇪", `\U0001f1e9\U0001f1ea`},
		"a variation":            {"☁\ufe0f", `☁\ufe0f`},
		"Hangul of three pieces": {"\u1112\u1161\u11ab", "\u1112" + `\u1161\u11ab`},
		"what looks like it":     {`\x1b`, `\x1b`},
	} {
		if got := Clean(c.in); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestCleanIsBounded(t *testing.T) {
	const most = 100
	for name, c := range map[string]struct{ in, want string }{
		"just fits":    {strings.Repeat("x", most), strings.Repeat("x", most)},
		"one too many": {strings.Repeat("x", most+1), strings.Repeat("x", 52) + "... and 49 more bytes"},
		"large":        {strings.Repeat("x", 1<<20), strings.Repeat("x", 52) + "... and 1,048,524 more bytes"},
		"escapes":      {strings.Repeat("\x1b", 26), strings.Repeat(`\x1b`, 13) + "... and 13 more bytes"},
		"wide":         {strings.Repeat("漢", 34), strings.Repeat("漢", 17) + "... and 51 more bytes"},
	} {
		if got := Clip(c.in, most); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestLines(t *testing.T) {
	if got := Lines("a\n\x1b\n"); len(got) != 2 || got[1] != `\x1b` {
		t.Errorf("%q", got)
	}
	got := Lines(strings.Repeat("x\n", 4412))
	if len(got) != 101 || got[100] != "... and 4,312 more lines" {
		t.Errorf("%d lines, the last %q", len(got), got[len(got)-1])
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[31m\u202e\u009b\n\xff漢\U000e0041", uint16(64))
	f.Add(strings.Repeat("\u0300", 100), uint16(0))
	f.Fuzz(func(t *testing.T, text string, most16 uint16) {
		most := 64 + int(most16)
		got := Clip(text, most)
		if len(got) > most || !utf8.ValidString(got) {
			t.Errorf("%d bytes of %d, valid %v: %q", len(got), most, utf8.ValidString(got), got)
		}
		for _, r := range got {
			if unicode.In(r, unicode.C, unicode.Zl, unicode.Zp, unicode.Mn, unicode.Me, unicode.Bidi_Control) || !Safe(r) {
				t.Errorf("%U in %q", r, got)
			}
		}
		if again := Clip(got, most); again != got {
			t.Errorf("%q becomes %q", got, again)
		}
		for _, line := range Lines(text) {
			if Clean(line) != line {
				t.Errorf("%q is not clean", line)
			}
		}
	})
}
