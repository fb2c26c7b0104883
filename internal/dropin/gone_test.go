package dropin

import (
	"os"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/handover"
)

func TestGone(t *testing.T) {
	g := NewGone(`a\x2db.service`, handover.Record{UID: 1000}, nil, testPrograms)
	got := append(append(g.Text(), "\n---\n"...), g.UnitText()...)
	if *update {
		if err := os.WriteFile("testdata/gone.conf", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile("testdata/gone.conf"); err != nil || string(got) != string(want) {
		t.Errorf("%v:\n%s", err, got)
	}
	if o, err := ParseOrigin(g.Text()); err != nil || !o.IsGone() {
		t.Errorf("%+v, %v", o, err)
	}
	dir := t.TempDir()
	if err := g.WriteUnit(dir); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(dir + "/" + g.Unit); err != nil || string(text) != string(g.UnitText()) {
		t.Errorf("%v:\n%s", err, text)
	}
	if o := (Origin{Maker: Generator, Format: format, User: "web"}); o.IsGone() || strings.Contains(o.String(), "gone") {
		t.Errorf("%v", o)
	}
}
