// Package podmancmd parses podman's command line, podman(1): the subcommand, its
// options, and where these are written in a unit's line. The arguments after the
// image are the container's and are not parsed.
package podmancmd

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"oci-mainpid-hook/internal/unitfile"
)

// Podman is a command line of podman.
type Podman struct {
	// Verb is the subcommand, such as "run", "pod start" or "kube play".
	Verb string
	// VerbStart and VerbEnd are Verb's offsets in the unit's line.
	VerbStart, VerbEnd int

	global, options []Option
	arguments       []unitfile.Word
}

// Option is an option with its value.
type Option struct {
	// Name is the option's name as it is written, without dashes: "v" for -v.
	Name string
	// Value is empty for an option without a value.
	Value string
	// At is the word that holds the value. It is the whole word --name=value if
	// Joined is set.
	At     unitfile.Word
	Joined bool
	// Start is where the option begins in the unit's line.
	Start int
}

// Parse parses the arguments of a program. ok is false if the program does not run
// podman, itself, by env(1) or by oci-mainpid run, or if there is no subcommand.
func Parse(program string, args []unitfile.Word) (p Podman, ok bool) {
	if IsRun(program, args) {
		program, args = throughRun(args)
	}
	if filepath.Base(program) == "env" {
		program, args = throughEnv(args)
	}
	if filepath.Base(program) != "podman" {
		return Podman{}, false
	}
	p.global, args = options(args, globalSwitches, "hrv")
	if len(args) == 0 {
		return Podman{}, false
	}
	p.Verb, p.VerbStart, p.VerbEnd = args[0].Text, args[0].Start, args[0].End
	args = args[1:]
	if groups[p.Verb] && len(args) > 0 && !strings.HasPrefix(args[0].Text, "-") {
		p.Verb, p.VerbEnd = p.Verb+" "+args[0].Text, args[0].End
		args = args[1:]
	}
	p.options, p.arguments = options(args, switches, "diPqt")
	return p, true
}

// ParseArguments is Parse for arguments (without argv[0]) that are not in a unit's
// line. All offsets are indexes of args.
func ParseArguments(program string, args []string) (Podman, bool) {
	words := make([]unitfile.Word, len(args))
	for i, a := range args {
		words[i] = unitfile.Word{Text: a, Start: i, End: i + 1}
	}
	return Parse(program, words)
}

// IsRun reports whether the program is oci-mainpid run, oci-mainpid(8).
func IsRun(program string, args []unitfile.Word) bool {
	return filepath.Base(program) == "oci-mainpid" && len(args) > 0 && args[0].Text == "run"
}

// throughRun returns the program that oci-mainpid run starts, and its arguments. They
// come after --.
func throughRun(args []unitfile.Word) (program string, rest []unitfile.Word) {
	for i, w := range args {
		if w.Text == "--" && i+1 < len(args) {
			return args[i+1].Text, args[i+2:]
		}
	}
	return "", nil
}

// throughEnv returns the program that env(1) executes, and its arguments.
func throughEnv(args []unitfile.Word) (program string, rest []unitfile.Word) {
	for i := 0; i < len(args); i++ {
		switch text := args[i].Text; {
		case text == "-u" || text == "--unset" || text == "-C" || text == "--chdir":
			i++
		case strings.HasPrefix(text, "-") || strings.Contains(text, "="):
		default:
			return text, args[i+1:]
		}
	}
	return "", nil
}

// Last returns the last value of an option of the subcommand, which is the one that
// podman uses, and whether the option is given.
func (p *Podman) Last(name string) (string, bool) { return last(p.options, name) }

// Arguments returns what comes behind the options, such as the image or the kube file.
func (p *Podman) Arguments() []string {
	texts := make([]string, len(p.arguments))
	for i, w := range p.arguments {
		texts[i] = w.Text
	}
	return texts
}

// Global is Last for an option of podman itself, before the subcommand.
func (p *Podman) Global(name string) (string, bool) { return last(p.global, name) }

func last(options []Option, name string) (string, bool) {
	for i := len(options) - 1; i >= 0; i-- {
		if options[i].Name == name {
			return options[i].Value, true
		}
	}
	return "", false
}

// All returns each place where an option of the subcommand is given.
func (p *Podman) All(name string) []Option {
	var found []Option
	for _, o := range p.options {
		if o.Name == name {
			found = append(found, o)
		}
	}
	return found
}

// StartsContainer reports whether the subcommand starts a container.
func (p *Podman) StartsContainer() bool {
	switch p.Verb {
	case "run", "start", "restart", "container run", "container start", "container restart",
		"pod start", "pod restart":
		return true
	}
	return p.PlaysKube()
}

// StartsPod reports whether the subcommand starts a pod that exists.
func (p *Podman) StartsPod() bool { return strings.HasPrefix(p.Verb, "pod ") }

// PlaysKube reports whether the subcommand starts the pods of a kube file.
func (p *Podman) PlaysKube() bool {
	_, down := p.Last("down")
	return (p.Verb == "kube play" || p.Verb == "play kube") && !down
}

// EntersContainer reports whether the subcommand starts a process in a running
// container.
func (p *Podman) EntersContainer() bool {
	switch p.Verb {
	case "exec", "container exec", "healthcheck run":
		return true
	}
	return false
}

