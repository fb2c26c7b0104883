package handover

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/proc"
)

func native(pid uint32) string {
	return string(binary.NativeEndian.AppendUint32(nil, pid))
}

func TestParseMainPID(t *testing.T) {
	const incomplete, refused = -1, -2
	for _, c := range []struct {
		name, in string
		want     int
	}{
		{"text", "1234\n", 1234},
		{"text of four bytes", "123\n", 123},
		{"the largest", "4194303\n", 4194303},
		{"PID 1, which is for the verification to refuse", "1\n", 1},
		{"four bytes", native(1234), 1234},
		{"four bytes that look like text", native(0x00313233), 0x00313233},
		{"nothing yet", "", incomplete},
		{"no newline yet", "1234", incomplete},
		{"zero", "0\n", refused},
		{"four zero bytes", native(0), refused},
		{"negative", "-5\n", refused},
		{"plus", "+5\n", refused},
		{"larger than any PID", "4194304\n", refused},
		{"larger than any number", "99999999999999999999\n", refused},
		{"four bytes larger than any PID", native(4194304), refused},
		{"minus one in four bytes", native(0xffffffff), refused},
		{"only a newline", "\n", refused},
		{"two lines", "12\n34\n", refused},
		{"space", " 12\n", refused},
		{"carriage return", "12\r\n", refused},
		{"hexadecimal", "0x12\n", refused},
		{"underscore", "1_2\n", refused},
		{"text with NUL", "12\x00\n5", refused},
		{"three bytes", "\x01\x02\x00", refused},
		{"words", "conmon\n", refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseMainPID([]byte(c.in))
			switch {
			case err == nil && got == c.want:
			case c.want == incomplete && errors.Is(err, errIncomplete):
			case c.want == refused && err != nil && !errors.Is(err, errIncomplete):
			default:
				t.Errorf("%q: got %d, %v", c.in, got, err)
			}
		})
	}
}

func FuzzParseMainPID(f *testing.F) {
	f.Add([]byte("1234\n"))
	f.Add([]byte(native(1234)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if pid, err := parseMainPID(b); err == nil && (pid <= 0 || pid >= proc.MaxPID) {
			t.Errorf("%q: %d", b, pid)
		}
	})
}

func TestWriteMainPID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mainpid")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The offset, which the descriptor's owners share, does not count.
	if _, err := f.Seek(100, 0); err != nil {
		t.Fatal(err)
	}
	if err := WriteMainPID(f, 1234); err != nil {
		t.Fatal(err)
	}
	if err := WriteMainPID(f, 5); !errors.Is(err, ErrTaken) {
		t.Errorf("second container: %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "1234\n" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if err := WriteMainPID(full, 5); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("no space: %v", err)
	}
}
