package unitfile

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseCommands(t *testing.T) {
	tests := []struct{ name, line, want string }{
		{"plain", "/bin/a b c", "[] /bin/a [b c]"},
		{"prefixes", "-@+/bin/a b c", "[-@+] /bin/a [b c]"},
		{"quoted prefix", `"-/bin/a" b`, "[-] /bin/a [b]"},
		{"two commands", "/bin/a b ; -/bin/c", "[] /bin/a [b] [-] /bin/c []"},
		{"escaped semicolon", `/bin/a \; b`, "[] /bin/a [; b]"},
		{"semicolon in quotes", `/bin/a ";" b`, "[] /bin/a [; b]"},
		{"relative path", "podman run", "[] podman [run]"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			commands, err := ParseCommands(test.line)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range commands {
				var args []string
				for _, a := range c.Args {
					args = append(args, a.Text)
				}
				got = append(got, fmt.Sprintf("[%s] %s %v", c.Prefix, c.Path.Text, args))
			}
			if s := strings.Join(got, " "); s != test.want {
				t.Errorf("got %s, want %s", s, test.want)
			}
		})
	}
}
