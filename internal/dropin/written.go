package dropin

import (
	"path/filepath"
	"strings"

	"oci-mainpid-hook/internal/unitfile"
)

// Written is a drop-in that oci-mainpid generate wrote.
type Written struct {
	Unit, Path string
	Origin     Origin
}

// WrittenBelow returns the drop-ins of generate in a directory of unit files.
func WrittenBelow(dir string) ([]Written, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.service.d", Name))
	if err != nil {
		return nil, err
	}
	var all []Written
	for _, path := range paths {
		text, err := unitfile.Read(path)
		if err != nil {
			continue
		}
		if origin, err := ParseOrigin(text); err == nil && origin.Maker == Generate {
			all = append(all, Written{strings.TrimSuffix(filepath.Base(filepath.Dir(path)), ".d"), path, origin})
		}
	}
	return all, nil
}
