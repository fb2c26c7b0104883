package handover

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestRecord(t *testing.T) {
	h, mainPID, result := openHandover(t)
	if _, err := RecordBeside(result); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before it is written: %v", err)
	}
	want := Record{
		UID: 1000, Conmon: 4711, Start: 1 << 40, InvocationID: strings.Repeat("a", 32), ContainerID: strings.Repeat("b", 64), Container: "web",
		Cgroups: []string{"/user.slice/user-1000.slice/user@1000.service/user.slice/a=b.scope", "/x"},
	}
	if err := h.Record(want); err != nil {
		t.Fatal(err)
	}
	if got, err := RecordBeside(result); !reflect.DeepEqual(got, want) || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	assertFile(t, filepath.Join(filepath.Dir(result), "record"), 0o600, uint32(os.Geteuid()))
	// Prepare forgets an earlier start's; Forget removes it.
	if err := Prepare(mainPID, result, os.Geteuid()); err != nil {
		t.Fatal(err)
	}
	if _, err := RecordBeside(result); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Prepare: %v", err)
	}
	if err := Forget(mainPID, result); err != nil {
		t.Fatal(err)
	}
	if _, err := RecordBeside(result); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Forget: %v", err)
	}
}

func TestRecordRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"UID=1000\nCONMON=5\n":             "ends too early",
		"UID=1000\nEND\n":                  "names no user or no process",
		"UID=-1\nCONMON=5\nEND\n":          "names no user or no process",
		"UID=web\nCONMON=5\nEND\n":         "invalid syntax",
		"UID=1\nCONMON=5\nSTART=-1\nEND\n": "invalid syntax",
		"\x00\x00\x00":                     "ends too early",
	} {
		_, _, result := openHandover(t)
		path := filepath.Join(filepath.Dir(result), "record")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := RecordBeside(result); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
