package unitfile

import (
	"fmt"
	"strings"
)

// unitNameMax is UNIT_NAME_MAX, systemd.unit(5).
const unitNameMax = 255

// CheckServiceName fails if systemd takes no service of that name, systemd.unit(5).
func CheckServiceName(name string) error {
	if !strings.HasSuffix(name, ".service") {
		return fmt.Errorf("%q is not the name of a service", name)
	}
	return CheckName(name)
}

// CheckName fails if systemd takes no unit of that name, of any type, systemd.unit(5).
func CheckName(name string) error {
	stem := Stem(name)
	valid := stem != "" && stem != name && stem[0] != '@' && len(name) <= unitNameMax
	for i := 0; i < len(stem); i++ {
		c := stem[i]
		valid = valid && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte(`:-_.\@`, c) >= 0)
	}
	if !valid {
		return fmt.Errorf("%q is not a valid unit name", name)
	}
	return nil
}

// CheckTargetName fails if systemd takes no target of that name.
func CheckTargetName(name string) error {
	if !strings.HasSuffix(name, ".target") || CheckName(name) != nil || IsTemplate(name) {
		return fmt.Errorf("%.80q is no target of systemd's; write a name such as multi-user.target", name)
	}
	return nil
}

// IsTemplate reports whether name is the name of a template, such as web@.service.
func IsTemplate(name string) bool { return strings.HasSuffix(Stem(name), "@") }

// TemplateOf returns the name of an instance's template: web@.service for
// web@a.service. For any other unit it returns name.
func TemplateOf(name string) string {
	base, _, ok := strings.Cut(Stem(name), "@")
	if !ok {
		return name
	}
	return base + "@" + name[len(Stem(name)):]
}

// Stem returns the name without its type: web for web.service.
func Stem(name string) string {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[:i]
	}
	return name
}

// IsPrefix reports whether systemd would apply the unit's drop-ins to other units,
// too: it applies web-.service.d to every web-*.service, systemd.unit(5).
func IsPrefix(name string) bool {
	prefix, _, _ := strings.Cut(Stem(name), "@")
	return strings.HasSuffix(prefix, "-")
}
