package sdnotify

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// ErrNoWatchdog says that the manager does not expect Watchdog from this process.
// WATCHDOG_USEC is not set, or WATCHDOG_PID has the PID of another process.
var ErrNoWatchdog = errors.New("the manager watches no watchdog of this process")

// WatchdogInterval returns the longest time that may pass between two Watchdogs, like
// sd_watchdog_enabled(3): the unit's WatchdogSec=. Send Watchdog twice as often. It
// fails with ErrNoWatchdog if there is nothing to send, and with ErrInvalid if
// WATCHDOG_USEC or WATCHDOG_PID is no positive number. It does not change the
// environment.
func WatchdogInterval() (time.Duration, error) {
	text := os.Getenv("WATCHDOG_USEC")
	if text == "" {
		return 0, ErrNoWatchdog
	}
	usec, err := strconv.ParseInt(text, 10, 64)
	if err != nil || usec <= 0 {
		return 0, fmt.Errorf("%w: WATCHDOG_USEC=%.40q", ErrInvalid, text)
	}
	if text, found := os.LookupEnv("WATCHDOG_PID"); found {
		pid, err := strconv.ParseInt(text, 10, 32)
		if err != nil || pid <= 0 {
			return 0, fmt.Errorf("%w: WATCHDOG_PID=%.40q", ErrInvalid, text)
		}
		if int(pid) != os.Getpid() {
			return 0, ErrNoWatchdog
		}
	}
	const longest = 1<<63 - 1
	if usec > longest/int64(time.Microsecond) {
		return longest, nil
	}
	return time.Duration(usec) * time.Microsecond, nil
}
