package main

import (
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"oci-mainpid-hook/internal/diagnosis"
)

// readPage returns a section of a page: what is between two headings of the
// level of the first.
func readPage(t *testing.T, name, heading string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut("\n"+string(text), "\n"+heading+"\n")
	if !ok {
		t.Fatalf("%s has no %s", name, heading)
	}
	level := strings.Repeat("#", strings.Count(strings.Fields(heading)[0], "#"))
	if end := regexp.MustCompile(`(?m)^#{1,` + string('0'+rune(len(level))) + `} `).FindStringIndex(rest); end != nil {
		rest = rest[:end[0]]
	}
	return rest
}

// boldWords returns the words in bold that match, sorted, each once.
func boldWords(text, pattern string) (words []string) {
	for _, w := range regexp.MustCompile(`\*\*(`+pattern+`)\*\*`).FindAllStringSubmatch(text, -1) {
		words = append(words, w[1])
	}
	slices.Sort(words)
	return slices.Compact(words)
}

// definitions returns the lines that a definition follows.
func definitions(text string) string {
	return strings.Join(regexp.MustCompile(`(?m)^\*\*.*\n:`).FindAllString(text, -1), "\n")
}

// TestPage: oci-mainpid(8) has every command and every flag, and no other.
func TestPage(t *testing.T) {
	const page = "oci-mainpid.8.md"
	root := command(newLog(io.Discard))
	root.InitDefaultCompletionCmd("status")
	var commands []string
	for _, cmd := range root.Commands() {
		if cmd.Hidden {
			continue
		}
		commands = append(commands, cmd.Name())
		t.Run(cmd.Name(), func(t *testing.T) { comparePage(t, page, cmd) })
	}
	slices.Sort(commands)
	var headings []string
	for _, h := range regexp.MustCompile(`(?m)^## ([a-z-]+)$`).FindAllStringSubmatch(readPage(t, page, "# COMMANDS"), -1) {
		headings = append(headings, h[1])
	}
	slices.Sort(headings)
	if !slices.Equal(headings, commands) {
		t.Errorf("the page has %q, the program %q", headings, commands)
	}
	for _, w := range boldWords(readPage(t, page, "# SYNOPSIS"), "oci-mainpid [a-z-]+") {
		if !slices.Contains(commands, strings.TrimPrefix(w, "oci-mainpid ")) {
			t.Errorf("SYNOPSIS: %s", w)
		}
	}
}

func comparePage(t *testing.T, page string, cmd *cobra.Command) {
	var flags []string
	all := []*cobra.Command{cmd}
	if cmd.Name() != "completion" { // cobra's own
		all = append(all, cmd.Commands()...)
	}
	for _, c := range all {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" {
				flags = append(flags, "--"+f.Name)
			}
		})
	}
	slices.Sort(flags)
	section := readPage(t, page, "## "+cmd.Name())
	if got := boldWords(definitions(section), "--[a-z-]+"); !slices.Equal(got, flags) {
		t.Errorf("the page has %q, the program %q", got, flags)
	}
	for line := range strings.Lines(readPage(t, page, "# SYNOPSIS")) {
		if !strings.HasPrefix(line, "**oci-mainpid "+cmd.Name()+"**") {
			continue
		}
		for _, f := range boldWords(line, "--[a-z-]+") {
			if !slices.Contains(flags, f) {
				t.Errorf("SYNOPSIS: %s has no %s", cmd.Name(), f)
			}
		}
	}
}

// TestGeneratorPage: oci-mainpid-generator(8) has the options of the usage.
func TestGeneratorPage(t *testing.T) {
	options := regexp.MustCompile(`--[a-z-]+`).FindAllString(generatorUsage, -1)
	options = append(options, "--help")
	slices.Sort(options)
	options = slices.Compact(options)
	if got := boldWords(definitions(readPage(t, "oci-mainpid-generator.8.md", "# OPTIONS")), "--[a-z-]+"); !slices.Equal(got, options) {
		t.Errorf("the page has %q, the program %q", got, options)
	}
}

// TestCheckPage: oci-mainpid.files(5) has every key of check --format=json.
func TestCheckPage(t *testing.T) {
	var keys []string
	for _, of := range []reflect.Type{reflect.TypeFor[report](), reflect.TypeFor[diagnosis.Point]()} {
		for i := range of.NumField() {
			key, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	if got := boldWords(definitions(readPage(t, "oci-mainpid.files.5.md", "# OUTPUT OF CHECK")), "[a-z_]+"); !slices.Equal(got, keys) {
		t.Errorf("the page has %q, check %q", got, keys)
	}
}
