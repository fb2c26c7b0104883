package message

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// catalog returns the entries of the catalog by their IDs: the header's fields,
// and the text as the field "".
func catalog(t *testing.T) map[string]map[string]string {
	t.Helper()
	b, err := os.ReadFile("../../dist/catalog/oci-mainpid.catalog")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]map[string]string{}
	_, rest, _ := strings.Cut(string(b), "\n-- ")
	for _, entry := range strings.Split(rest, "\n-- ") {
		header, text, _ := strings.Cut(entry, "\n\n")
		lines := strings.Split(header, "\n")
		if entries[lines[0]] != nil {
			t.Errorf("%s is there twice", lines[0])
		}
		fields := map[string]string{"": text}
		for _, line := range lines[1:] {
			name, value, ok := strings.Cut(line, ": ")
			if !ok {
				t.Errorf("%s: %q is no field", lines[0], line)
			}
			fields[name] = value
		}
		entries[lines[0]] = fields
	}
	return entries
}

// TestCatalog: what the programs say and what the catalog explains are the same.
func TestCatalog(t *testing.T) {
	entries := catalog(t)
	id := regexp.MustCompile(`^[0-9a-f]{32}$`)
	for _, k := range Kinds {
		e := entries[k.ID]
		if e == nil || !id.MatchString(k.ID) {
			t.Errorf("no entry for %q of %s", k.ID, k.Program)
			continue
		}
		for _, field := range []string{"Subject", "Defined-By", "Support", "Documentation", ""} {
			if e[field] == "" {
				t.Errorf("%s: no %q", k.ID, field)
			}
		}
		if !slices.Contains(strings.Fields(e["Documentation"]), k.Documentation) {
			t.Errorf("%s: the catalog names %s, not %s", k.ID, e["Documentation"], k.Documentation)
		}
		// Only these fields are in an entry, whatever happened before it.
		for _, m := range regexp.MustCompile(`@(\w+)@`).FindAllStringSubmatch(e["Subject"]+e[""], -1) {
			switch {
			case m[1] == "UNIT" && k != GeneratorFailed && k != UnitWarning:
			case m[1] == "CONMON_PID" && (k == MainProcess || k == Refused):
			default:
				t.Errorf("%s: @%s@ may not be there", k.ID, m[1])
			}
		}
		for line := range strings.Lines(e[""]) {
			// journalctl puts three columns before it.
			if len(strings.TrimSuffix(line, "\n")) > 77 && !strings.HasPrefix(line, "    ") {
				t.Errorf("%s: longer than 80 columns: %s", k.ID, line)
			}
		}
		delete(entries, k.ID)
	}
	for id := range entries {
		t.Errorf("nobody says %s", id)
	}
}

// TestKinds: an ID is for one kind, and the page describes each.
func TestKinds(t *testing.T) {
	page, err := os.ReadFile("../../docs/oci-mainpid-messages.7.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, k := range Kinds {
		if seen[k.ID] {
			t.Errorf("%s is two kinds", k.ID)
		}
		seen[k.ID] = true
		if !strings.Contains(string(page), k.ID) {
			t.Errorf("oci-mainpid-messages(7) does not know %s of %s", k.ID, k.Program)
		}
	}
}
