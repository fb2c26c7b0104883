package terminal

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestCleanLeavesNothingThatATerminalActsOn(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"plain":               {"web.service", "web.service"},
		"other letters":       {"Überprüfung “x”", "Überprüfung “x”"},
		"colour":              {"\x1b[31mred", `\x1b[31mred`},
		"title, with a bell":  {"\x1b]0;x\a", `\x1b]0;x\x07`},
		"one byte CSI":        {"\u009b31m", `\u009b31m`},
		"the same, not UTF-8": {"\x9b31m", `\x9b31m`},
		"lines":               {"a\nb\tc\r", `a b c\x0d`},
		"right to left":       {"a\u202eb", `a\u202eb`},
		"zero width":          {"a\u200bb", `a\u200bb`},
		"piled up marks":      {"a\u0300", `a\u0300`},
		"delete":              {"a\x7f", `a\x7f`},
	} {
		if got := Clean(c.in); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestWrap(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"short":         {"a b", []string{"a b"}},
		"words":         {"aaaa bbbb cccc dddd", []string{"aaaa bbbb", "cccc dddd"}},
		"a long word":   {"aaaaaaaaaaaaaaaaaaaaaaa b", []string{"aaaaaaaaaa", "aaaaaaaaaa", "aaa b"}},
		"exactly":       {"aaaa bbbbb", []string{"aaaa bbbbb"}},
		"nothing":       {"", []string{""}},
		"runes, not it": {"ääääääääää ö", []string{"ääääääääää", "ö"}},
	} {
		if got := Wrap(c.in, 10); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"web.service": "web.service", `a\x2db`: `'a\x2db'`, "it's": `'it'\''s'`, "": "''", "$(id)": "'$(id)'",
	} {
		if got := Quote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestTableFitsItsWidth(t *testing.T) {
	table := Table{Columns: []Column{{Title: "UNIT", Least: 8}, {Title: "PID", Right: true}, {Title: "NAME", Least: 4}}}
	table.Add(Cell{Text: "a-service-with-a-long-name"}, Cell{Text: "1"}, Cell{Text: "x"})
	table.Add(Cell{Text: "b"}, Cell{Text: "4194304"}, Cell{Text: "a-container-of-a-long-name"})
	table.Note(Cell{Text: "what is wrong with it, in rather more words than fit"})
	var b bytes.Buffer
	table.Write(&Output{Writer: &b, Width: 40})
	want := `UNIT                PID NAME
a-service-with~       1 x
b               4194304 a-container-of-~
    what is wrong with it, in rather
    more words than fit
`
	if b.String() != want {
		t.Errorf("got:\n%s", b.String())
	}
}

func TestColourIsNeverOutsideATerminal(t *testing.T) {
	var b bytes.Buffer
	o := New(&b)
	if o.Colour || o.Terminal || o.Width != 80 {
		t.Errorf("%+v", o)
	}
	o.Colour = true
	if got := o.Paint(Bad, "x"); got != "\x1b[1;31mx\x1b[m" {
		t.Errorf("%q", got)
	}
}

func TestUnicodeLocale(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		want bool
	}{
		"none":           {nil, false},
		"LANG":           {map[string]string{"LANG": "de_DE.UTF-8"}, true},
		"C.utf8":         {map[string]string{"LANG": "C.utf8"}, true},
		"LC_ALL is king": {map[string]string{"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, false},
	} {
		if got := unicodeLocale(func(n string) string { return c.env[n] }); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if strings.Contains(Fit("äöü", 2), "ö") {
		t.Error("Fit counts bytes")
	}
}
