package status

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPage: oci-mainpid.files(5) has every key and every metric, and no other.
func TestPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/oci-mainpid.files.5.md")
	if err != nil {
		t.Fatal(err)
	}
	section := func(heading string) string {
		_, rest, ok := strings.Cut(string(text), "\n# "+heading+"\n")
		if !ok {
			t.Fatalf("no section %s", heading)
		}
		rest, _, _ = strings.Cut(rest, "\n# ")
		return rest
	}
	// defined returns the bold words of the lines that a definition follows.
	defined := func(text string) (words []string) {
		for _, line := range regexp.MustCompile(`(?m)^(\*\*.*)\n:`).FindAllStringSubmatch(text, -1) {
			for _, w := range regexp.MustCompile(`\*\*([^*]+)\*\*`).FindAllStringSubmatch(line[1], -1) {
				words = append(words, w[1])
			}
		}
		slices.Sort(words)
		return words
	}
	var keys []string
	for _, of := range []reflect.Type{reflect.TypeFor[Service](), reflect.TypeFor[Conmon](), reflect.TypeFor[Claim]()} {
		for i := range of.NumField() {
			if key, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ","); key != "" && key != "-" {
				keys = append(keys, key)
			}
		}
	}
	slices.Sort(keys)
	if got := defined(section("OUTPUT OF STATUS")); !slices.Equal(got, keys) {
		t.Errorf("the page has %q, status %q", got, keys)
	}
	var names []string
	for _, m := range metrics {
		names = append(names, m.name)
		if !strings.Contains(section("METRICS"), "**"+m.name+"**\n:   "+m.kind+": ") {
			t.Errorf("the page does not say that %s is a %s", m.name, m.kind)
		}
	}
	slices.Sort(names)
	if got := defined(section("METRICS")); !slices.Equal(got, names) {
		t.Errorf("the page has %q, status %q", got, names)
	}
}
