package unitfile

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestSplitWords(t *testing.T) {
	tests := []struct {
		name, line string
		want       []string
	}{
		{"none", "  \t", nil},
		{"plain", "a  b\tc", []string{"a", "b", "c"}},
		{"double quotes", `"a b" c`, []string{"a b", "c"}},
		{"single quotes", `'a "b"' c`, []string{`a "b"`, "c"}},
		{"quotes in the middle", `a"b c"d`, []string{"ab cd"}},
		{"empty word", `"" a`, []string{"", "a"}},
		{"escapes", `a\tb \x41\102\u00e9\U0001f600 \s`, []string{"a\tb", "ABé😀", " "}},
		{"escapes in quotes", `"a\"b" 'c\'d'`, []string{`a"b`, "c'd"}},
		{"escaped bytes", `\xc3\xa9`, []string{"é"}},
		{"specifiers stay", `%t/%N.cid %%`, []string{"%t/%N.cid", "%%"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			words, err := SplitWords(test.line)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range words {
				got = append(got, w.Text)
				if w.Start > 0 && !strings.ContainsAny(test.line[w.Start-1:w.Start], whitespace) {
					t.Errorf("%q does not start at %d", w.Text, w.Start)
				}
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestSplitWordsRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		line string
		err  error
	}{
		"an open quote":              {`a "b`, errQuote},
		"a backslash at the end":     {`a\`, errEscape},
		"an unknown escape":          {`\q`, errEscape},
		"a short hexadecimal escape": {`\x4`, errEscape},
		"an escape that is no digit": {`\xzz`, errEscape},
		"a NUL":                      {`\x00`, errEscape},
		"an octal number too large":  {`\777`, errEscape},
		"half a surrogate pair":      {`\ud800`, errEscape},
	} {
		t.Run(name, func(t *testing.T) {
			if words, err := SplitWords(test.line); !errors.Is(err, test.err) {
				t.Errorf("got %q, %v", words, err)
			}
		})
	}
}

func TestQuote(t *testing.T) {
	tests := []struct{ name, text, word, argument string }{
		{"plain", "/run/a", "/run/a", "/run/a"},
		{"empty", "", `""`, `""`},
		{"space", "a b", `"a b"`, `"a b"`},
		{"escaped unit name", `a\x2db.service`, `a\\x2db.service`, `a\\x2db.service`},
		{"instance", "a@b:c.service", "a@b:c.service", "a@b:c.service"},
		{"percent", "100%n", "100%%n", "100%%n"},
		{"dollar", "$HOME", "$HOME", "$$HOME"},
		{"quotes", `a"b'c`, `"a\"b'c"`, `"a\"b'c"`},
		{"newline", "a\nb", `a\x0ab`, `a\x0ab`},
		{"semicolon", ";", ";", `\;`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := QuoteWord(test.text); got != test.word {
				t.Errorf("QuoteWord: %s, want %s", got, test.word)
			}
			if got := QuoteArgument(test.text); got != test.argument {
				t.Errorf("QuoteArgument: %s, want %s", got, test.argument)
			}
		})
	}
	if got := QuoteOpenFile(`/run/a\x2db@c:d.service/100%`); got != `/run/a\x5cx2db@c\x3ad.service/100%` {
		t.Errorf("QuoteOpenFile: %s", got)
	}
}

// expand undoes what systemd does to a word after splitting.
func expand(word string, dollar bool) string {
	word = strings.ReplaceAll(word, "%%", "%")
	if dollar {
		word = strings.ReplaceAll(word, "$$", "$")
	}
	return word
}

func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", " ", "a b", `\`, `\\x2d`, "%n", "$$A", "'\"", "é", "\xff", "\x01\n", ";", "😀", "\ufffd"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.ContainsRune(text, 0) {
			return // no argument holds a NUL
		}
		for _, q := range []struct {
			name, line string
			dollar     bool
		}{{"QuoteWord", QuoteWord(text), false}, {"QuoteArgument", QuoteArgument(text), true}} {
			if strings.ContainsAny(q.line, "\n\r") {
				t.Errorf("%s(%q) = %q is more than a line", q.name, text, q.line)
			}
			if q.line == `\;` {
				continue
			}
			words, err := SplitWords(q.line)
			if err != nil || len(words) != 1 || expand(words[0].Text, q.dollar) != text {
				t.Errorf("%s(%q) = %q, read back: %q, %v", q.name, text, q.line, words, err)
			}
		}
		// OpenFile= ends the path at a colon and knows escapes only.
		path, _, _ := strings.Cut(QuoteOpenFile(text)+":mainpidfile", ":")
		if words, err := SplitWords("x" + path); err != nil || len(words) != 1 || words[0].Text != "x"+text {
			t.Errorf("QuoteOpenFile(%q) = %q, read back: %q, %v", text, path, words, err)
		}
	})
}
