package terminal

import (
	"encoding/json"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/printable"
)

func TestWriteJSON(t *testing.T) {
	in := map[string]string{"a\u202e": "x\x1b\u009b\x7f\u2028\U000e0041 <漢>\n"}
	var b strings.Builder
	if err := WriteJSON(&b, in); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.String() {
		if r != '\n' && !printable.Safe(r) {
			t.Errorf("%q in %s", r, b.String())
		}
	}
	var out map[string]string
	if err := json.Unmarshal([]byte(b.String()), &out); err != nil || out["a\u202e"] != in["a\u202e"] {
		t.Errorf("%v %q", err, out)
	}
	if !strings.HasPrefix(b.String(), "{\n  \"a") || !strings.HasSuffix(b.String(), "}\n") {
		t.Errorf("%q", b.String())
	}
}
