package main

import (
	"fmt"
	"io"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/printable"
)

// unitField is the field of a log line that names the unit.
const unitField = "unit"

// newLog returns the log of the commands, which goes to standard error.
func newLog(stderr io.Writer) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(stderr)
	log.SetFormatter(lineFormatter{})
	return log
}

// lineFormatter writes a line for people: the program, the unit, the message.
type lineFormatter struct{}

// Format implements logrus.Formatter.
func (lineFormatter) Format(e *logrus.Entry) ([]byte, error) {
	text := e.Message
	if e.Level == logrus.WarnLevel {
		text = "warning: " + text
	}
	if unit, ok := e.Data[unitField]; ok {
		text = fmt.Sprintf("%v: %s", unit, text)
	}
	return []byte("oci-mainpid: " + printable.Clean(text) + "\n"), nil
}

// addLogFlags adds the flags that say what is logged, and how.
func addLogFlags(cmd *cobra.Command, log *logrus.Logger) {
	flags := cmd.PersistentFlags()
	flags.BoolFunc("verbose", "the same as --log-level=debug; check also shows the points that are ok", func(value string) error {
		if value == "true" {
			log.SetLevel(logrus.DebugLevel)
		}
		return nil
	})
	flags.Func("log-level", "log messages of this `LEVEL` and graver ones: error, warning, info (the default) or debug", func(value string) error {
		level, ok := map[string]logrus.Level{"error": logrus.ErrorLevel, "warning": logrus.WarnLevel, "info": logrus.InfoLevel, "debug": logrus.DebugLevel}[value]
		if !ok {
			return fmt.Errorf("%q is none of error, warning, info, debug", value)
		}
		log.SetLevel(level)
		return nil
	})
	flags.Func("log-format", "`FORMAT` of the log on standard error is text (the default) or json", func(value string) error {
		switch value {
		case "text":
			log.SetFormatter(lineFormatter{})
		case "json":
			log.SetFormatter(&logrus.JSONFormatter{})
		default:
			return fmt.Errorf("%q is neither text nor json", value)
		}
		return nil
	})
	mustRegister(cmd, "log-level", "error", "warning", "info", "debug")
	mustRegister(cmd, "log-format", "text", "json")
}
