package terminal

import (
	"fmt"
	"io"
	"time"
)

// Progress shows on a terminal how much of a stream has been read. Elsewhere it shows
// nothing.
type Progress struct {
	io.Reader
	out         *Output
	title       string
	done, total int64
	shown       time.Time
}

// NewProgress returns a Progress of what is read from r. total is how many bytes that will
// be, about. Clear ends it.
func NewProgress(w io.Writer, title string, r io.Reader, total int64) *Progress {
	return &Progress{Reader: r, out: New(w), title: Clean(title), total: max(total, 1)}
}

// Read implements io.Reader.
func (p *Progress) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.done += int64(n)
	if p.out.Terminal && time.Since(p.shown) > 100*time.Millisecond {
		p.shown = time.Now()
		const width = 20
		full := int(min(p.done*width/p.total, width))
		bar := "####################"[:full] + "                    "[full:]
		p.out.Resize()
		p.out.Printf("\r%s\x1b[K", Fit(Bytes(p.done)+" of "+Bytes(p.total)+" ["+bar+"] "+p.title, p.out.Width-1))
	}
	return n, err
}

// Clear takes the progress off the terminal.
func (p *Progress) Clear() {
	if p.out.Terminal && !p.shown.IsZero() {
		p.out.Printf("\r\x1b[K")
	}
}

// Bytes returns a size with its unit, such as "2.0 GiB".
func Bytes(n int64) string {
	size, units := float64(n), []string{"KiB", "MiB", "GiB", "TiB"}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	for {
		if size /= 1024; size < 1024 || len(units) == 1 {
			return fmt.Sprintf("%.1f %s", size, units[0])
		}
		units = units[1:]
	}
}
