package terminal

import (
	"fmt"
	"sync"
	"time"
)

// Steps is a line at the end of a terminal that says what goes on, and how long that
// has taken. On anything but a terminal it shows nothing.
type Steps struct {
	output *Output
	mutex  sync.Mutex
	text   string
	since  time.Time
	done   chan struct{}
}

// clearLine moves the cursor to the left and erases the line, console_codes(4).
const clearLine = "\r\x1b[K"

// NewSteps begins to show the steps.
func NewSteps(o *Output) *Steps {
	p := &Steps{output: o, done: make(chan struct{})}
	if o.Terminal {
		go func() {
			for ticker := time.NewTicker(time.Second); ; {
				select {
				case <-ticker.C:
					p.Say("")
				case <-p.done:
					ticker.Stop()
					return
				}
			}
		}()
	}
	return p
}

// Say shows what goes on, "" for the same as before. The text must be clean.
func (p *Steps) Say(text string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	select {
	case <-p.done:
		return
	default:
	}
	if text != "" {
		p.text, p.since = text, time.Now()
	}
	if p.output.Terminal && p.text != "" {
		p.output.Resize()
		seconds := fmt.Sprintf(" %d s", int(time.Since(p.since).Seconds()))
		p.output.Printf("%s%s%s", clearLine, Fit(p.text, p.output.Width-len(seconds)-1), p.output.Paint(Faint, seconds))
	}
}

// End takes the line away.
func (p *Steps) End() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	close(p.done)
	if p.output.Terminal && p.text != "" {
		p.output.Printf(clearLine)
	}
}
