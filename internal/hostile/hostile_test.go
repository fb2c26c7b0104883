package hostile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	for path, text := range map[string]string{
		"secret": "of root", "home/a/plain": "text", "home/large": strings.Repeat("x", 11),
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"link": "../secret", "dirlink": "..", "absolute": filepath.Join(dir, "secret"), "inside": "a/plain",
	} {
		if err := os.Symlink(target, filepath.Join(home, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(home, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	any := errors.New("any")
	for name, c := range map[string]struct {
		path string
		want error
	}{
		"a file":               {"a/plain", nil},
		"none":                 {"b", fs.ErrNotExist},
		"a link":               {"link", ErrLink},
		"an absolute link":     {"absolute", ErrLink},
		"a link that is fine":  {"inside", ErrLink},
		"below a link":         {"dirlink/secret", ErrLink},
		"above":                {"../secret", any},
		"too large":            {"large", ErrTooLarge},
		"a FIFO, no writer":    {"fifo", any},
		"a directory":          {"a", any},
		"the directory itself": {".", any},
	} {
		t.Run(name, func(t *testing.T) {
			done := make(chan error, 1)
			var b []byte
			go func() {
				var err error
				b, err = ReadFile(home, home+"/"+c.path, 10)
				done <- err
			}()
			select {
			case err := <-done:
				switch {
				case c.want == nil && (err != nil || string(b) != "text"):
					t.Errorf("%q, %v", b, err)
				case c.want == any && err == nil:
					t.Errorf("read %q", b)
				case c.want != nil && c.want != any && !errors.Is(err, c.want):
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				t.Error("blocks")
			}
		})
	}
	names, err := ReadDir(home, home+"/a", 10)
	if err != nil || !slices.Equal(names, []string{"plain"}) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := ReadDir(home, home+"/dirlink", 10); err == nil {
		t.Error("the directory behind a link is read")
	}
}
