//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	soakSteps = flag.Int("soak", 12, "how many `STEPS` TestSoak does")
	soakSeed  = flag.Uint64("soak-seed", 1, "the `SEED` that draws them; make soak has another one each time")
	soakFrom  = flag.Int("soak-from", 1, "the first `STEP` that is done")
	soakGoOn  = flag.Bool("soak-go-on", false, "put right what is wrong after a step, and go on")
)

// soakDriver is the program that does the steps, see soak/main.go, and where it
// is on the machines; soakFleet is what it works on.
const (
	soakDriver = "/usr/local/lib/soak"
	soakFleet  = "/run/soak.json"
)

// fleetUnit is a unit of the fleet, as the driver reads it.
type fleetUnit struct {
	Name, User, Container, Restart, Family string

	Reload bool
}

type fleetUser struct {
	Name string
	UID  json.Number
	Home string
}

type fleet struct {
	Users []fleetUser
	Units []fleetUnit
}

// TestSoak starts, stops, restarts and kills units of all kinds by chance, while
// programs are killed at all times, systemd executes itself anew, or something
// runs out, and has three invariants checked after each step: the main process
// of an active unit is the conmon of its own container, which lives; an inactive
// unit has no process left; it has no file left in /run/oci-mainpid.
func TestSoak(t *testing.T) {
	t.Logf("-soak-seed=%d", *soakSeed)
	onFreshMachinesIn(t, onLast, func(m machine) {
		if err := install(m.box); err != nil {
			m.t.Fatal(err)
		}
		m.build(soakDriver, "./soak")
		f := m.fleet()
		text, err := json.Marshal(f)
		if err != nil {
			m.t.Fatal(err)
		}
		m.write(soakFleet, string(text))
		ctx, cancel := context.WithTimeout(interrupted, time.Minute+time.Duration(*soakSteps)*20*time.Second)
		defer cancel()
		cmd := m.box.Command(ctx, soakDriver, fmt.Sprint("-seed=", *soakSeed), fmt.Sprint("-from=", *soakFrom), fmt.Sprint("-steps=", *soakSteps), fmt.Sprint("-go-on=", *soakGoOn), soakFleet)
		var out bytes.Buffer
		cmd.Stdout = &out
		if path := os.Getenv("OCI_MAINPID_SOAK_LOG"); path != "" {
			log, err := os.Create(path + "." + string(m.box.Suite))
			if err != nil {
				m.t.Fatal(err)
			}
			defer log.Close()
			cmd.Stdout = io.MultiWriter(&out, log)
		}
		cmd.Stderr = cmd.Stdout
		err = cmd.Run()
		text = out.Bytes()
		if err != nil {
			// The driver has told what the steps before were.
			if at := bytes.Index(text, []byte("VIOLATION")); at >= 0 {
				text = text[at:]
			}
			m.t.Fatalf("%v; again with -soak-seed=%d\n%s", err, *soakSeed, text)
		}
		steps := *soakSteps - *soakFrom + 1
		_, summary, _ := strings.Cut(out.String(), fmt.Sprintf("\n%d steps in", steps))
		fmt.Printf("%s, -soak-seed=%d: %d steps in%s", m.box.Suite, *soakSeed, steps, summary)
	})
}

// build puts a program of this directory on the machine.
func (m machine) build(path, dir string) {
	m.t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(m.box.Root(), path), dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("build %s: %v\n%s", dir, err, out)
	}
}

