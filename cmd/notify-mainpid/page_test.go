package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPage: the page, the usage and the program have the same options.
func TestPage(t *testing.T) {
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	find := func(text, pattern string) (found []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			found = append(found, m[1])
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	_, section, _ := strings.Cut(read("../../docs/notify-mainpid.8.md"), "\n# OPTIONS\n")
	section, _, _ = strings.Cut(section, "\n# ")
	page := find(section, `(?m)^\*\*(--[a-z-]+)\*\*`)
	// A flag set does not tell its flags without being parsed: the source does.
	program := find(read("flags.go"), `set\.\w+\((?:&c\.[\w.]+, )?"([a-z-]+)"`)
	for i, name := range program {
		program[i] = "--" + name
	}
	program = append(program, "--help") // package flag's own
	slices.Sort(program)
	if len(program) < 5 || !slices.Equal(page, program) {
		t.Errorf("the page has %q, the program %q", page, program)
	}
	if got := find(usage, `(?m)^  (--[a-z-]+)`); !slices.Equal(got, program) {
		t.Errorf("the usage has %q, the program %q", got, program)
	}
}
