package manager

import (
	"reflect"
	"time"
)

// Properties are a unit's properties of all D-Bus interfaces. Each method returns zero
// for a property that is missing or has another type: systemd's versions differ.
type Properties map[string]any

// String returns a text.
func (p Properties) String(name string) string {
	s, _ := p[name].(string)
	return s
}

// Strings returns a list of texts.
func (p Properties) Strings(name string) []string {
	s, _ := p[name].([]string)
	return s
}

// Bool returns a truth value.
func (p Properties) Bool(name string) bool {
	b, _ := p[name].(bool)
	return b
}

// Uint returns a number that is not negative. ok is false if there is none.
func (p Properties) Uint(name string) (n uint64, ok bool) { return uintOf(p[name]) }

func uintOf(value any) (uint64, bool) {
	switch v := reflect.ValueOf(value); {
	case !v.IsValid():
	case v.CanUint():
		return v.Uint(), true
	case v.CanInt() && v.Int() >= 0:
		return uint64(v.Int()), true
	}
	return 0, false
}

// Time returns a point in time. It is zero for never.
func (p Properties) Time(name string) time.Time { return timeOf(p[name]) }

func timeOf(value any) time.Time {
	if usec, ok := uintOf(value); ok && usec > 0 && usec < 1<<62 {
		return time.UnixMicro(int64(usec))
	}
	return time.Time{}
}

// Monotonic returns a point in time on CLOCK_MONOTONIC. It is 0 for never.
func (p Properties) Monotonic(name string) time.Duration { return monotonicOf(p[name]) }

func monotonicOf(value any) time.Duration {
	if usec, ok := uintOf(value); ok && usec < 1<<52 {
		return time.Duration(usec) * time.Microsecond
	}
	return 0
}

// Commands returns the commands in a property such as ExecStart or ExecStartEx. Only
// the latter has flags.
func (p Properties) Commands(name string) []Command {
	list, _ := p[name].([][]any)
	var commands []Command
	for _, f := range list {
		if len(f) < 10 {
			continue
		}
		c := Command{
			Path:    stringOf(f[0]),
			Started: timeOf(f[3]), StartedMonotonic: monotonicOf(f[4]),
			Ended: timeOf(f[5]), EndedMonotonic: monotonicOf(f[6]),
			PID: intOf(f[7]), Code: intOf(f[8]), Status: intOf(f[9]),
		}
		c.Arguments, _ = f[1].([]string)
		c.Flags, _ = f[2].([]string)
		commands = append(commands, c)
	}
	return commands
}

func stringOf(value any) string {
	s, _ := value.(string)
	return s
}

func intOf(value any) int {
	n, _ := uintOf(value)
	return int(n)
}
