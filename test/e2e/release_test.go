//go:build e2e

package e2e

import (
	"debug/buildinfo"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// programs are what a release has.
var programs = []string{"oci-mainpid-hook", "notify-mainpid", "oci-mainpid"}

// built is where make puts what it builds.
const built = "../../bin"

// modules returns the modules that a program is made of, and their versions, as
// go version -m prints them.
func modules(t *testing.T, program string) map[string]string {
	t.Helper()
	info, err := buildinfo.ReadFile(filepath.Join(built, program))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{"std": strings.Fields(info.GoVersion)[0]}
	for _, d := range info.Deps {
		m[d.Path] = d.Version
	}
	return m
}

// TestBillsOfMaterials: a program's bill names each module that the program is
// made of, and no other.
func TestBillsOfMaterials(t *testing.T) {
	if err := runMakefile("sbom"); err != nil {
		t.Fatal(err)
	}
	for _, program := range programs {
		var bill struct {
			BOMFormat  string
			Components []struct{ Name, Version, Type string }
		}
		data, err := os.ReadFile(filepath.Join(built, "sbom", program+".cdx.json"))
		if err == nil {
			err = json.Unmarshal(data, &bill)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, c := range bill.Components {
			got[c.Name] = c.Version
		}
		if want := modules(t, program); bill.BOMFormat != "CycloneDX" || !maps.Equal(got, want) {
			t.Errorf("%s: %s has %v, the program %v", program, bill.BOMFormat, got, want)
		}
	}
}

// TestCopyright: the packages' copyright file says under which license each
// module is that a program is made of.
func TestCopyright(t *testing.T) {
	if err := runMakefile("build"); err != nil {
		t.Fatal(err)
	}
	copyright, err := os.ReadFile("../../packaging/copyright")
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range programs {
		for module := range modules(t, program) {
			if !strings.Contains(string(copyright), "\nFiles: "+module+"/*\n") {
				t.Errorf("%s: nothing about %s", program, module)
			}
		}
	}
}
