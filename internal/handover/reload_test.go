package handover

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestReloadFiles: a reload changes the record and the mainpid file at once, or neither.
func TestReloadFiles(t *testing.T) {
	dir := t.TempDir()
	mainPIDFile, resultFile := filepath.Join(dir, "user", "mainpid"), filepath.Join(dir, "unit", "result")
	if _, err := OpenReload(mainPIDFile, resultFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without files: %v", err)
	}
	if err := Prepare(mainPIDFile, resultFile, os.Getuid()); err != nil {
		t.Fatal(err)
	}
	h, err := OpenHandover(mainPIDFile, resultFile)
	if err != nil {
		t.Fatal(err)
	}
	old := Record{UID: 1000, Conmon: 100, Container: "web", Cgroups: []string{"/a", "/b"}}
	if err := h.Record(old); err != nil {
		t.Fatal(err)
	}
	h.Close()
	conmon := func() int {
		t.Helper()
		r, err := RecordBeside(resultFile)
		if err != nil {
			t.Fatal(err)
		}
		return r.Conmon
	}
	for _, commit := range []bool{false, true} {
		if err := PrepareReload(mainPIDFile, resultFile, os.Getuid(), 0); err != nil {
			t.Fatal(err)
		}
		r, err := OpenReload(mainPIDFile, resultFile)
		if err != nil {
			t.Fatal(err)
		}
		if r.Written() {
			t.Error("written, though nobody wrote")
		}
		if err := os.WriteFile(NextFile(mainPIDFile), []byte("200\n"), 0); err != nil || !r.Written() {
			t.Errorf("not written: %v", err)
		}
		if commit {
			if err := r.Commit(Record{UID: 1000, Conmon: 200}); err != nil {
				t.Fatal(err)
			}
		}
		r.Close()
		if _, err := os.Stat(NextFile(mainPIDFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("commit %v: %v", commit, err)
		}
		if got, want := conmon(), map[bool]int{false: 100, true: 200}[commit]; got != want {
			t.Errorf("commit %v: conmon %d is recorded, not %d", commit, got, want)
		}
	}
	if b, _ := os.ReadFile(mainPIDFile); string(b) != "200\n" {
		t.Errorf("the mainpid file has %q", b)
	}
	if err := PrepareReload(mainPIDFile, resultFile, os.Getuid(), 0); err != nil {
		t.Fatal(err)
	}
	if err := Forget(mainPIDFile, resultFile); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"user", "unit"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
