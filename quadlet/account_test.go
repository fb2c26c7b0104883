package quadlet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testAccounts() *Accounts { return &Accounts{Etc: "testdata/etc", Getent: "-"} }

func TestLookup(t *testing.T) {
	tests := []struct {
		name, user string
		want       Account
		err        string
	}{
		{"by name", "web", Account{"web", 1000}, ""},
		{"by UID", "1001", Account{"db", 1001}, ""},
		{"subordinate IDs by UID", "byuid", Account{"byuid", 1004}, ""},
		{"unknown name", "nobodyhere", Account{}, `user "nobodyhere" does not exist`},
		{"unknown UID", "4711", Account{}, `user "4711" does not exist`},
		{"no name", "", Account{}, `user "" does not exist`},
		{"negative UID", "-1", Account{}, "does not exist"},
		{"UID too large", "99999999999", Account{}, "does not exist"},
		{"root", "root", Account{}, "is root"},
		{"root by UID", "0", Account{}, "is root"},
		{"root by UID, spelt long", "000", Account{}, "is root"},
		{"a range of no IDs", "bare", Account{}, "usermod --add-subuids 365536-431071 bare"},
		{"no group IDs", "half", Account{}, "usermod --add-subgids 365536-431071 half"},
		{"a specifier", "%i", Account{}, "specifiers are not expanded"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			accounts := testAccounts()
			for range 2 { // the second answer is remembered
				got, err := accounts.Lookup(test.user)
				if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, %v", got, err)
				}
			}
		})
	}
	if dir := (Account{"web", 1000}).RuntimeDir(); dir != "/run/user/1000" {
		t.Errorf("RuntimeDir: %s", dir)
	}
}

func TestLookupElsewhere(t *testing.T) {
	etc := t.TempDir()
	write(t, etc+"/passwd", "local:x:1000:1000::/:/bin/sh\n")
	getent := etc + "/getent"
	write(t, getent, "#!/bin/sh\n[ \"$1\" = passwd ] || exit 1\ncase $2 in ldap|2000) echo ldap:x:2000:2000::/:/bin/sh;; loop) echo other:x:1:1::/:/;; *) exit 2;; esac\n")
	if err := os.Chmod(getent, 0o755); err != nil {
		t.Fatal(err)
	}
	lookup := func(user string) (Account, error) { return (&Accounts{Etc: etc, Getent: getent}).Lookup(user) }

	if _, err := lookup("local"); err == nil || !strings.Contains(err.Error(), "no subordinate user IDs") {
		t.Errorf("without /etc/subuid: %v", err)
	}
	write(t, etc+"/nsswitch.conf", "passwd: files sss # subid: files\nsubid:\tfiles\n")
	if _, err := lookup("local"); err == nil {
		t.Error("subid: files is no other source")
	}
	write(t, etc+"/nsswitch.conf", "passwd: files sss\nsubid:\tsss\n")
	for _, user := range []string{"local", "ldap", "2000"} {
		if _, err := lookup(user); err != nil {
			t.Errorf("%s: %v", user, err)
		}
	}
	if a, err := lookup("loop"); err == nil {
		t.Errorf("an answer about somebody else: %v", a)
	}
}

func TestFreeIDs(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "subuid")
		write(t, path, text)
		return path
	}
	for name, c := range map[string]struct {
		files []string
		want  string
	}{
		"none":            {[]string{file(""), "/nonexistent"}, "100000-165535"},
		"others":          {[]string{file("web:100000:65536\ndb:165536:65536\n")}, "231072-296607"},
		"the second file": {[]string{file("web:100000:65536\n"), file("web:100000:65536\nx:500000:65536\n")}, "565536-631071"},
	} {
		if got := FreeIDs(c.files...); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}
