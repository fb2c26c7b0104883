package diagnosis

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/podmancmd"
	"oci-mainpid-hook/quadlet"
)

// storeOf returns the facts of a unit whose user has these files in their home, and the
// unit's podman.
func storeOf(t *testing.T, line string, files map[string]string) (UnitFacts, podmancmd.Podman) {
	t.Helper()
	saved := systemStorage
	systemStorage = nil
	t.Cleanup(func() { systemStorage = saved })
	home := t.TempDir()
	for name, text := range files {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	words := strings.Fields(line)
	p, ok := podmancmd.ParseArguments(words[0], words[1:])
	if !ok {
		t.Fatal(line)
	}
	return UnitFacts{Unit: &manager.Unit{}, Account: account.Account{Name: "web", UID: 1000}, Home: Home{Path: home}}, p
}

func TestNeedsOfStore(t *testing.T) {
	const storage = ".local/share/containers/storage/"
	const secrets = `{"nameToID":{"password":"0123456789abcdef01234567a"},"idToName":{"0123456789abcdef01234567a":"password"}}`
	const images = `[{"id":"1","names":["localhost/web:latest","docker.io/library/caddy:2"]}]`
	for name, c := range map[string]struct {
		line   string
		files  map[string]string
		change func(*UnitFacts)
		want   []string // a part of each need
	}{
		"nothing is needed":          {"podman run docker.io/library/caddy", nil, nil, nil},
		"a secret":                   {"podman run --secret password,type=env caddy", map[string]string{storage + "secrets/secrets.json": secrets}, nil, nil},
		"a secret by its ID":         {"podman run --secret=0123456789ab caddy", map[string]string{storage + "secrets/secrets.json": secrets}, nil, nil},
		"a secret that is not there": {"podman run --secret key caddy", map[string]string{storage + "secrets/secrets.json": secrets}, nil, []string{"the secret key is not there for web"}},
		"no secrets at all":          {"podman run --secret key,mode=0400 --secret other caddy", nil, nil, []string{"the secret key is", "the secret other is"}},
		"secrets that are no JSON":   {"podman run --secret key caddy", map[string]string{storage + "secrets/secrets.json": "{"}, nil, nil},
		"secrets that are large":     {"podman run --secret key caddy", map[string]string{storage + "secrets/secrets.json": strings.Repeat(" ", maxStoreFile+1)}, nil, nil},
		"secrets by a link":          {"podman run --secret key caddy", map[string]string{storage + "secrets/secrets.json": "-> /etc/shadow"}, nil, nil},
		"a link on the way":          {"podman run --secret key caddy", map[string]string{".local": "-> /root"}, nil, nil},
		"a store elsewhere":          {"podman run --secret key caddy", map[string]string{".config/containers/storage.conf": "[storage]\n"}, nil, nil},
		"a drop-in of the user's":    {"podman run --secret key caddy", map[string]string{".config/containers/storage.conf.d/x.conf": "[storage]\n"}, nil, nil},
		"a store by the environment": {"podman run --secret key caddy", nil, func(u *UnitFacts) { u.Unit.Environment = []string{"XDG_DATA_HOME=/srv"} }, nil},
		"a store by an option":       {"podman --root=/srv run --secret key caddy", nil, nil, nil},
		"an image":                   {"podman run localhost/web", map[string]string{storage + "overlay-images/images.json": images}, nil, nil},
		"an image by its tag":        {"podman run --pull=never docker.io/library/caddy:2", map[string]string{storage + "overlay-images/images.json": images}, nil, nil},
		"an image that root has":     {"podman run localhost/other:1", map[string]string{storage + "overlay-images/images.json": images}, nil, []string{"the image localhost/other:1 is not there for web"}},
		"an image never to pull":     {"podman run --pull=never docker.io/library/caddy", map[string]string{storage + "overlay-images/images.json": images}, nil, []string{"the image docker.io/library/caddy is not there"}},
		"an image to build":          {"podman run localhost/other", nil, func(u *UnitFacts) { u.Unit.After = []string{"other-build.service"} }, nil},
		"images that are no JSON":    {"podman run localhost/other", map[string]string{storage + "overlay-images/images.json": "{"}, nil, nil},
		"a network": {"podman run --network front caddy", map[string]string{storage + "networks/front.json": "{}"}, func(u *UnitFacts) {
			u.Dropin.Planned = &quadlet.Decision{Networks: []string{"front", "back"}}
		}, []string{"the network back is not there"}},
	} {
		t.Run(name, func(t *testing.T) {
			u, p := storeOf(t, c.line, c.files)
			if c.change != nil {
				c.change(&u)
			}
			var found, fixes []string
			u.needsOfStore(func(text, fix string) { found, fixes = append(found, text), append(fixes, fix) }, p, []podmancmd.Podman{p})
			if len(found) != len(c.want) {
				t.Fatalf("%q, want %q", found, c.want)
			}
			for i, want := range c.want {
				if !strings.Contains(found[i], want) || !strings.Contains(fixes[i], "oci-mainpid podman --user=web ") {
					t.Errorf("%s: %s", found[i], fixes[i])
				}
			}
		})
	}
	// What the unit makes itself is not missing.
	u, p := storeOf(t, "podman run --secret key --network front localhost/x", nil)
	u.Dropin.Planned = &quadlet.Decision{Networks: []string{"front"}}
	commands := []podmancmd.Podman{p}
	for _, line := range []string{"secret create key /k", "network create front", "build ."} {
		made, ok := podmancmd.ParseArguments("podman", strings.Fields(line))
		if !ok {
			t.Fatal(line)
		}
		commands = append(commands, made)
	}
	u.needsOfStore(func(text, _ string) { t.Error(text) }, p, commands)
}

// TestStoreOfAnEnemy: the worst that fits into a file costs root's check little.
func TestStoreOfAnEnemy(t *testing.T) {
	const storage = ".local/share/containers/storage/"
	for name, text := range map[string]string{
		"many images":   "[" + strings.Repeat("{},", maxStoreFile/3-1) + "{}]",
		"many names":    `[{"names":[` + strings.Repeat(`"",`, maxStoreFile/3-10) + `""]}]`,
		"deeply nested": strings.Repeat("[", maxStoreFile),
		"many secrets":  `{"nameToID":{` + strings.Repeat(`"":"",`, maxStoreFile/6-10) + `"":""}}`,
	} {
		file := "overlay-images/images.json"
		if name == "many secrets" {
			file = "secrets/secrets.json"
		}
		u, p := storeOf(t, "podman run --secret key localhost/x", map[string]string{storage + file: text})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		u.needsOfStore(func(string, string) {}, p, []podmancmd.Podman{p})
		runtime.ReadMemStats(&after)
		if cost := (after.TotalAlloc - before.TotalAlloc) >> 20; cost > 64 {
			t.Errorf("%s: %d MiB", name, cost)
		} else {
			t.Logf("%s: %d MiB", name, cost)
		}
	}
}

func TestElsewhere(t *testing.T) {
	for text, want := range map[string]bool{
		"[storage]\ndriver = \"overlay\"\ngraphroot = \"/var/lib/containers/storage\"\n# rootless_storage_path = \"$HOME/x\"\n": false,
		"additionalimagestores = [\n]\n":                   false,
		"  rootless_storage_path = \"/srv/$UID\"\n":        true,
		"additionalimagestores = [\n\"/srv/images\",\n]\n": true,
		"imagestore = \"\"\n":                              false,
	} {
		if got := elsewhere.MatchString(text); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}

func TestSources(t *testing.T) {
	var got []string
	for _, value := range []string{"type=bind,source=/srv/a,target=/a", "type=bind,src=/srv/b,dst=/b", "type=volume,source=x,target=/x", "type=tmpfs,destination=/t"} {
		got = append(got, bindSource(value))
	}
	for _, line := range []string{"run oci-archive:/srv/x.tar:tag", "run dir:/srv/x", "run localhost/x:tag", "run --rootfs /srv/r", "pull dir:/srv/x"} {
		p, _ := podmancmd.ParseArguments("podman", strings.Fields(line))
		got = append(got, imageFile(p))
	}
	if want := []string{"/srv/a", "/srv/b", "", "", "/srv/x.tar", "/srv/x", "", "", ""}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
