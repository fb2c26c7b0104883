//go:build e2e

package e2e

import (
	"flag"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

var (
	manyUnits  = flag.Int("many", 24, "how many `UNITS` TestManyAtOnce starts at once")
	manyRounds = flag.Int("many-rounds", 1, "how often; from 3 on the time that it takes is judged, too")
)

// manyUsers are the users of the units.
const manyUsers = 4

// mostRatio is how much longer the start of all units may take with the project
// than without.
const mostRatio = 1.05

// one at a time: the machines share the processors.
var manyMutex sync.Mutex

// TestManyAtOnce starts many Quadlet units of a few users at once, each of which
// must come up with its own conmon as the main process; and as many that are the
// same but for what the project does: neither the hook nor any of its lines in
// the drop-in, but those with which a unit is a user's. In the mode mixed such a
// unit works by itself, most of the time: conmon is in the unit, so that systemd
// takes podman's own MAINPID= and READY=1. What makes it fail now and then, that
// the first podman of a user makes the pause process, is done before, for both.
func TestManyAtOnce(t *testing.T) {
	onFreshMachines(t, func(m machine) {
		if err := install(m.box); err != nil {
			m.t.Fatal(err)
		}
		// The time of a start is podman's, which all run at once.
		m.write("/etc/systemd/system.conf.d/many.conf", "[Manager]\nDefaultTimeoutStartSec=15min\n")
		m.systemctl("daemon-reexec")
		var users []user
		for range manyUsers {
			users = append(users, m.user())
		}
		const with, without = "with", "without"
		for i := range *manyUnits {
			u := users[i%manyUsers]
			m.write(fmt.Sprintf("%s/%s-%d.container", quadletDir, with, i), fmt.Sprintf(
				"[Unit]\nPartOf=%[1]s.target\n[Container]\nImage=%[2]s\nContainerName=%[1]s-%[3]d\nNetwork=none\nExec=%[4]s\n[X-MainPID]\nUser=%[5]s\n",
				with, imageName, i, sleeping, u.name))
		}
		m.systemctl("daemon-reload")
		m.shell(`
			cd /run/systemd/generator
			for unit in "$1"-*.service; do
				case $unit in *@*) continue;; esac
				other=$2${unit#"$1"}
				sed "s/$1-/$2-/g; s/$1[.]target/$2.target/" "$unit" >"$3/$other"
				mkdir -p "$3/$other.d"
				sed "s/$1-/$2-/g" "$unit.d/50-oci-mainpid.conf" |
					grep -v -e notify-mainpid -e run-oci -e OCI_MAINPID -e ^OpenFile= -e ^UnsetEnvironment= >"$3/$other.d/50-user.conf"
			done
			for set in "$1" "$2"; do
				{ echo [Unit]; for i in $(seq 0 $(($4 - 1))); do echo "Wants=$set-$i.service"; done; } >"$3/$set.target"
			done
			systemctl daemon-reload`, with, without, unitDir, strconv.Itoa(*manyUnits))
		const hook = "/usr/share/containers/oci/hooks.d/oci-mainpid-hook.json"

		manyMutex.Lock()
		defer manyMutex.Unlock()
		took := map[string][]time.Duration{}
		for range *manyRounds {
			for _, set := range []string{with, without} {
				for _, u := range users {
					u.systemctl("start", "user@"+u.uid)
					u.podman("unshare", "true")
				}
				if set == without {
					m.run("mv", hook, "/run")
				}
				start := time.Now()
				m.systemctl("start", "--no-block", set+".target")
				m.await(set+".target is active, and so are its units", 15*time.Minute, func() bool {
					return m.try("systemctl", "is-active", "--quiet", set+".target").status == 0
				})
				took[set] = append(took[set], time.Since(start))
				if set == without {
					m.run("mv", "/run/oci-mainpid-hook.json", hook)
				}
				m.assertAllConmon(set)
				m.systemctl("stop", "--no-block", set+".target", set+"-*.service")
				m.await(set+" has stopped", 15*time.Minute, func() bool {
					return m.run("systemctl", "list-units", "--no-legend", "--plain", "--state=active,activating,deactivating", set+"-*.service") == ""
				})
			}
		}
		a, b := median(took[with]), median(took[without])
		ratio := float64(a) / float64(b)
		fmt.Printf("%s: %d units at once, %d times: with the project %v, without %v (medians), %.3f times; %v %v\n", m.box.Suite, *manyUnits, *manyRounds, a.Round(time.Millisecond), b.Round(time.Millisecond), ratio, took[with], took[without])
		if *manyRounds >= 3 && ratio > mostRatio {
			m.t.Errorf("%d units take %.3f times as long as without the project, not at most %.2f times", *manyUnits, ratio, mostRatio)
		}
		if left := m.run("ls", "/run/oci-mainpid"); left != "" {
			m.t.Errorf("files are left: %s", left)
		}
	})
}

// assertAllConmon checks that all units of a set are active, and that the main
// process of each is the conmon of its container.
func (m machine) assertAllConmon(set string) {
	m.t.Helper()
	out := m.shell(`
		for i in $(seq 0 $(($2 - 1))); do
			pid=$(systemctl show --value --property=MainPID "$1-$i.service")
			state=$(systemctl is-active "$1-$i.service" || :)
			name=$(tr '\0' '\n' <"/proc/$pid/cmdline" | sed -n '/^-n$/{n;p;q}')
			[ "$state $name $(readlink "/proc/$pid/exe")" = "active $1-$i /usr/bin/conmon" ] || echo "$1-$i: $state, main PID $pid, $name"
		done`, set, strconv.Itoa(*manyUnits))
	if out != "" {
		m.t.Errorf("not all run:\n%s", out)
	}
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}
