package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestBadCommandLines(t *testing.T) {
	for line, want := range map[string]string{
		"":                         "no command given",
		"bot trixie":               `unknown command "bot"`,
		"boot":                     "accepts 1 arg(s), received 0 (see sandbox boot --help)",
		"boot trixie forky":        "accepts 1 arg(s), received 2",
		"boot trixie --hole":       "unknown flag: --hole",
		"boot --whole=maybe forky": `invalid argument "maybe" for "--whole"`,
		"build":                    "requires at least 1 arg(s)",
		"run m1":                   "requires at least 2 arg(s)",
		"shell":                    "accepts 1 arg(s), received 0",
		"list m1":                  `"m1"`,
		"poweroff":                 "name machines, or give --all",
		"poweroff --all m1":        "name machines, or give --all",
	} {
		var stderr strings.Builder
		status := run(t.Context(), strings.Fields(line), &stderr)
		if status != 2 || !strings.Contains(stderr.String(), want) || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("sandbox %s: status %d, %q", line, status, stderr.String())
		}
	}
}

// TestReport: a command in a machine says itself why it fails. Nothing else does.
func TestReport(t *testing.T) {
	failed := &exec.ExitError{ProcessState: new(os.ProcessState)}
	for _, c := range []struct {
		err    error
		status int
		says   string
	}{
		{nil, 0, ""},
		{exitStatus(3), 3, ""},
		{fmt.Errorf("sandbox: mkfs.ext4: %w", failed), 1, "sandbox: mkfs.ext4: exit status 0\n"},
	} {
		var stderr strings.Builder
		if status := report(c.err, &stderr); status != c.status || stderr.String() != c.says {
			t.Errorf("%v: status %d, %q", c.err, status, stderr.String())
		}
	}
}
