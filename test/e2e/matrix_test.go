//go:build e2e

package e2e

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	matrixCells = flag.Int("matrix", 8, "how many `CELLS` of the matrix to try, drawn by chance and dealt out to the stacks; 0 for all")
	matrixSeed  = flag.Uint64("matrix-seed", uint64(time.Now().UnixNano()), "the `SEED` that draws them")
)

// cell is one combination of what a unit can be.
type cell struct {
	kind, mode, notify, runtime, podman string
}

func (c cell) String() string {
	return strings.Join([]string{c.kind, c.mode, c.notify, c.runtime, c.podman}, " ")
}

const (
	firstPodman = "first"
	laterPodman = "later"
)

// allCells are all combinations.
func allCells() []cell {
	var all []cell
	for _, kind := range []string{"service", "container", "template", "socket", "pod", "kube"} {
		for _, mode := range []string{"mixed", "service", "user"} {
			for _, notify := range []string{"conmon", "container", "healthy"} {
				for _, runtime := range []string{"crun", "runc"} {
					for _, podman := range []string{firstPodman, laterPodman} {
						all = append(all, cell{kind, mode, notify, runtime, podman})
					}
				}
			}
		}
	}
	return all
}

// leftOut says why a combination makes no sense, "" for one that does.
func (c cell) leftOut() string {
	switch {
	case c.kind == "pod" && c.notify != "conmon":
		return "a pod unit has no Notify=: its infra container neither notifies nor has a health check"
	case c.kind == "kube" && c.notify != "conmon":
		return "READY=1 of a kube unit comes from podman for the service container, which has no program of its own to send it and no health check"
	case (c.kind == "pod" || c.kind == "kube") && c.mode == "service":
		return "podman puts pods into a control group of their own, not into the unit's: refused, with Cgroup=mixed named"
	case c.mode == "user" && c.notify != "conmon":
		return "READY=1 would come from outside the unit's control group and be lost: refused, with Cgroup=mixed named"
	case c.mode == "service" && c.notify == "healthy" && c.runtime == "crun":
		return "health checks start in the user's tree, from which crun may not enter the unit's: warned of"
	}
	return ""
}

// TestMatrix crosses the kinds of units with all that can be chosen for them.
func TestMatrix(t *testing.T) {
	var cells []cell
	reasons := map[string]int{}
	for _, c := range allCells() {
		if reason := c.leftOut(); reason != "" {
			reasons[reason]++
		} else {
			cells = append(cells, c)
		}
	}
	total := len(cells)
	if n := *matrixCells; n > 0 && n < total {
		rand.New(rand.NewPCG(*matrixSeed, 0)).Shuffle(total, func(i, j int) { cells[i], cells[j] = cells[j], cells[i] })
		cells = cells[:n]
		t.Logf("%d of %d cells, -matrix-seed=%d", n, total, *matrixSeed)
	}
	for reason, n := range reasons {
		t.Logf("left out, %d combinations: %s", n, reason)
	}
	onStacks(t, func(m machine) {
		var table strings.Builder
		fmt.Fprintf(&table, "%-10s %-8s %-10s %-5s %-6s %s\n", "KIND", "CGROUP", "NOTIFY", "RUN", "PODMAN", m.box.Suite)
		good, tried := 0, 0
		for _, c := range cells {
			start := time.Now()
			result := "not run"
			m.share(c.String(), func(m machine) {
				tried++
				result = "FAILED"
				c.judge(m)
				if !m.t.Failed() {
					result = "ok"
					good++
				}
			})
			if result == "not run" {
				continue
			}
			fmt.Fprintf(&table, "%-10s %-8s %-10s %-5s %-6s %s %.1fs\n", c.kind, c.mode, c.notify, c.runtime, c.podman, result, time.Since(start).Seconds())
		}
		fmt.Printf("%s%d of %d cells hold on %s\n", table.String(), good, tried, m.box.Suite)
	})
}

