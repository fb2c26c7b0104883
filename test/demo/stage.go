package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

// A stage runs commands in the machine and shows them. After the first error
// its methods do nothing and return "", so that a scene reads like a script;
// the error is found in the end.
type stage struct {
	ctx     context.Context
	machine *sandbox.Machine
	screen  *screen
	uid     string // of user web
	err     error
}

// run shows a command, runs it as root, shows what it says and returns that. It
// must succeed.
func (s *stage) run(command string) string {
	output, status := s.show(command, wrapped)
	if s.err == nil && status != 0 {
		s.err = fmt.Errorf("%s: exit status %d", command, status)
	}
	return output
}

// runCut is run for output whose lines say enough by their beginnings.
func (s *stage) runCut(command string) string {
	output, _ := s.show(command, cut)
	return output
}

// runWeb is run as user web.
func (s *stage) runWeb(command string) string {
	quote := "'"
	if strings.Contains(command, quote) {
		quote = `"`
	}
	return s.run("su - web -c " + quote + command + quote)
}

// show runs a command like run, with whatever exit status.
func (s *stage) show(command string, layout layout) (output string, status int) {
	if s.err != nil {
		return "", 0
	}
	s.screen.command(command)
	output, status = s.execute(command)
	if output != "" {
		s.screen.output(output, layout)
	}
	return output, status
}

// quiet runs a command that is not shown, and that must succeed.
func (s *stage) quiet(command string) string {
	output, status := s.execute(command)
	if s.err == nil && status != 0 {
		s.err = fmt.Errorf("%s: exit status %d: %s", command, status, output)
	}
	return output
}

// execute runs a command in the machine, as root.
func (s *stage) execute(command string) (output string, status int) {
	if s.err != nil {
		return "", 0
	}
	out, err := s.machine.Command(s.ctx, "sh", "-c", command).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		err = nil
		status = exit.ExitCode()
	}
	if err != nil {
		s.err = fmt.Errorf("%s: %w", command, err)
	}
	return string(bytes.TrimRight(out, "\n")), status
}

// claim shows what the scene has shown, if it holds.
func (s *stage) claim(holds bool, format string, args ...any) {
	if s.err != nil {
		return
	}
	text := fmt.Sprintf(format, args...)
	if !holds {
		s.err = fmt.Errorf("this does not hold: %s", text)
		return
	}
	s.screen.checked(text)
}

func (s *stage) say(text string) {
	if s.err == nil {
		s.screen.say(text)
	}
}

// write puts a file into the machine and shows it.
func (s *stage) write(path, text string) {
	if s.err != nil {
		return
	}
	inRoot := filepath.Join(s.machine.Root(), path)
	if err := os.MkdirAll(filepath.Dir(inRoot), 0o755); err != nil {
		s.err = err
		return
	}
	if err := os.WriteFile(inRoot, []byte(text), 0o644); err != nil {
		s.err = err
		return
	}
	s.run("cat " + path)
}

// property returns a property of a unit.
func (s *stage) property(unit, name string) string {
	return s.quiet("systemctl show --property=" + name + " --value " + unit)
}

// waitFor waits until a property of the unit has the value, for a while.
func (s *stage) waitFor(unit, name, value string) {
	for end := time.Now().Add(20 * time.Second); s.err == nil; time.Sleep(20 * time.Millisecond) {
		have := s.property(unit, name)
		if have == value {
			return
		}
		if time.Now().After(end) {
			s.claim(false, "%s of %s becomes %s (it is %s)", name, unit, value, have)
		}
	}
}

// asAfterBoot ends everything of web's, podman's pause process too: the next
// podman is its first one since boot.
func (s *stage) asAfterBoot() {
	s.quiet("systemctl stop user@" + s.uid + ".service")
}
