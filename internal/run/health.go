package run

import (
	"time"

	"golang.org/x/sys/unix"
)

// health runs a container's health checks, which podman leaves to timers of systemd.
type health struct {
	r      *runner
	tick   <-chan time.Time
	result chan bool
	wait   time.Duration
}

// The times are podman's defaults, podman-run(1). Until the container is healthy for the
// first time, checks come faster.
const (
	healthInterval = 30 * time.Second
	healthFirst    = time.Second
)

func newHealth(r *runner) *health {
	return &health{r: r, result: make(chan bool, 1), wait: healthFirst}
}

// start begins with the checks, if they are asked for.
func (h *health) start() {
	if h.r.Health {
		h.tick = time.After(healthFirst / 4)
	}
}

func (h *health) timer() <-chan time.Time { return h.tick }

// check runs one check. Its result comes by the channel.
func (h *health) check() {
	h.tick = nil
	pid, done, err := h.r.children.start(h.r.command.podman("healthcheck", "run", h.r.command.name), h.r.podmanEnvironment(), nil)
	if err != nil {
		h.result <- false
		return
	}
	go func() {
		select {
		case w := <-done:
			h.result <- exitStatus(w) == 0
		case <-time.After(checkTime):
			unix.Kill(pid, unix.SIGKILL)
			<-done
			h.result <- false
		}
	}()
}

// next schedules the next check.
func (h *health) next() {
	if h.r.inside.Ready {
		h.wait = healthInterval
	}
	if h.r.stopping {
		return
	}
	h.tick = time.After(h.wait)
}
