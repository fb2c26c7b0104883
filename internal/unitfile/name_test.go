package unitfile

import "testing"

func TestIsPrefix(t *testing.T) {
	for name, want := range map[string]bool{
		"web.service": false, "web-.service": true, "web-a.service": false, "web-@.service": true,
		"web-@a.service": true, "web@a-.service": false, "-.service": true, `web\x2d.service`: false,
	} {
		if got := IsPrefix(name); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
