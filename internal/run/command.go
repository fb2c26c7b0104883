package run

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"oci-mainpid-hook/internal/podmancmd"
)

// command is podman's command line.
type command struct {
	args     []string // with argv[0]
	verbEnd  int      // where options may be put
	name     string   // of the container
	sdnotify string   // as it was given, "" if it was not
}

// parseCommand parses podman's command line, and takes --sdnotify= away: podman is not
// to speak to whoever started this program.
func parseCommand(args []string, ready bool) (command, error) {
	if len(args) == 0 {
		return command{}, errors.New("no command given, such as podman run -d --rm --name=web IMAGE")
	}
	p, ok := podmancmd.ParseArguments(args[0], args[1:])
	if !ok || filepath.Base(args[0]) == "oci-mainpid" {
		return command{}, fmt.Errorf("%s is no podman with a subcommand; write podman run -d --rm --name=NAME IMAGE", args[0])
	}
	c := command{args: slices.Clone(args), verbEnd: 1 + p.VerbEnd}
	if err := p.CheckSupervised(); err != nil {
		return command{}, err
	}
	if c.name, _ = p.Last("name"); !isName(c.name) {
		return command{}, fmt.Errorf("podman %s: --name=%.40s is no name of a container", p.Verb, c.name)
	}
	if _, init := p.Last("init"); ready && init {
		return command{}, fmt.Errorf("podman %s: --init: systemd must be the first process of the container; remove it", p.Verb)
	}
	c.sdnotify, _ = p.Last("sdnotify")
	switch c.sdnotify {
	case "", "conmon", "container", "healthy", "ignore":
	default:
		return command{}, fmt.Errorf("podman %s: --sdnotify=%.40s is none of conmon, container, healthy, ignore", p.Verb, c.sdnotify)
	}
	for _, o := range slices.Backward(p.All("sdnotify")) {
		c.args = slices.Delete(c.args, 1+o.Start, 1+o.At.End)
	}
	if _, given := p.Last("replace"); !given {
		c.insert("--replace")
	}
	c.insert("--sdnotify=ignore")
	return c, nil
}

// insert puts options in front of podman's own.
func (c *command) insert(options ...string) {
	c.args = slices.Insert(c.args, c.verbEnd, options...)
}

// podman returns the beginning of a command line of the same podman, with the options
// before the subcommand.
func (c *command) podman(args ...string) []string {
	p, _ := podmancmd.ParseArguments(c.args[0], c.args[1:])
	return append(slices.Clone(c.args[:1+p.VerbStart]), args...)
}

// isName reports whether podman takes s as the name of a container, and a directory can
// have it.
func isName(s string) bool {
	const characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	return s != "" && len(s) <= 200 && s[0] != '.' && s[0] != '-' && strings.Trim(s, characters) == ""
}

// environment returns this process's environment for podman: without what is meant for
// this process, and with more variables.
func environment(without []string, more ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains(without, name)
	})
	return append(env, more...)
}
