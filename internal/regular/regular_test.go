package regular

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

func TestReadBelow(t *testing.T) {
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
				b, err = ReadBelow(home, home+"/"+c.path, 10)
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
	names, err := ListBelow(home, home+"/a", 10)
	if err != nil || !slices.Equal(names, []string{"plain"}) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := ListBelow(home, home+"/dirlink", 10); err == nil {
		t.Error("the directory behind a link is read")
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"file": "text", "empty": "", "just": strings.Repeat("x", 10), "large": strings.Repeat("x", 11)} {
		if err := os.WriteFile(path(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("file", path("link")), os.Symlink("/dev/null", path("masked")), unix.Mkfifo(path("fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path, text string
		want       error
	}{
		"a file":                   {path("file"), "text", nil},
		"an empty file":            {path("empty"), "", nil},
		"a link to a file":         {path("link"), "text", nil},
		"a link to /dev/null":      {path("masked"), "", nil},
		"as large as it may be":    {path("just"), strings.Repeat("x", 10), nil},
		"too large":                {path("large"), "", ErrTooLarge},
		"none":                     {path("b"), "", fs.ErrNotExist},
		"a directory":              {dir, "", unix.EISDIR},
		"a FIFO, no writer":        {path("fifo"), "", ErrNotRegular},
		"a device that never ends": {"/dev/zero", "", ErrNotRegular},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Read(c.path, 10)
			if string(b) != c.text || !errors.Is(err, c.want) || c.want != nil && !strings.Contains(err.Error(), c.path) {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}