// CreatesContainer reports whether the subcommand makes a container, and so has
// the option --cgroups.
func (p *Podman) CreatesContainer() bool {
	switch p.Verb {
	case "run", "create", "container run", "container create":
		return true
	}
	return false
}

// HidesOutput reports whether the containers that the subcommand creates write nothing
// to podman's standard output, because they run on after podman has ended.
func (p *Podman) HidesOutput() bool {
	switch p.Verb {
	case "create", "container create":
		return true
	case "run", "container run":
		detach, long := p.Last("detach")
		_, short := p.Last("d")
		return short || long && !IsFalse(detach)
	}
	return p.PlaysKube()
}

// CheckSupervised fails unless the subcommand starts a container that oci-mainpid run can
// supervise: one of its own, in the background, with a name, that is removed at its end.
// The error says what to write.
func (p *Podman) CheckSupervised() error {
	fail := func(why string) error { return fmt.Errorf("podman %s: %s", p.Verb, why) }
	if p.Verb != "run" && p.Verb != "container run" {
		return fail("starts no container of its own; write podman run")
	}
	if _, remote := p.Global("remote"); remote {
		return fail("--remote: conmon would be on another machine; remove it")
	}
	if !p.HidesOutput() {
		return fail("stays in the foreground; add -d")
	}
	if rm, given := p.Last("rm"); !given || IsFalse(rm) {
		return fail("leaves the container behind when it ends; add --rm")
	}
	if name, _ := p.Last("name"); name == "" {
		return fail("gives the container no name by which the next start can replace it; add --name=NAME")
	}
	if replace, given := p.Last("replace"); given && IsFalse(replace) {
		return fail("--replace=false: what a killed start has left would be in the way; remove it")
	}
	return nil
}

// IsFalse reports whether the value of a switch is false, as pflag reads it.
func IsFalse(value string) bool {
	on, err := strconv.ParseBool(value)
	return err == nil && !on
}

// RemovesContainer reports whether the subcommand removes the unit's container. podman
// stop counts, because it removes a container that was started with --rm.
func (p *Podman) RemovesContainer() bool {
	switch p.Verb {
	case "rm", "container rm", "pod rm", "kube down", "stop", "container stop", "pod stop", "kill", "container kill", "pod kill":
		return true
	case "kube play", "play kube":
		return !p.PlaysKube()
	}
	return false
}

// options parses the options at the beginning of words like pflag, podman's own
// parser, and returns them and the words after them. switches and letters are the
// long and short options without a value.
func options(words []unitfile.Word, switches map[string]bool, letters string) (found []Option, rest []unitfile.Word) {
	i := 0
	for ; i < len(words); i++ {
		w := words[i]
		if w.Text == "--" {
			i++
			break
		}
		long, isLong := strings.CutPrefix(w.Text, "--")
		if !isLong && (len(w.Text) < 2 || w.Text[0] != '-') {
			break
		}
		if !isLong {
			// -dti, -eA=B, -e A=B: letters up to the first that takes a value.
			for j := 1; j < len(w.Text); j++ {
				if strings.IndexByte(letters, w.Text[j]) >= 0 {
					found = append(found, Option{Name: w.Text[j : j+1], At: w, Joined: true, Start: w.Start})
					continue
				}
				o := Option{Name: w.Text[j : j+1], Value: w.Text[j+1:], At: w, Joined: true, Start: w.Start}
				if o.Value == "" && i+1 < len(words) {
					i++
					o.Value, o.At, o.Joined = words[i].Text, words[i], false
				}
				found = append(found, o)
				break
			}
			continue
		}
		name, value, joined := strings.Cut(long, "=")
		o := Option{Name: name, Value: value, Joined: joined, Start: w.Start}
		switch {
		case joined:
			o.At = w
		case !switches[name] && i+1 < len(words):
			i++
			o.Value, o.At = words[i].Text, words[i]
		}
		found = append(found, o)
	}
	return found, words[min(i, len(words)):]
}

// groups are the subcommands that have subcommands of their own, podman(1).
var groups = set("artifact", "container", "healthcheck", "image", "kube", "network", "play", "pod", "quadlet", "secret", "system", "volume")

// globalSwitches are podman's own options without a value, podman(1).
var globalSwitches = set("help", "noout", "remote", "syslog", "trace", "transient-store", "version")

// switches are the options without a value in podman-run(1), podman-create(1) and
// podman-kube-play(1). An option that is not listed is taken to have a value.
var switches = set("build", "detach", "disable-content-trust", "down", "env-host", "force", "help", "http-proxy",
	"init", "interactive", "no-healthcheck", "no-hostname", "no-hosts", "no-pod-prefix", "oom-kill-disable", "passwd",
	"privileged", "publish-all", "quiet", "read-only", "read-only-tmpfs", "replace", "rm", "rmi", "rootfs",
	"service-container", "sig-proxy", "start", "tls-verify", "tty", "unsetenv-all", "wait")

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// Activated returns a command line that runs another one with LISTEN_PID= set to the PID of
// the process, as it must be for one that gets sockets, sd_listen_fds(3).
func Activated(args []string) []string {
	return append([]string{"/bin/sh", "-c", `export LISTEN_PID=$$; exec "$@"`, "sh"}, args...)
}
