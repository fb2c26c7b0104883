package dropin

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"oci-mainpid-hook/internal/unitfile"
)

// Origin is the record in a drop-in's first line: which program made the drop-in,
// of which file, for which user and with which options.
type Origin struct {
	Maker Maker
	// Format is the version of the drop-in's format. It is 0 for a drop-in of a time
	// before records. Such a drop-in has a Maker and a Source only.
	Format int
	// Source is the path of the Quadlet file or unit file that the drop-in was made
	// of. It is empty for a drop-in of a user's manager.
	Source string
	// User and UID are the unit's user. They are empty and 0 for a unit that must not
	// start.
	User    string
	UID     int
	Options Options
}

// Maker is the program that made a drop-in.
type Maker string

const (
	// Generator is oci-mainpid-generator(8).
	Generator Maker = "oci-mainpid-generator"
	// Generate is the command oci-mainpid generate, oci-mainpid(8).
	Generate Maker = "oci-mainpid generate"
)

// format is the version that this package writes. Raise it whenever an old drop-in
// would do something else than a new one.
const format = 3

// ErrForeign says that a drop-in was not made by oci-mainpid.
var ErrForeign = errors.New("was not made by oci-mainpid")

const (
	madeBy = "# Made by "
	from   = " from " // before there were records
)

// String returns the record as the first line of a drop-in, without the newline.
func (o Origin) String() string {
	line := madeBy + string(o.Maker) + ": format=" + strconv.Itoa(format)
	if o.User != "" {
		line += " user=" + unitfile.Quote(o.User) + " uid=" + strconv.Itoa(o.UID)
		for _, k := range options {
			if value := k.get(o.Options); value != "" {
				line += " " + k.name + "=" + value
			}
		}
	}
	if o.Source != "" {
		line += " source=" + unitfile.Quote(o.Source)
	}
	return line
}

// Current reports whether this version of oci-mainpid writes drop-ins of this format.
func (o Origin) Current() bool { return o.Format == format }

// ParseOrigin reads the record in the first line of a drop-in. The error is
// ErrForeign if oci-mainpid did not make the drop-in, or says what is wrong with the
// record.
func ParseOrigin(text []byte) (Origin, error) {
	line, _, _ := strings.Cut(string(text), "\n")
	rest, ok := strings.CutPrefix(line, madeBy)
	if !ok {
		return Origin{}, ErrForeign
	}
	for _, maker := range []Maker{Generator, Generate} {
		record, ok := strings.CutPrefix(rest, string(maker))
		if !ok {
			continue
		}
		o := Origin{Maker: maker}
		if source, ok := strings.CutPrefix(record, from); ok {
			o.Source = source
			return o, nil
		}
		return o, o.parse(strings.TrimPrefix(record, ":"))
	}
	return Origin{}, ErrForeign
}

func (o *Origin) parse(record string) error {
	words, err := unitfile.SplitWords(record)
	if strings.ContainsRune(record, 0) {
		err = errors.New("has a NUL") // which no word can be quoted with
	}
	if err != nil {
		return fmt.Errorf("record %q: %w", unitfile.Clip(record), err)
	}
	for _, w := range words {
		key, value, _ := strings.Cut(w.Text, "=")
		switch key {
		case "format":
			o.Format, err = strconv.Atoi(value)
		case "user":
			o.User = value
		case "uid":
			o.UID, err = strconv.Atoi(value)
		case "source":
			o.Source = value
		default:
			// A newer version of oci-mainpid may have written other options.
			if err = o.Options.Set(key, value); errors.Is(err, ErrNoOption) {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("record %q: %w", unitfile.Clip(w.Text), err)
		}
	}
	return nil
}
