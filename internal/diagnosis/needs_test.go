package diagnosis

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/account"
)

func TestHostPorts(t *testing.T) {
	for value, want := range map[string][]string{
		"80":                    nil, // podman chooses
		"8080:80":               {"8080/tcp"},
		"127.0.0.1:53:5353/udp": {"53/udp"},
		"[::1]:80:8080":         {"80/tcp"},
		"80-82:8080-8082":       {"80/tcp", "81/tcp", "82/tcp"},
		"127.0.0.1::80":         nil,
		"1-65535:1-65535":       nil, // too many
		"9-1:9-1":               nil,
		"x:80":                  nil,
	} {
		if got := hostPorts(value); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", value, got, want)
		}
	}
}

func TestAddListening(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue
   0: 00000000:0050 00000000:0000 0A 00000000:00000000
   1: 0100007F:1F90 0100007F:ABCD 01 00000000:00000000
   2: short
`
	ports := map[string]bool{}
	addListening(ports, strings.NewReader(table), "tcp")
	if len(ports) != 1 || !ports["80/tcp"] {
		t.Errorf("%v", ports)
	}
}

func TestNeedsFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root, whom the files must belong to")
	}
	// A directory that nobody but root can change.
	dir, err := os.MkdirTemp("/usr/local", "needs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	write := func(name string, dirMode, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for p, m := range map[string]os.FileMode{path: mode, filepath.Dir(path): dirMode} {
			if err := os.Chmod(p, m); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		read       bool
		want       string
	}{
		{"all can read it", write("a/x", 0o755, 0o644), true, ""},
		{"a group can", write("b/x", 0o755, 0o640), true, ""},
		{"root's only", write("c/x", 0o755, 0o600), true, "is root's only: podman reads it as web"},
		{"root's only, to be mounted", write("d/x", 0o755, 0o600), false, ""},
		{"in a directory of root's only", write("e/x", 0o700, 0o644), false, "which only root may enter"},
		{"not there", filepath.Join(dir, "a/none"), false, "is not there"},
		{"a volume's name", "data", false, ""},
	} {
		u := UnitFacts{Account: account.Account{Name: "web"}}
		var found []string
		u.needsFile(func(text, fix string) { found = append(found, text) }, "the file", c.path, c.read)
		if got := strings.Join(found, "; "); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
