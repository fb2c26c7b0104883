package terminal

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestWrap(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"short":          {"a b", []string{"a b"}},
		"words":          {"aaaa bbbb cccc dddd", []string{"aaaa bbbb", "cccc dddd"}},
		"a long word":    {"aaaaaaaaaaaaaaaaaaaaaaa b", []string{"aaaaaaaaaa", "aaaaaaaaaa", "aaa b"}},
		"exactly":        {"aaaa bbbbb", []string{"aaaa bbbbb"}},
		"nothing":        {"", []string{""}},
		"no bytes":       {"ääääääääää ö", []string{"ääääääääää", "ö"}},
		"wide":           {"漢字漢字 漢字漢字", []string{"漢字漢字", "漢字漢字"}},
		"wide, one word": {"漢字漢字漢字x", []string{"漢字漢字漢", "字x"}},
		"half a column":  {"x漢字漢字漢", []string{"x漢字漢字", "漢"}},
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

func TestWideRunesKeepTheColumns(t *testing.T) {
	for name, text := range map[string]string{
		"ASCII": "a-container", "Chinese": "容器", "full width": "ａｂ", "an emoji": "🐳x", "German": "Behälter",
		"marks": "a\u0300\u0301", "a family": "👨\u200d👩\u200d👧", "a flag": "🇩🇪", "long": "容器容器容器容器容器",
	} {
		table := Table{Columns: []Column{{Title: "NAME", Least: 4}, {Title: "PID", Right: true}, {Title: "X"}}}
		table.Add(Cell{Text: Clean(text)}, Cell{Text: "12"}, Cell{Text: "|"})
		table.Add(Cell{Text: "db"}, Cell{Text: "4194304"}, Cell{Text: "|"})
		var b bytes.Buffer
		table.Write(&Output{Writer: &b, Width: 24})
		lines := strings.Split(b.String(), "\n")
		column := func(line string) int { return Columns(line[:strings.IndexByte(line, '|')]) }
		if column(lines[1]) != column(lines[2]) || Columns(lines[1]) > 24 {
			t.Errorf("%s:\n%s", name, b.String())
		}
	}
	for text, want := range map[string]string{"容器": "容~", "容x": "容x", "x容": "x容", "容器x": "容~", "xy容": "xy~", "🐳🐳": "🐳~"} {
		if got := Fit(text, 3); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
		if got := Pad(text, 3); Columns(got) != 3 || Columns(PadLeft(text, 3)) != 3 {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// FuzzWrap: whatever the text is, its lines fit and nothing but spaces is lost.
func FuzzWrap(f *testing.F) {
	f.Add("a 容器 🐳 b", uint8(4))
	f.Fuzz(func(t *testing.T, text string, most uint8) {
		text = Clean(text)
		width := max(int(most), 2)
		lines := Wrap(text, width)
		for _, line := range lines {
			if Columns(line) > width {
				t.Errorf("%d columns of %d: %q", Columns(line), width, line)
			}
		}
		if got, want := strings.ReplaceAll(strings.Join(lines, ""), " ", ""), strings.ReplaceAll(text, " ", ""); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if got := Pad(text, width); Columns(got) != width {
			t.Errorf("%d columns, not %d: %q", Columns(got), width, got)
		}
	})
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
