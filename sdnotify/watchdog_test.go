package sdnotify

import (
	"errors"
	"math"
	"os"
	"strconv"
	"testing"
	"time"
)

func TestWatchdogInterval(t *testing.T) {
	me, other := strconv.Itoa(os.Getpid()), strconv.Itoa(os.Getppid())
	const unset = "unset"
	for _, test := range []struct {
		name, usec, pid string
		want            time.Duration
		err             error
	}{
		{name: "of this process", usec: "20000000", pid: me, want: 20 * time.Second},
		{name: "of any process", usec: "1", pid: unset, want: time.Microsecond},
		{name: "longer than a Duration", usec: "18446744073709551", pid: me, want: math.MaxInt64},
		{name: "not set", usec: unset, pid: unset, err: ErrNoWatchdog},
		{name: "empty", usec: "", pid: me, err: ErrNoWatchdog},
		{name: "of another process", usec: "20000000", pid: other, err: ErrNoWatchdog},
		{name: "zero", usec: "0", pid: me, err: ErrInvalid},
		{name: "negative", usec: "-1", pid: me, err: ErrInvalid},
		{name: "not a number", usec: "20s", pid: me, err: ErrInvalid},
		{name: "too large", usec: "18446744073709551615", pid: me, err: ErrInvalid},
		{name: "PID not a number", usec: "20000000", pid: "me", err: ErrInvalid},
		{name: "PID empty", usec: "20000000", pid: "", err: ErrInvalid},
		{name: "PID zero", usec: "20000000", pid: "0", err: ErrInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range map[string]string{"WATCHDOG_USEC": test.usec, "WATCHDOG_PID": test.pid} {
				t.Setenv(name, value) // restores it afterwards
				if value == unset {
					os.Unsetenv(name)
				}
			}
			if got, err := WatchdogInterval(); got != test.want || !errors.Is(err, test.err) {
				t.Errorf("got %v, %v, want %v, %v", got, err, test.want, test.err)
			}
		})
	}
}