// judge makes a unit of the combination and judges it.
func (c cell) judge(m machine) {
	m.t.Helper()
	u := m.user()
	u.useRuntime(c.runtime)
	if c.podman == laterPodman {
		u.systemctl("start", "user@"+u.uid)
		u.podman("unshare", "true")
	}
	o := judgement{}
	if c.mode == "service" && c.runtime == "crun" {
		o.noExec = noExecInService
	}
	n := c.unit(u, &o)
	n.start()
	switch c.kind {
	case "kube":
		n.container = n.serviceContainer()
	case "pod":
		n.container = n.podman("ps", "--filter=name=-infra", "--format={{.Names}}")
		n.await("the pod's container is up", soon, func() bool { return n.property("ActiveState") == "active" })
		n.systemctl("start", u.name+"-a.service")
	}
	n.judgeRunning(o)
	in := cmp.Or(o.execIn, n.container)
	n.podman("logs", in)
	if top := n.podman("top", in, "pid", "comm"); !strings.Contains(top, "COMMAND") {
		n.t.Errorf("podman top: %s", top)
	}
	n.stopAll(o)
	if c.kind == "pod" || c.kind == "kube" {
		u.assertNoPod()
	}
}

// unit makes the unit, and the files that it needs.
func (c cell) unit(u user, o *judgement) unit {
	u.t.Helper()
	section := owned + inMode(c.mode)
	text := map[string]string{
		"conmon":    sleeper,
		"container": listener + "Exec=" + guestPath + "\nNotify=yes\n",
		"healthy":   sleeper + "HealthCmd=/bin/true\nHealthInterval=1s\nNotify=healthy\n",
	}[c.notify]
	switch c.kind {
	case "service":
		s := service{mode: c.mode, container: u.name}
		switch c.notify {
		case "container":
			s.options = "--sdnotify=container --volume=" + guestPath + ":" + guestPath + ":ro"
			s.command = guestPath
		case "healthy":
			s.options = "--sdnotify=healthy --health-cmd=/bin/true --health-interval=1s"
		}
		return u.unit(s)
	case "container":
		u.quadlets(map[string]string{"NAME.container": text + section})
		return u.quadletUnit("NAME.service", "NAME")
	case "template":
		u.quadlets(map[string]string{"NAME@.container": strings.Replace(text, "ContainerName=NAME", "ContainerName=NAME-%i", 1) + section})
		return u.quadletUnit("NAME@one.service", "NAME-one")
	case "socket":
		socket := u.name + ".socket"
		u.write(unitDir+"/"+socket, fmt.Sprintf("[Socket]\nListenStream=/run/%s.sock\n", u.name))
		u.t.Cleanup(func() { u.try("systemctl", "stop", socket); u.run("rm", unitDir+"/"+socket) })
		u.quadlets(map[string]string{"NAME.container": text + section})
		o.others = []string{socket}
		u.systemctl("start", socket)
		return u.quadletUnit("NAME.service", "NAME")
	case "pod":
		u.quadlets(map[string]string{
			"NAME.pod":         "[Pod]\n" + section,
			"NAME-a.container": strings.Replace(sleeper, "ContainerName=NAME", "ContainerName=NAME-a", 1) + "Pod=NAME.pod\n" + owned,
		})
		o.execIn = u.name + "-a"
		return u.quadletUnit("NAME-pod.service", "")
	case "kube":
		u.quadlets(map[string]string{"NAME.kube": "[Kube]\nYaml=" + u.home() + "/pod.yml\n" + section})
		u.writeHome("pod.yml", podYAML(u.name))
		o.execIn = u.name + "-a"
		return u.quadletUnit("NAME.service", "")
	}
	u.t.Fatalf("no kind %s", c.kind)
	return unit{}
}

// TestMatrixIsLarge keeps the matrix what it promises.
func TestMatrixIsLarge(t *testing.T) {
	n := len(slices.DeleteFunc(allCells(), func(c cell) bool { return c.leftOut() != "" }))
	if n < 60 {
		t.Errorf("%d cells", n)
	}
	t.Logf("%d cells a stack", n)
}
