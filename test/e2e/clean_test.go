//go:build e2e

package e2e

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/cleanup"
)

// leftBehind runs oci-mainpid clean, which succeeds.
func (m machine) leftBehind(args ...string) (items []cleanup.Item) {
	m.t.Helper()
	out := m.run(append([]string{"oci-mainpid", "clean", "--format=json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &items); err != nil || !strings.HasPrefix(out, "[") {
		m.t.Fatalf("%v: %s", err, out)
	}
	return items
}

// TestClean: what units have left behind is shown, then removed, and nothing else.
func TestClean(t *testing.T) {
	onFreshMachinesIn(t, onFirst, func(m machine) {
		if err := install(m.box); err != nil {
			t.Fatal(err)
		}
		m.subtest("what is shown is removed, what runs stays", testClean)
	})
}

func testClean(m machine) {
	if items := m.leftBehind(); len(items) != 0 {
		m.t.Fatalf("on a new machine: %+v", items)
	}
	web, db, other := m.user(), m.user(), m.user()
	site, gone := web.unit(service{mode: "mixed"}), db.unit(service{mode: "user", container: "gone"})
	site.start()
	gone.start()
	before := site.properties()

	// Of an earlier start, and of a service of the user's own manager with that name.
	ofStart := []string{"env", "PODMAN_SYSTEMD_UNIT=" + site.name, "INVOCATION_ID=" + strings.Repeat("0", 32)}
	web.run(web.as(append(ofStart, "podman", "run", "-d", "--name=old", "--network=none", imageName, "sleep", "1000")...)...)
	web.run(web.as("systemd-run", "--user", "--quiet", "--unit="+site.name, "--service-type=forking", "--setenv=PODMAN_SYSTEMD_UNIT="+site.name,
		"podman", "run", "-d", "--name=own", "--network=none", imageName, "sleep", "1000")...)
	// Another user's, who claims to be of the unit.
	m.systemctl("start", "user@"+other.uid)
	other.run(other.as(append(ofStart, "podman", "run", "-d", "--name=liar", "--network=none", imageName, "sleep", "1000")...)...)
	// Of a unit whose file is gone, and whose stop was killed.
	m.shell(`cp -a "$1" /run/kept; cp -a "$2" /run/kept-of-user; systemctl stop "$3"; cp -a /run/kept "$1"; cp -a /run/kept-of-user "$2"; rm "$4"; systemctl daemon-reload`,
		gone.dir(), gone.userDir(), gone.name, path.Join(unitDir, gone.name))

	dropin := func(unit string) string { return path.Join(unitDir, unit+".d", "50-oci-mainpid.conf") }
	manager := "user@" + db.uid + ".service"
	want := []cleanup.Item{
		{Kind: cleanup.Container, Unit: site.name, User: web.name, Name: "old", Why: "of an earlier start"},
		{Kind: cleanup.Directory, Unit: gone.name, User: db.name, Name: gone.dir(), Why: "the unit is gone"},
		{Kind: cleanup.Dropin, Unit: gone.name, User: db.name, Name: dropin(gone.name), Why: "the unit has no file"},
	}
	shown := m.leftBehind()
	for _, w := range want {
		if !slices.ContainsFunc(shown, func(i cleanup.Item) bool {
			return i.Kind == w.Kind && i.Unit == w.Unit && i.User == w.User && i.Name == w.Name && i.Why == w.Why && !i.Removed
		}) {
			m.t.Errorf("no %+v in %+v", w, shown)
		}
	}
	for _, i := range shown {
		if i.User == other.name || i.User == web.name && i.Name != "old" {
			m.t.Errorf("%+v", i)
		}
	}
	table := m.run("oci-mainpid", "clean")
	if !strings.HasPrefix(table, "KIND") || !strings.HasSuffix(table, "To remove this, type: oci-mainpid clean --yes") {
		m.t.Error(table)
	}
	if again := m.leftBehind(); len(again) != len(shown) {
		m.t.Errorf("without --yes it has changed %+v to %+v", shown, again)
	}
	for _, i := range m.leftBehind("--yes") {
		if !i.Removed || i.Error != "" {
			m.t.Errorf("%+v", i)
		}
	}
	m.leftBehind("--yes") // what was needed by what is removed
	if rest := m.leftBehind(); len(rest) != 0 {
		m.t.Errorf("left: %+v", rest)
	}
	for _, path := range []string{gone.dir(), gone.userDir(), "/run/oci-mainpid/users/" + db.uid, dropin(gone.name), dropin(manager)} {
		if m.try("test", "!", "-e", path).status != 0 {
			m.t.Errorf("%s is still there", path)
		}
	}
	if state := m.property(manager, "ActiveState"); state != "inactive" {
		m.t.Errorf("%s is %s", manager, state)
	}
	site.assertMainPIDIsConmon()
	site.assertStayed(before)
	if names := web.podman("ps", "--all", "--format={{.Names}}", "--sort=names"); names != "own\nweb" {
		m.t.Errorf("containers of %s: %s", web.name, names)
	}
	if names := other.podman("ps", "--format={{.Names}}"); names != "liar" {
		m.t.Errorf("containers of %s: %s", other.name, names)
	}
	if out := m.run("oci-mainpid", "clean"); out != "Nothing is left over." {
		m.t.Error(out)
	}
}
