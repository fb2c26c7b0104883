package containersconf

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// scanner reads TOML (https://toml.io/en/v1.0.0), as far as is needed to tell
// where a value ends, and what it is if it is text, a list or a table. Numbers
// and dates stay the text that they are.
type scanner struct {
	text string
	line int
}

type assignment struct {
	// key is the whole of it, with the name of the table before it.
	key []string
	// value is a string, a bare, an []any or a []assignment.
	value any
}

// bare is a value without quotes: true, 1, 1979-05-27.
type bare string

var errEnd = errors.New("unexpected end")

// parseTOML calls f for every assignment of the text, in order.
func parseTOML(text string, f func(assignment) error) error {
	s := scanner{text: strings.TrimPrefix(text, "\ufeff"), line: 1}
	err := s.document(f)
	if err != nil {
		return fmt.Errorf("line %d: %w", s.line, err)
	}
	return nil
}

func (s *scanner) document(f func(assignment) error) error {
	var table []string
	for {
		s.blank(true)
		switch {
		case s.text == "":
			return nil
		case s.skip("[["), s.skip("["):
			var err error
			if table, err = s.key(); err != nil {
				return err
			}
			if !s.skip("]]") && !s.skip("]") {
				return errors.New("a table's name does not end")
			}
		default:
			a, err := s.assignment()
			if err != nil {
				return err
			}
			a.key = append(append([]string(nil), table...), a.key...)
			if err := f(a); err != nil {
				return err
			}
		}
		if s.blank(false); s.text != "" && !strings.HasPrefix(s.text, "\n") {
			return fmt.Errorf("unexpected %.20q", s.text)
		}
	}
}

func (s *scanner) assignment() (a assignment, err error) {
	if a.key, err = s.key(); err != nil {
		return a, err
	}
	if s.blank(false); !s.skip("=") {
		return a, fmt.Errorf("%s: no value", strings.Join(a.key, "."))
	}
	s.blank(false)
	a.value, err = s.value(0)
	return a, err
}

// blank skips spaces and comments, and new lines if they mean nothing.
func (s *scanner) blank(newlines bool) {
	for s.text != "" {
		switch c := s.text[0]; {
		case c == ' ' || c == '\t' || c == '\r':
			s.text = s.text[1:]
		case c == '\n' && newlines:
			s.line++
			s.text = s.text[1:]
		case c == '#':
			if i := strings.IndexByte(s.text, '\n'); i >= 0 {
				s.text = s.text[i:]
			} else {
				s.text = ""
			}
		default:
			return
		}
	}
}

func (s *scanner) skip(prefix string) bool {
	rest, ok := strings.CutPrefix(s.text, prefix)
	s.text = rest
	return ok
}

// key reads a.b."c d".
func (s *scanner) key() (key []string, err error) {
	for {
		s.blank(false)
		part := ""
		if s.text != "" && (s.text[0] == '"' || s.text[0] == '\'') {
			if part, err = s.quoted(); err != nil {
				return nil, err
			}
		} else if part = s.word(); part == "" {
			return nil, fmt.Errorf("%.20q is no key", s.text)
		}
		key = append(key, part)
		if s.blank(false); !s.skip(".") {
			return key, nil
		}
	}
}

func (s *scanner) word() string {
	n := 0
	for n < len(s.text) {
		c := s.text[n]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_') {
			break
		}
		n++
	}
	word := s.text[:n]
	s.text = s.text[n:]
	return word
}

// maxDepth bounds lists in lists.
const maxDepth = 32

func (s *scanner) value(depth int) (any, error) {
	switch {
	case depth > maxDepth:
		return nil, errors.New("too deep")
	case s.text == "":
		return nil, errEnd
	case s.text[0] == '"' || s.text[0] == '\'':
		return s.quoted()
	case s.skip("["):
		list := []any{}
		for {
			if s.blank(true); s.skip("]") {
				return list, nil
			}
			v, err := s.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
			if s.blank(true); !s.skip(",") && !strings.HasPrefix(s.text, "]") {
				return nil, errors.New("a list does not end")
			}
		}
	case s.skip("{"):
		table := []assignment{}
		for {
			if s.blank(true); s.skip("}") {
				return table, nil
			}
			a, err := s.assignment()
			if err != nil {
				return nil, err
			}
			table = append(table, a)
			if s.blank(true); !s.skip(",") && !strings.HasPrefix(s.text, "}") {
				return nil, errors.New("a table does not end")
			}
		}
	}
	n := strings.IndexAny(s.text, ",]}#\n")
	if n < 0 {
		n = len(s.text)
	}
	v := strings.TrimSpace(s.text[:n])
	s.text = s.text[n:]
	if v == "" {
		return nil, errors.New("no value")
	}
	return bare(v), nil
}

// quoted reads one of the four kinds of strings.
func (s *scanner) quoted() (string, error) {
	quote := s.text[:1]
	escapes := quote == `"`
	end, many := quote, false
	if strings.HasPrefix(s.text, strings.Repeat(quote, 3)) {
		end, many = strings.Repeat(quote, 3), true
	}
	s.text = s.text[len(end):]
	if many {
		s.skip("\r")
		if s.skip("\n") {
			s.line++
		}
	}
	var b strings.Builder
	for {
		switch {
		case s.text == "", s.text[0] == '\n' && !many:
			return "", errors.New("a string does not end")
		case s.skip(end):
			for many && s.skip(quote) { // up to two quotes before the three
				b.WriteString(quote)
			}
			return b.String(), nil
		case escapes && s.text[0] == '\\':
			if err := s.escape(&b, many); err != nil {
				return "", err
			}
		default:
			if s.text[0] == '\n' {
				s.line++
			}
			b.WriteByte(s.text[0])
			s.text = s.text[1:]
		}
	}
}

func (s *scanner) escape(b *strings.Builder, many bool) error {
	if many && strings.HasPrefix(strings.TrimLeft(s.text[1:], " \t\r"), "\n") {
		s.text = s.text[1:]
		for s.text != "" && strings.ContainsRune(" \t\r\n", rune(s.text[0])) {
			if s.text[0] == '\n' {
				s.line++
			}
			s.text = s.text[1:]
		}
		return nil
	}
	if s.skip(`\e`) {
		b.WriteByte(0x1b)
		return nil
	}
	// The others are Go's.
	r, _, rest, err := strconv.UnquoteChar(s.text, '"')
	if err != nil {
		return fmt.Errorf("%.6q is no escape sequence", s.text)
	}
	b.WriteRune(r)
	s.text = rest
	return nil
}
