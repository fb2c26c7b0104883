package status

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"oci-mainpid-hook/internal/terminal"
)

// WriteTable writes the services as a table, which fits 80 columns.
func WriteTable(o *terminal.Output, services []Service, now time.Time) {
	if len(services) == 0 {
		o.Printf("No unit runs its container as a user. See: oci-mainpid generate --help\n")
		return
	}
	table := terminal.Table{Columns: []terminal.Column{
		{Title: "UNIT", Least: 12}, {Title: "USER", Least: 6}, {Title: "CGROUP"}, {Title: "STATE", Least: 8},
		{Title: "MAIN PID", Right: true}, {Title: "CONMON", Right: true}, {Title: "CONTAINER", Least: 8},
		{Title: "SINCE"}, {Title: "RESTARTS", Right: true},
	}}
	for _, s := range services {
		state, style := s.state()
		conmon, conmonStyle := s.conmon()
		container := "-"
		if s.Conmon != nil {
			container = terminal.Clean(s.Conmon.Container)
		}
		table.Add(
			terminal.Cell{Text: strings.TrimSuffix(terminal.Clean(s.Unit), ".service")},
			terminal.Cell{Text: orDash(terminal.Clean(s.User))},
			terminal.Cell{Text: orDash(s.Cgroup)},
			terminal.Cell{Text: state, Style: style},
			terminal.Cell{Text: number(s.MainPID)},
			terminal.Cell{Text: conmon, Style: conmonStyle},
			terminal.Cell{Text: container},
			terminal.Cell{Text: since(s.Since, now)},
			terminal.Cell{Text: strconv.Itoa(s.Restarts)},
		)
		if s.Conmon != nil && s.Conmon.Replaced {
			table.Note(terminal.Cell{Text: replacedText, Style: terminal.Faint})
		}
		if s.Inside != nil {
			table.Note(terminal.Cell{Text: terminal.Clean(s.Inside.String()), Style: terminal.Faint})
		}
		if n := len(s.Claiming); n > 0 {
			c := s.Claiming[0]
			text := fmt.Sprintf("a process of UID %d says that it is conmon of this unit's container (%d); anybody can say so", c.UID, c.PID)
			if n > 1 {
				text += fmt.Sprintf("; and %d more", n-1)
			}
			table.Note(terminal.Cell{Text: text, Style: terminal.Faint})
		}
		for _, text := range []string{s.Problem, s.LastError} {
			if text != "" {
				table.Note(terminal.Cell{Text: terminal.Clean(text), Style: terminal.Bad})
			}
		}
	}
	table.Write(o)
}

// replacedText is the note on a conmon whose file was replaced after its start.
const replacedText = "conmon was replaced since (package upgrade): the new one comes with the next start"

func (s Service) state() (string, terminal.Style) {
	switch {
	case s.LoadState != "loaded":
		return s.LoadState, terminal.Bad
	case s.ActiveState == "active":
		return s.SubState, terminal.Good
	case s.ActiveState == "failed":
		return "failed", terminal.Bad
	case s.ActiveState == "inactive":
		return "stopped", terminal.Faint
	}
	return s.SubState, terminal.Warn // activating, deactivating, reloading, …
}

// conmon returns a word on conmon for the table, and its style.
func (s Service) conmon() (string, terminal.Style) {
	switch {
	case s.Conmon == nil && s.Agrees != nil:
		return "none", terminal.Bad
	case s.Conmon == nil:
		return "-", terminal.Plain
	case s.Agrees == nil:
		return number(s.Conmon.PID), terminal.Plain
	case *s.Agrees:
		return "same", terminal.Good
	case s.Conmon.PID != s.MainPID:
		return number(s.Conmon.PID), terminal.Bad
	}
	return "wrong", terminal.Bad
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// since returns the time of day, or the date if that is not today.
func since(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	local := t.In(now.Location())
	if y, d := local.Year(), local.YearDay(); y == now.Year() && d == now.YearDay() {
		return local.Format("15:04:05")
	}
	if now.Sub(local) < 300*24*time.Hour {
		return local.Format("Jan 2")
	}
	return local.Format("2006-01")
}
