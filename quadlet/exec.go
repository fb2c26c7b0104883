package quadlet

import (
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// command is one command of a line ExecStart=, ExecStop= and so on, see
// systemd.service(5), "Command lines".
type command struct {
	// prefix holds the special characters before the executable: @ - : + ! |
	prefix string
	// path is the executable, without the prefix.
	path word
	// args are the words after it; with the prefix @ the first one is argv[0].
	args []word
}

// parseExec returns the commands of the line.
func parseExec(line string) ([]command, error) {
	commands := make([]command, 0, 1)
	words := make([]word, 0, 1+strings.Count(line, " "))
	for at := 0; ; {
		w, ok, err := nextWord(line, at)
		if err != nil {
			return nil, err
		}
		if !ok {
			return commands, nil
		}
		at = w.end
		var c command
		n := len(w.text) - len(strings.TrimLeft(w.text, "@-:+!|"))
		c.prefix = w.text[:n]
		c.path = word{text: w.text[n:], start: w.start + n, end: w.end}
		if !strings.HasPrefix(line[w.start:], c.prefix) { // the prefix is inside quotes
			c.path.start = w.start
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
			at = w.end
			if line[w.start:w.end] == ";" {
				break
			}
			words = append(words, w)
		}
		c.args = words[:len(words):len(words)]
		words = words[len(words):]
		commands = append(commands, c)
	}
}

// nextArgument is nextWord, with the escaped semicolon that separates nothing.
func nextArgument(line string, from int) (w word, ok bool, err error) {
	start := len(line) - len(strings.TrimLeft(line[from:], whitespace))
	if rest, ok := strings.CutPrefix(line[start:], `\;`); ok && (rest == "" || strings.IndexByte(whitespace, rest[0]) >= 0) {
		return word{text: ";", start: start, end: start + 2}, true, nil
	}
	return nextWord(line, from)
}

// asRoot reports whether the command is run as root whatever User= says.
func (c *command) asRoot() bool { return strings.ContainsAny(c.prefix, "+!") }

// arguments are those after argv[0].
func (c *command) arguments() []word {
	if strings.Contains(c.prefix, "@") && len(c.args) > 0 {
		return c.args[1:]
	}
	return c.args
}

// podman is a command line of podman, as far as this package must know it.
type podman struct {
	// verb is the subcommand: "run", "pod start", "kube play".
	verb string
	// verbStart and verbEnd are where it is in the line.
	verbStart, verbEnd int
	// runtime is the OCI runtime of --runtime, a name or path; empty without one.
	runtime string
	// options are those of run or create that this package looks at, in order.
	options []option
}

type option struct {
	name  string
	value string
	// at is where the value was written; empty for an option without one.
	at word
	// joined says that at is the whole word --name=value.
	joined bool
}

// last returns the value of the option that counts, and whether there is one.
func (p *podman) last(name string) (string, bool) {
	for i := len(p.options) - 1; i >= 0; i-- {
		if p.options[i].name == name {
			return p.options[i].value, true
		}
	}
	return "", false
}

// starts reports whether the subcommand starts containers.
func (p *podman) starts() bool {
	switch p.verb {
	case "run", "start", "restart", "container run", "container start", "container restart",
		"pod start", "pod restart", "kube play", "play kube":
		return true
	}
	return false
}

// enters reports whether the subcommand starts a process in a container that
// runs.
func (p *podman) enters() bool {
	switch p.verb {
	case "exec", "container exec", "healthcheck run":
		return true
	}
	return false
}

// creates reports whether the subcommand has the option --cgroups.
func (p *podman) creates() bool {
	switch p.verb {
	case "run", "create", "container run", "container create":
		return true
	}
	return false
}

// removes reports whether the command leaves no container of the unit behind.
// A container that runs with --rm is removed by podman stop, too.
func (p *podman) removes() bool {
	switch p.verb {
	case "rm", "container rm", "pod rm", "kube down", "down kube", "stop", "container stop", "pod stop", "kill", "container kill", "pod kill":
		return true
	}
	return false
}

// podman parses the command's arguments; ok is false where it is another
// program or a podman without a subcommand.
func (c *command) podman() (p podman, ok bool) {
	if filepath.Base(c.path.text) != "podman" {
		return podman{}, false
	}
	args := c.arguments()
	i := 0
	for ; i < len(args) && strings.HasPrefix(args[i].text, "-"); i++ {
		name, value, joined := strings.Cut(args[i].text, "=")
		if !joined && !globalSwitches[name] {
			if i++; i < len(args) {
				value = args[i].text
			}
		}
		if name == "--runtime" {
			p.runtime = value
		}
	}
	if i >= len(args) {
		return podman{}, false
	}
	p.verb, p.verbStart, p.verbEnd = args[i].text, args[i].start, args[i].end
	i++
	switch p.verb {
	case "container", "pod", "kube", "play", "image", "volume", "network", "artifact", "quadlet", "system", "healthcheck":
		if i < len(args) && !strings.HasPrefix(args[i].text, "-") {
			p.verb, p.verbEnd = p.verb+" "+args[i].text, args[i].end
			i++
		}
	}
	if p.creates() {
		p.options = options(args[i:], "cgroups", "sdnotify", "health-cmd")
	}
	return p, true
}

// options parses the options of podman run at the start of words, as pflag does,
// and returns those of the given names.
func options(words []word, names ...string) []option {
	var found []option
	for i := 0; i < len(words); i++ {
		w := words[i]
		long, isLong := strings.CutPrefix(w.text, "--")
		if w.text == "--" || !isLong && (len(w.text) < 2 || w.text[0] != '-') {
			break
		}
		if !isLong {
			// -dti, -eA=B, -e A=B: letters up to the first that takes a value.
			for j := 1; j < len(w.text); j++ {
				if strings.IndexByte("diPqt", w.text[j]) >= 0 {
					continue
				}
				if j+1 == len(w.text) {
					i++
				}
				break
			}
			continue
		}
		name, value, joined := strings.Cut(long, "=")
		o := option{name: name, value: value, joined: joined}
		switch {
		case joined:
			o.at = w
		case !switches[name] && i+1 < len(words):
			i++
			o.value, o.at = words[i].text, words[i]
		}
		if slices.Contains(names, name) {
			found = append(found, o)
		}
	}
	return found
}

// globalSwitches are podman's own options that take no value, podman(1).
var globalSwitches = set("--help", "-h", "--remote", "-r", "--syslog", "--transient-store", "--version", "-v", "--trace", "--noout")

// switches are the options of podman run and create that take no value,
// podman-run(1). An unknown option is taken for one with a value, as most are.
var switches = set("detach", "disable-content-trust", "env-host", "help", "http-proxy", "init", "interactive",
	"no-healthcheck", "no-hostname", "no-hosts", "oom-kill-disable", "passwd", "privileged", "publish-all", "quiet",
	"read-only", "read-only-tmpfs", "replace", "rm", "rmi", "rootfs", "sig-proxy", "tls-verify", "tty", "unsetenv-all")

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// edits changes parts of a line and leaves every other byte as it was.
type edits []edit

type edit struct {
	start, end int
	text       string
}

func (e *edits) replace(start, end int, text string) { *e = append(*e, edit{start, end, text}) }

func (e edits) apply(line string) string {
	if len(e) == 0 {
		return line
	}
	sort.SliceStable(e, func(i, j int) bool { return e[i].start < e[j].start })
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

// moveRuntimeDir replaces the specifier %t in line[start:end] by dir. In the
// system manager %t is /run, where a user can create nothing.
func (e *edits) moveRuntimeDir(line string, start, end int, dir string) {
	for i := start; i+1 < end; i++ {
		if line[i] != '%' {
			continue
		}
		if line[i+1] == 't' {
			e.replace(i, i+2, dir)
		}
		i++ // %% and every other specifier
	}
}
