package account

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func testAccounts() *Accounts { return &Accounts{Etc: "testdata/etc", Getent: "-"} }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestLookup(t *testing.T) {
	web := Account{"web", 1000, 1000, "/home/web", "/bin/sh"}
	tests := []struct {
		name, user string
		want       Account
		err        error
		text       string // a part of the error
	}{
		{"by name", "web", web, nil, ""},
		{"by UID", "1000", web, nil, ""},
		{"subordinate IDs by UID", "byuid", Account{"byuid", 1004, 1004, "/home/byuid", "/bin/sh"}, nil, ""},
		{"unknown name", "nobodyhere", Account{}, ErrUnknown, `user "nobodyhere" does not exist`},
		{"unknown UID", "4711", Account{}, ErrUnknown, `user "4711" does not exist`},
		{"no name", "", Account{}, ErrUnknown, ""},
		{"negative UID", "-1", Account{}, ErrUnknown, ""},
		{"UID too large", "99999999999", Account{}, ErrUnknown, ""},
		{"a specifier", "%i", Account{}, ErrUnknown, ""},
		{"root", "root", Account{}, ErrRoot, ""},
		{"root by UID", "0", Account{}, ErrRoot, ""},
		{"root by UID, spelt long", "000", Account{}, ErrRoot, ""},
		{"neither user nor group IDs", "bare", Account{"bare", 1002, 1002, "/home/bare", "/bin/sh"}, new(NoIDsError), "usermod --add-subuids 66191360-66256895 --add-subgids 66191360-66256895 bare"},
		{"no group IDs", "half", Account{"half", 1003, 1003, "/home/half", "/bin/sh"}, new(NoIDsError), "usermod --add-subgids 66256896-66322431 half"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			accounts := testAccounts()
			for range 2 { // the second answer is remembered
				got, err := accounts.Lookup(context.Background(), test.user)
				missing := new(NoIDsError)
				as := errors.As(err, &missing) && errors.As(test.err, new(*NoIDsError))
				if got != test.want || !as && !errors.Is(err, test.err) || err != nil && !strings.Contains(err.Error(), test.text) {
					t.Errorf("got %v, %v", got, err)
				}
			}
		})
	}
	if dir := web.RuntimeDir(); dir != "/run/user/1000" {
		t.Errorf("RuntimeDir: %s", dir)
	}
}

func TestLookupByNameService(t *testing.T) {
	etc := t.TempDir()
	write(t, etc+"/passwd", "local:x:1000:1000::/:/bin/sh\n")
	getent := etc + "/getent"
	write(t, getent, "#!/bin/sh\n[ \"$1\" = passwd ] || exit 1\ncase $2 in ldap|2000) echo ldap:x:2000:2000::/:/bin/sh;; loop) echo other:x:1:1::/:/;; *) exit 2;; esac\n")
	lookup := func(user string) (Account, error) {
		return (&Accounts{Etc: etc, Getent: getent}).Lookup(context.Background(), user)
	}

	missing := new(NoIDsError)
	if _, err := lookup("local"); !errors.As(err, &missing) || len(missing.Missing) != 2 {
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
	if a, err := lookup("loop"); !errors.Is(err, ErrUnknown) {
		t.Errorf("an answer about another user: %v, %v", a, err)
	}
}

// TestSlowNameService: many users that the name service does not answer for take
// no longer than one.
func TestSlowNameService(t *testing.T) {
	etc := t.TempDir()
	write(t, etc+"/passwd", "")
	write(t, etc+"/getent", "#!/bin/sh\nsleep 30 & wait\n") // the child keeps standard output open
	accounts := &Accounts{Etc: etc, Getent: filepath.Join(etc, "getent")}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	var names []string
	for i := range 33 {
		names = append(names, fmt.Sprintf("unknown%d", i))
	}
	start := time.Now()
	accounts.LookupAll(ctx, names)
	for _, name := range names {
		if _, err := accounts.Lookup(context.Background(), name); !errors.Is(err, ErrNoAnswer) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestFreeIDs(t *testing.T) {
	type test struct {
		subuid, subgid string
		uid            int
		want           string
	}
	cases := map[string]test{
		"the place of the UID":     {"", "", 1000, "66060288-66125823"},
		"another user's place":     {"", "", 1001, "66125824-66191359"},
		"others elsewhere":         {"web:100000:65536\ndb:165536:65536\n", "", 1000, "66060288-66125823"},
		"taken":                    {"x:66125823:1\n", "", 1000, "66125824-66191359"},
		"taken in the second file": {"", "x:66060287:2\ny:700000:65536\n", 1000, "66060289-66125824"},
		"above all is too high":    {"x:66060288:1\ny:1879000000:2416000000\n", "", 1000, "524288-589823"},
		"one too few between two":  {"x:524288:65537\ny:2147483647:2147483648\n", "z:655360:1878392831\n", 1000, ""},
		"between two":              {"x:524288:65537\ny:2147483647:2147483648\n", "z:655361:1878392830\n", 1000, "589825-655360"},
		"none":                     {"x:0:4294967295\n", "", 1000, ""},
	}
	if largest := uint32(1<<32 - 2); int(largest) > 0 { // not where int has 32 bits
		cases["the largest UID there can be"] = test{"", "", int(largest), "712376320-712441855"}
	}
	for name, c := range cases {
		etc := t.TempDir()
		write(t, etc+"/subuid", c.subuid)
		write(t, etc+"/subgid", c.subgid)
		if got := (&Accounts{Etc: etc}).FreeIDs(c.uid); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := (&Accounts{Etc: "/nonexistent"}).FreeIDs(1000); got != "66060288-66125823" {
		t.Errorf("no files: %s", got)
	}
}

func TestRemedy(t *testing.T) {
	for free, want := range map[string]string{
		"524288-589823": "usermod --add-subuids 524288-589823 --add-subgids 524288-589823 web",
		"":              "remove a range that nobody needs from /etc/subuid and /etc/subgid, then: usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST web",
	} {
		if got := (&NoIDsError{User: "web", Missing: []string{"user", "group"}, Free: free}).Remedy(); got != want {
			t.Errorf("free %q: %s", free, got)
		}
	}
}

func TestSharesIDsWith(t *testing.T) {
	etc := t.TempDir()
	write(t, etc+"/subuid", "web:100000:65536\n1000:300000:10\ndb:165536:65536\n")
	write(t, etc+"/subgid", "web:100000:65536\ndb:165535:65536\n")
	accounts := &Accounts{Etc: etc}
	if name := accounts.SharesIDsWith(Account{Name: "web", UID: 1000}); name != "db" {
		t.Errorf("web shares with %q", name)
	}
	write(t, etc+"/subgid", "web:100000:65536\n")
	if name := accounts.SharesIDsWith(Account{Name: "web", UID: 1000}); name != "" {
		t.Errorf("web shares with %q", name)
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\nbare:x:1001:1001::/:/bin/sh\ndb:x:1002:1002::/:/bin/sh\n",
		"subuid": "web:100000:65536\n1002:165536:65536\nroot:1:1\ngone:2:1\n",
	} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := (&Accounts{Etc: dir}).Names(); !slices.Equal(got, []string{"db", "web"}) {
		t.Errorf("%q", got)
	}
	if got := (&Accounts{Etc: dir + "/none"}).Names(); got != nil {
		t.Errorf("without files: %q", got)
	}
}
