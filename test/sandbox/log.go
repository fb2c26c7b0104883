package sandbox

import (
	"cmp"
	"io"
	"strings"

	"github.com/sirupsen/logrus"
)

// newLog returns a log of the steps of making or booting a machine of the suite.
// It writes one line a step to w, which may be nil.
func newLog(w io.Writer, suite Suite) *logrus.Entry {
	logger := logrus.New()
	logger.Out = cmp.Or(w, io.Discard)
	logger.Formatter = &logrus.TextFormatter{DisableTimestamp: true}
	return logger.WithField("suite", suite)
}

// A tail keeps the last lines of an output, for an error message.
type tail struct{ lines []string }

func (t *tail) add(line string) {
	const most = 20
	t.lines = append(t.lines, line)
	if len(t.lines) > most {
		t.lines = t.lines[1:]
	}
}

func (t *tail) String() string { return strings.Join(t.lines, "\n") }
