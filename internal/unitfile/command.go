package unitfile

import (
	"cmp"
	"slices"
	"strings"
)

// Command is one command of a line such as ExecStart=, systemd.service(5),
// "Command lines".
type Command struct {
	// Prefix holds the special characters before the executable: @ - : + ! |
	Prefix string
	// Path is the executable, without the prefix.
	Path Word
	// Args are the words after it. With the prefix @ the first one is argv[0].
	Args []Word
}

// ParseCommands returns the commands of a line. Like systemd, it fails for a line with
// unbalanced quotes or an invalid escape sequence.
func ParseCommands(line string) ([]Command, error) {
	commands := make([]Command, 0, 1)
	words := make([]Word, 0, 1+strings.Count(line, " "))
	for at := 0; ; {
		w, ok, err := NextWord(line, at)
		if err != nil {
			return nil, err
		}
		if !ok {
			return commands, nil
		}
		at = w.End
		var c Command
		n := len(w.Text) - len(strings.TrimLeft(w.Text, "@-:+!|"))
		c.Prefix = w.Text[:n]
		c.Path = Word{Text: w.Text[n:], Start: w.Start + n, End: w.End}
		if !strings.HasPrefix(line[w.Start:], c.Prefix) { // the prefix is inside quotes
			c.Path.Start = w.Start
		}
		for {
			w, ok, err := nextArgument(line, at)
			if err != nil {
				return nil, err
			}
			if !ok {
				at = len(line)
				break
			}
			at = w.End
			if line[w.Start:w.End] == ";" {
				break
			}
			words = append(words, w)
		}
		c.Args = words[:len(words):len(words)]
		words = words[len(words):]
		commands = append(commands, c)
	}
}

// nextArgument is NextWord, but reads an escaped semicolon as a plain word. Only an
// unescaped semicolon separates two commands.
func nextArgument(line string, from int) (w Word, ok bool, err error) {
	start := len(line) - len(strings.TrimLeft(line[from:], whitespace))
	if rest, ok := strings.CutPrefix(line[start:], `\;`); ok && (rest == "" || strings.IndexByte(whitespace, rest[0]) >= 0) {
		return Word{Text: ";", Start: start, End: start + 2}, true, nil
	}
	return NextWord(line, from)
}

// AsRoot reports whether systemd runs the command as root, whatever User= says.
func (c *Command) AsRoot() bool { return strings.ContainsAny(c.Prefix, "+!") }

// MayFail reports whether systemd ignores the command's failure.
func (c *Command) MayFail() bool { return strings.Contains(c.Prefix, "-") }

// HasArgv0 reports whether the first word of Args is argv[0].
func (c *Command) HasArgv0() bool { return strings.Contains(c.Prefix, "@") && len(c.Args) > 0 }

// Arguments returns the arguments after argv[0].
func (c *Command) Arguments() []Word {
	if c.HasArgv0() {
		return c.Args[1:]
	}
	return c.Args
}

// End returns the offset of the byte after the last word of the command.
func (c *Command) End() int {
	if len(c.Args) > 0 {
		return c.Args[len(c.Args)-1].End
	}
	return c.Path.End
}

// Edits changes parts of a line and leaves every other byte as it is.
type Edits []edit

type edit struct {
	start, end int
	text       string
}

// Replace replaces line[start:end].
func (e *Edits) Replace(start, end int, text string) { *e = append(*e, edit{start, end, text}) }

// Apply returns the line with all replacements made.
func (e Edits) Apply(line string) string {
	if len(e) == 0 {
		return line
	}
	// What is put in comes before what is taken away at the same place.
	slices.SortStableFunc(e, func(a, b edit) int { return cmp.Or(a.start-b.start, a.end-b.end) })
	var b strings.Builder
	at := 0
	for _, x := range e {
		b.WriteString(line[at:x.start])
		b.WriteString(x.text)
		at = x.end
	}
	b.WriteString(line[at:])
	return b.String()
}
