package status

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// metric is a metric that WritePrometheus writes.
type metric struct {
	name, kind, help string
	// value returns the value, and whether the service has one.
	value func(Service) (float64, bool)
}

var metrics = []metric{
	{"oci_mainpid_unit_active", "gauge", "Whether systemd has the unit as active.",
		func(s Service) (float64, bool) { return truth(s.ActiveState == "active"), true }},
	{"oci_mainpid_unit_failed", "gauge", "Whether the unit has failed.",
		func(s Service) (float64, bool) { return truth(s.ActiveState == "failed"), true }},
	{"oci_mainpid_unit_state_change_timestamp_seconds", "gauge", "When the unit got into its state.",
		func(s Service) (float64, bool) { return seconds(s.Since) }},
	{"oci_mainpid_unit_restarts", "gauge", "How often systemd has restarted the unit by itself, since somebody did.",
		func(s Service) (float64, bool) { return float64(s.Restarts), true }},
	{"oci_mainpid_unit_main_pid_agrees", "gauge", "Whether systemd's main process is podman's conmon, of an active unit.",
		func(s Service) (float64, bool) {
			if s.Agrees == nil {
				return 0, false
			}
			return truth(*s.Agrees), true
		}},
	{"oci_mainpid_unit_refused_timestamp_seconds", "gauge", "When notify-mainpid last refused the PID of a main process, since the boot.",
		func(s Service) (float64, bool) { return seconds(s.Refused) }},
	{"oci_mainpid_unit_left_over_containers", "gauge", "Containers of earlier starts that still run.",
		func(s Service) (float64, bool) { return float64(len(s.LeftOver)), s.Cgroup != "" }},
}

// seconds returns the seconds since the epoch, and whether there is a time.
func seconds(t *time.Time) (float64, bool) {
	if t == nil {
		return 0, false
	}
	return float64(t.UnixMicro()) / 1e6, true
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// WritePrometheus writes the services in Prometheus' text format, for
// node_exporter's textfile collector.
func WritePrometheus(w io.Writer, services []Service) error {
	var b strings.Builder
	for _, m := range metrics {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %[1]s %[3]s\n", m.name, m.help, m.kind)
		for _, s := range services {
			if v, ok := m.value(s); ok {
				fmt.Fprintf(&b, "%s{unit=%s,user=%s,cgroup=%s} %s\n", m.name, label(s.Unit), label(s.User), label(s.Cgroup), decimal(v))
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// label quotes the value of a label. Bytes that are not UTF-8 are replaced, because
// the format has no way to write them.
func label(value string) string {
	value = strings.ToValidUTF8(value, "\ufffd")
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value) + `"`
}

// decimal writes without an exponent.
func decimal(v float64) string {
	text := fmt.Sprintf("%.6f", v)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}
