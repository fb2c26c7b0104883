package sdnotify

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name string
		in   string
		want Message
		err  string // part of the error; "" for none
	}{
		{name: "nothing", in: ""},
		{name: "only a NUL", in: "\x00"},
		{name: "only empty lines", in: "\n\n\r\n"},
		{name: "one assignment", in: "READY=1", want: Message{{"READY", "1"}}},
		{name: "newline at the end", in: "READY=1\n", want: Message{{"READY", "1"}}},
		{name: "NUL at the end", in: "READY=1\n\x00", want: Message{{"READY", "1"}}},
		{name: "empty lines between", in: "\nREADY=1\n\n\nSTATUS=up\n\n", want: Message{{"READY", "1"}, {"STATUS", "up"}}},
		{name: "carriage return separates", in: "STATUS=up\rMAINPID=1\r\nREADY=1", want: Message{{"STATUS", "up"}, {"MAINPID", "1"}, {"READY", "1"}}},
		{name: "empty value", in: "STATUS=", want: Message{{"STATUS", ""}}},
		{name: "more equal signs", in: "STATUS=a=b", want: Message{{"STATUS", "a=b"}}},
		{name: "quotes are text", in: `STATUS='it"s'`, want: Message{{"STATUS", `'it"s'`}}},
		{name: "UTF-8", in: "STATUS=größer…", want: Message{{"STATUS", "größer…"}}},
		{name: "other control characters", in: "STATUS=a\tb\v\x1b", want: Message{{"STATUS", "a\tb\v\x1b"}}},
		{name: "bytes that are not UTF-8", in: "STATUS=\xff\xfe", want: Message{{"STATUS", "\xff\xfe"}}},
		{name: "twice the same name", in: "STATUS=a\nSTATUS=b", want: Message{{"STATUS", "a"}, {"STATUS", "b"}}},
		{name: "escaped backslash", in: `STATUS=a\\x2db`, want: Message{{"STATUS", `a\x2db`}}},
		{name: "backslash before a letter is dropped", in: `STATUS=a\bc`, want: Message{{"STATUS", "abc"}}},
		{name: "lower case and digits in a name", in: "X_my_2=1", want: Message{{"X_my_2", "1"}}},
		{name: "as long as may be", in: "A=" + strings.Repeat("x", MaxSize-2), want: Message{{"A", strings.Repeat("x", MaxSize-2)}}},

		{name: "too long", in: "A=" + strings.Repeat("x", MaxSize-1), err: "4097 bytes"},
		{name: "no equal sign", in: "READY=1\nnonsense", err: `line 2, "nonsense": no '='`},
		{name: "lines are counted with empty and CRLF ones", in: "A=1\r\n\r\n\nnonsense\nB=2", err: "line 4"},
		{name: "no name", in: "=1", err: "line 1"},
		{name: "space in a name", in: " READY=1", err: "line 1"},
		{name: "digit first in a name", in: "1A=1", err: "line 1"},
		{name: "letter that is not ASCII in a name", in: "Ä=1", err: "line 1"},
		{name: "NUL in a value", in: "A=1\nSTATUS=a\x00b", err: "line 2"},
		{name: "two NULs at the end", in: "A=1\x00\x00", err: "NUL"},
		{name: "NUL before a line break", in: "A=1\x00\nB=2", err: "line 1"},
		{name: "backslash at the end", in: `STATUS=a\`, err: "backslash at the end"},
		{name: "backslash before the last NUL", in: "STATUS=a\\\x00", err: "backslash at the end"},
		{name: "escaped newline", in: "STATUS=a\\\nB=2", err: "line 1"},
		{name: "escaped carriage return", in: "STATUS=a\\\rB=2", err: "line 1"},
		{name: "escaped NUL", in: "STATUS=a\\\x00b", err: "line 1"},
		{name: "long line without equal sign is shortened", in: strings.Repeat("x", 4000), err: strings.Repeat("x", 40) + `"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse([]byte(test.in))
			if test.err == "" {
				if err != nil {
					t.Fatal(err)
				}
			} else if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.err) {
				t.Fatalf("error %v, want ErrInvalid with %q", err, test.err)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestFormat(t *testing.T) {
	for _, test := range []struct {
		name string
		in   Message
		want string
	}{
		{"one", Message{{"READY", "1"}}, "READY=1"},
		{"two", Message{{"READY", "1"}, {"STATUS", "all up"}}, "READY=1\nSTATUS=all up"},
		{"empty value", Message{{"STATUS", ""}}, "STATUS="},
		{"backslash is doubled", Message{{"STATUS", `a\x2db\`}, {"READY", "1"}}, `STATUS=a\\x2db\\` + "\nREADY=1"},
		{"as long as may be", Message{{"A", strings.Repeat("x", MaxSize-2)}}, "A=" + strings.Repeat("x", MaxSize-2)},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.in.Format()
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			back, err := Parse(got)
			if err != nil || !reflect.DeepEqual(back, test.in) {
				t.Errorf("reads back as %q, %v", back, err)
			}
		})
	}
}

// badMessages are those that neither Format nor Send may let through.
var badMessages = []struct {
	name string
	in   Message
}{
	{"nothing", nil},
	{"newline in a value", Message{{"READY", "1"}, {"STATUS", "a\nMAINPID=1"}}},
	{"newline at the end of a value", Message{{"STATUS", "a\n"}}},
	{"carriage return in a value", Message{{"STATUS", "a\rMAINPID=1"}}},
	{"NUL in a value", Message{{"STATUS", "a\x00"}}},
	{"no name", Message{{"", "1"}}},
	{"equal sign in a name", Message{{"A=B", "1"}}},
	{"newline in a name", Message{{"A\nB", "1"}}},
	{"space in a name", Message{{"A ", "1"}}},
	{"backslash in a name", Message{{`A\`, "1"}}},
	{"digit first in a name", Message{{"1A", "1"}}},
	{"letter that is not ASCII in a name", Message{{"Ä", "1"}}},
	{"too long", Message{{"A", strings.Repeat("x", MaxSize-1)}}},
	{"too long once escaped", Message{{"A", strings.Repeat(`\`, MaxSize/2)}}},
}

func TestFormatRefuses(t *testing.T) {
	for _, test := range badMessages {
		t.Run(test.name, func(t *testing.T) {
			if got, err := test.in.Format(); !errors.Is(err, ErrInvalid) || got != nil {
				t.Errorf("got %q, %v, want ErrInvalid", got, err)
			}
		})
	}
}

func TestGet(t *testing.T) {
	m := Message{{"STATUS", "first"}, {"EMPTY", ""}, {"STATUS", "second"}}
	if v, ok := m.Get("STATUS"); v != "first" || !ok {
		t.Errorf("twice the same name: %q, %v", v, ok)
	}
	if v, ok := m.Get("EMPTY"); v != "" || !ok {
		t.Errorf("empty value: %q, %v", v, ok)
	}
	if v, ok := m.Get("STAT"); v != "" || ok {
		t.Errorf("absent: %q, %v", v, ok)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "\x00", "READY=1", "READY=1\nSTATUS=up\n", "MAINPID=42\nMAINPIDFDID=7\r\n",
		`STATUS=a\\b\c`, "STATUS=a\\\n", "nonsense", "=", "A=1\x00B=2", "BARRIER=1",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := Parse(in)
		if err != nil {
			if m != nil || !errors.Is(err, ErrInvalid) || len(err.Error()) > 1000 {
				t.Fatalf("%q with error %q", m, err)
			}
			return
		}
		if len(m) == 0 {
			if strings.Trim(string(in), "\r\n\x00") != "" {
				t.Fatal("lost what was there")
			}
			return
		}
		out, err := m.Format()
		if err != nil {
			t.Fatalf("cannot be written: %v", err)
		}
		back, err := Parse(out)
		if err != nil || !reflect.DeepEqual(m, back) {
			t.Fatalf("%q reads back as %q, %v", m, back, err)
		}
	})
}
