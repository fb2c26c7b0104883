package unitfile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Word is one word of a line: its text with quotes and escapes undone, and the
// bytes line[Start:end] that it was written as.
type Word struct {
	Text       string
	Start, End int
}

var (
	errQuote  = errors.New("unbalanced quotes")
	errEscape = errors.New("invalid escape sequence")
)

// NextWord returns the word at or after offset from, as systemd.syntax(7),
// "Quoting", describes it. ok is false at the end of the line.
func NextWord(line string, from int) (w Word, ok bool, err error) {
	i := from
	for i < len(line) && strings.IndexByte(whitespace, line[i]) >= 0 {
		i++
	}
	if i == len(line) {
		return Word{}, false, nil
	}
	w.Start = i
	// Most words have no quotes and no escapes.
	n := strings.IndexAny(line[i:], whitespace+"\\\"'")
	if n < 0 {
		n = len(line) - i
	}
	i += n
	if i == len(line) || strings.IndexByte(whitespace, line[i]) >= 0 {
		w.Text, w.End = line[w.Start:i], i
		return w, true, nil
	}
	var text strings.Builder
	text.WriteString(line[w.Start:i])
	var quote byte
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '\\':
			decoded, n, err := unescape(line[i:])
			if err != nil {
				return Word{}, false, err
			}
			text.WriteString(decoded)
			i += n - 1
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			text.WriteByte(c)
		case c == '"' || c == '\'':
			quote = c
		case strings.IndexByte(whitespace, c) >= 0:
			w.Text, w.End = text.String(), i
			return w, true, nil
		default:
			text.WriteByte(c)
		}
	}
	if quote != 0 {
		return Word{}, false, errQuote
	}
	w.Text, w.End = text.String(), i
	return w, true, nil
}

// SplitWords returns the words of a line.
func SplitWords(line string) ([]Word, error) {
	var words []Word
	for at := 0; ; {
		w, ok, err := NextWord(line, at)
		if err != nil {
			return nil, err
		}
		if !ok {
			return words, nil
		}
		words = append(words, w)
		at = w.End
	}
}

// unescape decodes the C-style escape sequence that s starts with and returns
// how many bytes of s it takes.
func unescape(s string) (text string, n int, err error) {
	if len(s) < 2 {
		return "", 0, errEscape
	}
	const from, to = `abfnrtv\"'s`, "\a\b\f\n\r\t\v\\\"' "
	if i := strings.IndexByte(from, s[1]); i >= 0 {
		return to[i : i+1], 2, nil
	}
	// The number starts at s[first] and has so many digits.
	first, digits, base, byteSized := 2, 0, 16, false
	switch {
	case s[1] == 'x':
		digits, byteSized = 2, true
	case s[1] == 'u':
		digits = 4
	case s[1] == 'U':
		digits = 8
	case s[1] >= '0' && s[1] <= '7':
		first, digits, base, byteSized = 1, 3, 8, true
	default:
		return "", 0, errEscape
	}
	if len(s) < first+digits {
		return "", 0, errEscape
	}
	v, err := strconv.ParseUint(s[first:first+digits], base, 32)
	switch {
	case err != nil || v == 0:
		return "", 0, errEscape
	case byteSized && v > 0xff:
		return "", 0, errEscape
	case byteSized:
		return string([]byte{byte(v)}), first + digits, nil
	case !utf8.ValidRune(rune(v)):
		return "", 0, errEscape
	}
	return string(rune(v)), first + digits, nil
}

// QuoteWord quotes text as one word of a setting in which systemd expands specifiers,
// such as Environment=.
func QuoteWord(text string) string {
	return Quote(strings.ReplaceAll(text, "%", "%%"))
}

// QuoteArgument quotes text as one argument in a line such as ExecStart=, in which
// systemd expands specifiers and variables.
func QuoteArgument(text string) string {
	text = strings.ReplaceAll(text, "$", "$$")
	q := QuoteWord(text)
	if q == ";" { // the separator of commands, systemd.service(5)
		return `\;`
	}
	return q
}

// Quote quotes text as one word, so that NextWord returns text.
func Quote(text string) string {
	if text != "" && !strings.ContainsFunc(text, needsQuoting) {
		return text
	}
	var b strings.Builder
	quoted := text == ""
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && n == 1, r < ' ' && r != '\t', r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case r == '\\' || r == '"':
			b.WriteByte('\\')
			b.WriteRune(r)
			quoted = quoted || r == '"'
		case r == ' ' || r == '\t' || r == '\'':
			quoted = true
			b.WriteRune(r)
		default:
			b.WriteString(text[i : i+n])
		}
		i += n
	}
	if quoted {
		return `"` + b.String() + `"`
	}
	return b.String()
}

func needsQuoting(r rune) bool {
	return r <= ' ' || r == 0x7f || r == '\\' || r == '"' || r == '\'' || r == utf8.RuneError
}

// QuoteOpenFile quotes a path as the first field of OpenFile=. That field ends at a
// colon and has C-style escapes, but neither quotes nor specifiers.
func QuoteOpenFile(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c <= ' ' || c == 0x7f || c == ':' || c == '\\' || c == '"' || c == '\'':
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
