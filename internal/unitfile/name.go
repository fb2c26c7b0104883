package unitfile

import (
	"fmt"
	"strings"
)

// unitNameMax is UNIT_NAME_MAX, systemd.unit(5).
const unitNameMax = 255

// CheckServiceName fails for what systemd.unit(5) does not take for the name of
// a service.
func CheckServiceName(name string) error {
	stem, ok := strings.CutSuffix(name, ".service")
	if !ok {
		return fmt.Errorf("%q is not the name of a service", name)
	}
	valid := stem != "" && stem[0] != '@' && len(name) <= unitNameMax
	for i := 0; i < len(stem); i++ {
		c := stem[i]
		valid = valid && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte(`:-_.\@`, c) >= 0)
	}
	if !valid {
		return fmt.Errorf("%q is not a valid unit name", name)
	}
	return nil
}

// IsTemplate reports whether name is that of a template: web@.service.
func IsTemplate(name string) bool { return strings.HasSuffix(Stem(name), "@") }

// TemplateOf returns the template's name of an instance, web@.service of
// web@a.service, and the name itself of any other unit.
func TemplateOf(name string) string {
	base, _, ok := strings.Cut(Stem(name), "@")
	if !ok {
		return name
	}
	return base + "@" + name[len(Stem(name)):]
}

// Stem returns the name without its type, web of web.service.
func Stem(name string) string {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[:i]
	}
	return name
}

// IsPrefix reports whether the directory of the unit's drop-ins would count for
// other units too: those of web-.service.d apply to every web-*.service, see
// systemd.unit(5).
func IsPrefix(name string) bool {
	prefix, _, _ := strings.Cut(Stem(name), "@")
	return strings.HasSuffix(prefix, "-")
}