// fleet makes units of all kinds, of several users.
func (m machine) fleet() fleet {
	m.t.Helper()
	// podman's locks do not survive the end of an ordinary user's last session,
	// which is logind's, not ours: see the README.
	m.write("/etc/systemd/logind.conf.d/soak.conf", "[Login]\nRemoveIPC=no\n")
	m.systemctl("kill", "--signal=HUP", "systemd-logind")
	var f fleet
	one, two, three := m.user(), m.user(), m.user()
	two.useRuntime("runc")
	for _, u := range []user{one, two, three} {
		f.Users = append(f.Users, fleetUser{u.name, json.Number(u.uid), u.home()})
	}
	add := func(u user, name, container, restart string) {
		f.Units = append(f.Units, fleetUnit{name, u.name, container, restart, name, false})
	}

	// limits bound each step of a unit, of the user's if one is named.
	limits := func(user, restart string) string {
		if user != "" {
			user = "User=" + user + "\n"
		}
		return "[Service]\n" + user + "Environment=SOAK_UNIT=%n\nTimeoutStartSec=40\nTimeoutStopSec=45\nRestartSec=100ms\nRestart=" + restart + "\n[Unit]\nStartLimitIntervalSec=0\n"
	}
	quadlet := func(u user, file, body, mode, restart string) {
		m.write(quadletDir+"/"+file, body+"\n"+inMode(mode)+limits(u.name, restart))
	}
	container := func(name string) string {
		return "[Container]\nImage=" + imageName + "\nContainerName=" + name + "\nEnvironment=SOAK_UNIT=%n\nStopTimeout=2\nNetwork=none\nExec=" + sleeping
	}
	reloads := func() { f.Units[len(f.Units)-1].Reload = true }
	for i, c := range []struct {
		user                user
		name, mode, restart string
	}{
		{one, "one-mixed", "mixed", "always"},
		{one, "one-service", "service", "on-failure"},
		{one, "one-user", "user", "no"},
		{two, "two-mixed", "mixed", "no"},
		{two, "two-user", "user", "always"},
		{two, "two-split", "service", "no"},
	} {
		how := []string{"beside", "swap", "beside", "swap", "swap", "no"}[i]
		quadlet(c.user, c.name+".container", container(c.name), c.mode+"\nReload="+how, c.restart)
		if add(c.user, c.name+".service", c.name, c.restart); how != "no" {
			reloads()
		}
	}
	quadlet(one, "one-network.container", strings.Replace(container("one-network"), "Network=none\n", "", 1), "mixed", "on-failure")
	add(one, "one-network.service", "one-network", "on-failure")
	quadlet(two, "two-template@.container", container("two-template-%i"), "mixed", "on-failure")
	for _, instance := range []string{"a", "b"} {
		add(two, "two-template@"+instance+".service", "two-template-"+instance, "on-failure")
	}
	// Where podman is killed again and again, no address of a bridge is free at last.
	quadlet(two, "two-kube.kube", "[Kube]\nNetwork=none\nYaml="+two.home()+"/pod.yml", "mixed", "on-failure")
	two.writeHome("pod.yml", podYAML("two-kube"))
	add(two, "two-kube.service", "-service", "on-failure")
	quadlet(three, "three.pod", "[Pod]\nPodName=three", "mixed", "on-failure")
	quadlet(three, "three-member.container", container("three-member")+"\nPod=three.pod", "mixed", "on-failure")
	add(three, "three-pod.service", "-infra", "on-failure")
	add(three, "three-member.service", "three-member", "on-failure")
	f.Units[len(f.Units)-1].Family = "three-pod.service"

	for _, c := range []struct {
		user                user
		name, mode, restart string
	}{
		{three, "hand-mixed", "mixed", "no"},
		{three, "hand-user", "user", "on-failure"},
		{three, "hand-service", "service", "always"},
		{two, "hand-runc-user", "user", "no"},
	} {
		s := service{mode: c.mode, container: c.name, options: "--network=none --stop-timeout=2 --env=SOAK_UNIT"}.withDefaults()
		file := unitDir + "/" + c.name + ".service"
		text := strings.Replace(s.text(), "[Install]", limits("", c.restart)+"[Install]", 1)
		m.write(file, strings.Replace(text, "ExecStopPost=", "ExecStopPost=-", 1))
		m.run("oci-mainpid", "generate", "--user="+c.user.name, "--cgroup="+c.mode, file)
		add(c.user, c.name+".service", c.name, c.restart)
	}
	m.systemctl("daemon-reload")
	return f
}
