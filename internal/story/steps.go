package story

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/manager"
)

// commands adds the events and steps of the unit's commands, as systemd remembers them.
func (t *teller) commands() {
	u := t.current
	if u == nil {
		return
	}
	for _, c := range u.Pre {
		t.command(c, "ExecStartPre=")
	}
	t.podman()
	for _, c := range u.Post {
		t.command(c, "ExecStartPost=")
	}
}

// maxCommand is how many characters of a command line are shown.
const maxCommand = 200

// podman adds the steps of the unit's podman and conmon.
func (t *teller) podman() {
	u := t.current
	var podman manager.Command
	for _, c := range u.Start {
		if c.StartedMonotonic >= t.start.zero && c.StartedMonotonic > 0 {
			podman = c
		}
	}
	switch {
	case podman.Path == "":
		// systemctl daemon-reload makes systemd forget the times of all commands.
	case t.conmons[podman.PID] || podman.StartedMonotonic%tick == 0:
		t.event(podman.StartedMonotonic-t.start.zero, fmt.Sprintf("conmon, process %d, was started by podman", podman.PID), None, 0)
		// systemd starts podman when the commands before it have ended.
		from := t.start.zero
		for _, c := range u.Pre {
			from = max(from, c.EndedMonotonic)
		}
		podman.PID, podman.StartedMonotonic, podman.EndedMonotonic = 0, from, 0
		t.step(stepName(podman), from-t.start.zero, t.podmanEnd(podman), false)
	default:
		from := podman.StartedMonotonic - t.start.zero
		t.event(from, fmt.Sprintf("started process %d: %.*s", podman.PID, maxCommand, strings.Join(podman.Arguments, " ")), None, 0)
		t.step(stepName(podman), from, t.podmanEnd(podman), false)
	}
	tells, ok := u.Notifier()
	if !ok || u.MainPID == 0 || u.MainPID == podman.PID {
		return
	}
	// systemd's time of a main process is the time when the process started.
	if conmon := u.MainStart - t.start.zero; conmon > 0 {
		t.event(conmon, fmt.Sprintf("conmon, process %d, was started by podman", u.MainPID), None, 0)
	}
	if tells.EndedMonotonic > 0 && tells.Status == 0 {
		t.event(tells.EndedMonotonic-t.start.zero, fmt.Sprintf("process %d as the main process: notify-mainpid, which is root, asked for it", u.MainPID), Took, 0)
	}
}

// tick is the unit of a process' start time in proc_pid_stat(5). systemd reads the start
// time of a main process there, unless it started the process itself. Then it knows
// the time to the microsecond.
const tick = 10 * time.Millisecond

// podmanEnd returns when podman ended, as far as systemd's state tells: when podman
// sent READY=1, or, if notify-mainpid runs beside podman, when notify-mainpid ended.
func (t *teller) podmanEnd(podman manager.Command) time.Duration {
	u := t.current
	end := u.ActiveEnter
	if len(u.Post) > 0 && u.Post[0].StartedMonotonic >= podman.StartedMonotonic {
		end = u.Post[0].StartedMonotonic
		if u.Env(handover.EnvResultFile) != "" {
			end = u.Post[0].EndedMonotonic
		}
	}
	if ended := podman.EndedMonotonic; ended > podman.StartedMonotonic && (end < podman.StartedMonotonic || ended < end) {
		end = ended
	}
	return end - t.start.zero
}

// command adds the step of a command of a setting, such as ExecStartPre, for which
// systemd waited.
func (t *teller) command(c manager.Command, setting string) {
	if c.StartedMonotonic < t.start.zero || c.StartedMonotonic == 0 {
		return
	}
	from, to := c.StartedMonotonic-t.start.zero, c.EndedMonotonic-t.start.zero
	failed := c.EndedMonotonic > 0 && (c.Status != 0 || c.Code > 1)
	t.step(stepName(c), from, to, failed)
	text := fmt.Sprintf("%s: %s%s", c.Name(), exitText(c.Code, c.Status), exitMeaning(c))
	switch {
	case !failed:
	case slices.Contains(c.Flags, "ignore-failure"):
		t.event(to, text+", which "+setting+"- allows", None, 0)
	case c.IsNotifyMainPID():
		t.event(to, text, Failed, rankExit)
	default:
		text = fmt.Sprintf("%s of %s failed: %s", c.Name(), setting, exitText(c.Code, c.Status))
		if line := t.lastLine[c.PID]; line != "" {
			text += fmt.Sprintf("; its last line is %q", line)
		}
		t.event(to, text, Failed, rankAuthors)
	}
}

// exitText puts si_code and si_status of waitid(2) into words.
func exitText(code, status int) string {
	switch code {
	case 1: // CLD_EXITED
		return fmt.Sprintf("exit status %d", status)
	case 2, 3: // CLD_KILLED, CLD_DUMPED
		return fmt.Sprintf("killed by signal %d", status)
	}
	return "ended"
}

// exitMeaning says what the exit status of a command means, if that is known.
func exitMeaning(c manager.Command) string {
	if c.NotifiesMainPID() && c.Code == 1 {
		switch c.Status {
		case 1:
			return ", refused"
		case 3:
			return ", no PID came from the hook"
		case 4:
			return ", systemd could not be told"
		}
	}
	return ""
}

func (t *teller) event(at time.Duration, text string, v Verdict, rank int) {
	t.Events = append(t.Events, Event{At: max(at, 0), Source: systemPID1, Text: text, Verdict: v, Derived: true, rank: rank})
}

func (t *teller) step(name string, from, to time.Duration, failed bool) {
	t.Steps = append(t.Steps, Step{Name: name, From: max(from, 0), To: to, Failed: failed})
}

// stepName returns a short name of a command: its program and subcommand.
func stepName(c manager.Command) string {
	name := c.Name()
	if len(c.Arguments) < 2 {
		return name
	}
	if c.IsNotifyMainPID() {
		if slices.Contains(c.Arguments, "--prepare") {
			return name + " --prepare"
		}
		return name
	}
	if name == "podman" {
		for _, a := range c.Arguments[1:] {
			if strings.HasPrefix(a, "-") {
				continue
			}
			name += " " + a
			if a != "pod" && a != "kube" && a != "container" {
				break
			}
		}
	}
	return name
}
