package terminal

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"

	"oci-mainpid-hook/internal/printable"
)

// WriteJSON writes v as indented JSON. Strings keep their values, but what is not
// safe to show is written as \uXXXX.
func WriteJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, r := range string(text) + "\n" { // outside of strings, JSON is ASCII
		switch {
		case r == '\n' || printable.Safe(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	_, err = io.WriteString(w, b.String())
	return err
}
