//go:build e2e && machines

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/internal/message"
	"oci-mainpid-hook/test/sandbox"
)

const fleetPage page = "docs/fleet.md"

// fleetBlock returns the block of docs/fleet.md that has the line.
func (m machine) fleetBlock(line string) string {
	m.t.Helper()
	blocks, err := fleetPage.blocks()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, b := range blocks {
		if strings.Contains("\n"+b.text, "\n"+line+"\n") {
			return b.text
		}
	}
	m.t.Fatalf("%s has no block with the line %q", fleetPage, line)
	return ""
}

// cable connects two machines, which get the addresses 10.77.0.1 and 10.77.0.2.
func cable(one, two machine) {
	one.t.Helper()
	// The process of this command on the host is in the machine's network.
	hold := two.box.Command(interrupted, "sh", "-c", "echo; cat")
	stdin, err := hold.StdinPipe()
	var stdout io.ReadCloser
	if err == nil {
		stdout, err = hold.StdoutPipe()
	}
	if err == nil {
		err = hold.Start()
	}
	if err == nil {
		_, err = stdout.Read(make([]byte, 1))
	}
	if err != nil {
		one.t.Fatal(err)
	}
	defer hold.Wait()
	defer stdin.Close()
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", hold.Process.Pid))
	if err != nil {
		one.t.Fatal(err)
	}
	defer network.Close()
	link := one.box.Command(interrupted, "ip", "link", "add", "fleet0", "type", "veth", "peer", "name", "fleet0", "netns", "/proc/self/fd/3")
	link.ExtraFiles = []*os.File{network}
	if out, err := link.CombinedOutput(); err != nil {
		one.t.Fatalf("%v: %s", err, out)
	}
	for i, m := range []machine{one, two} {
		m.run("ip", "address", "add", fmt.Sprintf("10.77.0.%d/24", i+1), "dev", "fleet0")
		m.run("ip", "link", "set", "fleet0", "up")
	}
}

// productTree is where a machine has what make install installs.
const productTree = "/var/tmp/product"

// on is the other machine in the hands of the same test.
func (m machine) on(other machine) machine { return machine{m.t, other.box} }

// productPackage makes a package of what make install installs, at a path of the
// machine.
func (m machine) productPackage(dest string) {
	m.t.Helper()
	const tree = productTree
	if err := runMake("install", m.box.Root()+tree); err != nil {
		m.t.Fatal(err)
	}
	script, err := os.ReadFile("../../packaging/after-install.sh")
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(tree+"/DEBIAN/postinst", string(script))
	m.write(tree+"/DEBIAN/control", "Package: oci-mainpid-hook\nVersion: 0\nArchitecture: "+m.run("dpkg", "--print-architecture")+"\nMaintainer: nobody\nDescription: the product\n")
	m.shell(`chmod 755 "$1/DEBIAN/postinst"; dpkg-deb --root-owner-group --build -Znone "$1" "$2"`, tree, dest)
}

// controller is a machine with ansible-playbook.
type controller struct{ machine }

// recap is what Ansible counts of a machine.
type recap struct{ changed, failed int }

// play runs ansible-playbook, and returns what it says of each machine. It must fail if a
// machine does.
func (c controller) play(args ...string) (said string, of map[string]recap) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(interrupted, onlineTimeout)
	defer cancel()
	args = append([]string{"env", "--chdir=/root/fleet", "ansible-playbook"}, args...)
	r := c.finish(ctx, c.box.Command(ctx, args[0], args[1:]...), "", args)
	of = map[string]recap{}
	failures := 0
	for _, found := range regexp.MustCompile(`(?m)^(\w+) +: ok=\d+ +changed=(\d+) +unreachable=0 +failed=(\d+)`).FindAllStringSubmatch(r.stdout, -1) {
		changed, _ := strconv.Atoi(found[2])
		failed, _ := strconv.Atoi(found[3])
		failures += failed
		of[found[1]] = recap{changed, failed}
	}
	if (r.status == 0) != (failures == 0) || len(of) == 0 {
		c.t.Fatal(r)
	}
	return r.stdout, of
}

// TestFleetAnsible: the role of Ansible over two machines, as docs/fleet.md says.
func TestFleetAnsible(t *testing.T) {
	t.Parallel()
	onFreshMachinesIn(t, onFirst, func(one machine) {
		box, err := sandbox.Boot(interrupted, sandbox.Config{Suite: one.box.Suite})
		if err != nil {
			one.t.Fatal(err)
		}
		one.t.Cleanup(func() { box.PowerOff(context.Background()) })
		two := machine{one.t, box}
		cable(one, two)
		both := map[string]machine{"one": one, "two": two}
		one.debian("openssh-server", "python3-apt", "ansible-core", "openssh-client")
		two.debian("openssh-server", "python3-apt")
		one.shell(`mkdir -p /root/fleet; ssh-keygen -q -t ed25519 -N "" -f /root/.ssh/id_ed25519`)
		for _, m := range both {
			m.write("/root/.ssh/authorized_keys", one.run("cat", "/root/.ssh/id_ed25519.pub")+"\n")
			m.systemctl("start", "ssh")
		}
		one.productPackage("/root/fleet/oci-mainpid-hook.deb")
		for name, text := range map[string]string{
			"ansible.cfg": "[defaults]\ninventory = hosts\nhost_key_checking = false\nroles_path = " + productTree + "/usr/share/ansible/roles\n[ssh_connection]\npipelining = true\n",
			"hosts":       "[web]\none ansible_host=10.77.0.1\ntwo ansible_host=10.77.0.2\n",
			"web.yml":     one.fleetBlock("  serial: 1"),
			"package.yml": "- hosts: web\n  roles:\n    - {role: oci_mainpid, oci_mainpid_package: oci-mainpid-hook.deb, oci_mainpid_users: [web], oci_mainpid_metrics: true, oci_mainpid_textfile_directory: /srv}\n",
			// Each machine may have lines of its own.
			"both.yml": `
- hosts: web
  gather_facts: false
  roles:
    - role: oci_mainpid
      vars:
        oci_mainpid_users: [web]
        oci_mainpid_quadlets:
          web.container: "{{ lookup('file', 'web.container') }}{{ more | default('') }}"
          db.container: "{{ lookup('file', 'web.container') | replace('beside', 'no') }}"
`,
		} {
			one.write("/root/fleet/"+name, text)
		}
		// release writes web.container, of which the versions differ in a line.
		release := func(line string) {
			one.write("/root/fleet/web.container", strings.NewReplacer(
				"docker.io/library/caddy:2.10", imageName, "Volume=/srv/web:/usr/share/caddy:ro", "Exec="+sleeping+"\n"+line, "User=web", "User=web\nTimeoutStartSec=30",
			).Replace(one.fleetBlock("Reload=beside")))
		}
		one.subtest("the package, the users and the metrics", func(m machine) {
			c := controller{m}
			if said, of := c.play("package.yml"); of["one"].changed < 3 || of["two"].changed < 3 {
				m.t.Error(said)
			}
			for name, machine := range both {
				if of := machine.try("oci-mainpid", "podman", "--user=web", "import", "--quiet", sandbox.BusyboxTar, imageName); of.status != 0 {
					m.t.Fatalf("%s: %v", name, of)
				}
				m.await("metrics on "+name, soon, func() bool {
					return strings.Contains(machine.try("cat", "/srv/oci-mainpid.prom").stdout, "# HELP oci_mainpid_unit_active ")
				})
			}
			if said, of := c.play("package.yml"); of["one"] != (recap{}) || of["two"] != (recap{}) {
				m.t.Errorf("the second run has changed something: %s", said)
			}
		})
		release("Environment=VERSION=1")
		controller{one}.play("web.yml")
		web := map[string]unit{}
		for name, m := range both {
			web[name] = unit{m.existingUser("web"), "web.service", "systemd-web"}
			web[name].assertMainPIDIsConmon()
		}
		version := func(name string) string {
			return web[name].podman("exec", "systemd-web", "sh", "-c", "echo $VERSION")
		}
		file := func(name string) string { return both[name].run("cat", quadletDir+"/web.container") }

		one.subtest("a second run changes nothing", func(m machine) {
			before := web["two"].properties()
			said, of := controller{m}.play("web.yml")
			if of["one"] != (recap{}) || of["two"] != (recap{}) {
				m.t.Error(said)
			}
			// It reports what oci-mainpid status says.
			if !regexp.MustCompile(`web +web +mixed +running +` + before["MainPID"] + ` +same`).MatchString(said) {
				m.t.Error(said)
			}
			web["two"].in(m.on(two)).assertStayed(before)
		})
		one.subtest("a dry run changes nothing", func(m machine) {
			release("Environment=VERSION=2")
			if said, of := (controller{m}).play("--check", "web.yml"); of["one"].changed == 0 || of["two"].changed == 0 || version("one") != "1" || strings.Contains(file("one"), "VERSION=2") {
				m.t.Error(said)
			}
		})
		one.subtest("one machine after the other is reloaded", func(m machine) {
			before := map[string]map[string]string{}
			for name, n := range web {
				before[name] = n.properties()
			}
			if said, of := (controller{m}).play("web.yml"); of["one"].changed == 0 || of["two"].changed == 0 {
				m.t.Error(said)
			}
			for name, n := range web {
				n = n.in(m.on(both[name]))
				p := n.assertMainPIDIsConmon()
				n.assertStayed(before[name])
				n.assertOneContainer()
				if version(name) != "2" || p.conmon == before[name]["MainPID"] {
					m.t.Errorf("%s has version %s, conmon %s", name, version(name), p.conmon)
				}
			}
			// said returns when systemd said that of web.service, in seconds.
			said := func(m machine, what string) float64 {
				log := m.journal("web.service", "--output=short-unix", "--grep=^"+what)
				at, _, _ := strings.Cut(log[strings.LastIndex(log, "\n")+1:], " ")
				seconds, err := strconv.ParseFloat(at, 64)
				if err != nil {
					m.t.Fatal(log)
				}
				return seconds
			}
			if done, begun := said(one, "Reloaded "), said(two, "Reloading "); done > begun {
				m.t.Errorf("one was reloaded at %f, and two began at %f", done, begun)
			}
		})
		one.subtest("a broken file is reported by its name, nothing is replaced, the other machine goes on", func(m machine) {
			release("Environment=VERSION=3")
			m.write("/root/fleet/host_vars/two.yml", `more: "\n[Container]\nImagge=wrong\n"`)
			before, text := web["two"].properties(), file("two")
			said, of := controller{m}.play("both.yml")
			if of["one"].failed != 0 || of["two"].failed != 1 || !strings.Contains(said, "nothing was replaced, because of web.container:") || !strings.Contains(said, "Imagge") {
				m.t.Error(said)
			}
			if file("two") != text || two.try("test", "-e", quadletDir+"/db.container").status == 0 {
				m.t.Error("files were replaced")
			}
			n := web["two"].in(m.on(two))
			n.assertStayed(before)
			if version("one") != "3" || version("two") != "2" || n.property("MainPID") != before["MainPID"] {
				m.t.Errorf("one has version %s, two %s", version("one"), version("two"))
			}
			if left := two.run("sh", "-c", "ls /tmp"); strings.Contains(left, "ansible.") {
				m.t.Errorf("left: %s", left)
			}
			m.run("rm", "-r", "/root/fleet/host_vars")
			said, of = controller{m}.play("both.yml")
			if of["one"] != (recap{}) || of["two"].changed == 0 || of["two"].failed != 0 || version("two") != "3" {
				m.t.Error(said)
			}
			unit{two.existingUser("web"), "db.service", "systemd-db"}.in(m.on(two)).assertMainPIDIsConmon()
		})
		one.subtest("a file that does not run reaches one machine, whose old container goes on", func(m machine) {
			before, text := web["one"].properties(), file("one")
			release("Exec=false")
			said, of := controller{m}.play("web.yml")
			if of["one"].failed != 1 || of["two"] != (recap{}) || !strings.Contains(said, "web.container: ") || !strings.Contains(said, "oci-mainpid explain web.service") {
				m.t.Error(said)
			}
			if file("one") != text || file("two") != text {
				m.t.Errorf("not as before: %s, %s", file("one"), file("two"))
			}
			n := web["one"].in(m.on(one))
			n.assertStayed(before)
			if n.assertMainPIDIsConmon().conmon != before["MainPID"] {
				m.t.Error("the old container has ended")
			}
			// The next start is with the file that works.
			n.systemctl("restart", "web")
			n.assertMainPIDIsConmon()
		})
	})
}

// monitoring is a machine with Debian's Prometheus, Alertmanager and node_exporter.
type monitoring struct{ machine }

const scrapeInterval = 5 * time.Second

// ask returns what Prometheus answers to a question of its API.
func (m monitoring) ask(call string, parameters url.Values, data any) {
	m.t.Helper()
	out := m.run("curl", "--silent", "--show-error", "http://localhost:9090/api/v1/"+call+"?"+parameters.Encode())
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Status != "success" {
		m.t.Fatalf("%s %v: %v\n%s", call, parameters, err, out)
	}
}

// alerts returns since when each alert fires for the unit, by its name.
func (m monitoring) alerts(unit string) map[string]time.Time {
	m.t.Helper()
	var data struct {
		Alerts []struct {
			Labels   map[string]string
			State    string
			ActiveAt time.Time
		}
	}
	m.ask("alerts", nil, &data)
	firing := map[string]time.Time{}
	for _, a := range data.Alerts {
		if a.State == "firing" && a.Labels["unit"] == unit {
			firing[a.Labels["alertname"]] = a.ActiveAt
		}
	}
	return firing
}

// TestFleetPrometheus: the alerts fire, and the dashboard has what to show.
func TestFleetPrometheus(t *testing.T) {
	t.Parallel()
	onFreshMachinesIn(t, onLast, func(box machine) {
		m := monitoring{box}
		if err := install(m.box); err != nil {
			m.t.Fatal(err)
		}
		m.debian("prometheus", "prometheus-alertmanager", "prometheus-node-exporter")
		m.write("/etc/prometheus/prometheus.yml", fmt.Sprintf(`
global: {scrape_interval: %v, evaluation_interval: 1s}
alerting: {alertmanagers: [{static_configs: [{targets: ["localhost:9093"]}]}]}
scrape_configs: [{job_name: node, static_configs: [{targets: ["localhost:9100"]}]}]
`, scrapeInterval)+m.fleetBlock("rule_files:"))
		m.run("promtool", "check", "config", "/etc/prometheus/prometheus.yml")
		// It would look for others, on a network that is not there.
		m.run("sed", "-i", `s/^ARGS=.*/ARGS="--cluster.listen-address="/`, "/etc/default/prometheus-alertmanager")
		m.systemctl("reset-failed")
		m.systemctl("restart", "prometheus", "prometheus-alertmanager")
		m.shell(m.fleetBlock("systemctl enable --now oci-mainpid-metrics.timer"))

		wrong := m.user().unit(service{mode: "mixed"})
		wrong.dropin(60, "[Service]\nExecStartPost=+/bin/sh -c 'sleep 1000 & systemd-notify MAINPID=$$!; sleep 0.2'\n")
		failed := m.user().unit(service{mode: "mixed"})
		refused := m.user().unit(service{mode: "mixed"})
		refused.dropin(60, "[Service]\nExecStartPre=+/bin/sh -c 'echo 1 >"+refused.mainPIDFile()+"'\n")
		good := m.user().unit(service{mode: "mixed"})
		m.systemctl("daemon-reload")
		good.start()
		failed.start()
		m.await("Prometheus has the metrics of the timer", 2*time.Minute, func() bool {
			var data struct{ Result []any }
			m.ask("query", url.Values{"query": {fmt.Sprintf("oci_mainpid_unit_active{unit=%q} == 1", failed.name)}}, &data)
			return len(data.Result) == 1
		})
		if firing := len(m.alerts(good.name)) + len(m.alerts(failed.name)); firing != 0 {
			m.t.Errorf("%d alerts of units that are well", firing)
		}
		// A refusal that a user makes up counts for nothing.
		good.must(good.feed("MESSAGE_ID="+message.Refused.ID+"\nUNIT="+good.name+"\nMESSAGE=refused\n", good.as("logger", "--journald")...))
		// The timer's own time is not what is tested.
		m.systemctl("stop", "oci-mainpid-metrics.timer")
		wrong.start()
		failed.podman("kill", "--signal=KILL", failed.container)
		failed.awaitState("failed")
		m.try("systemctl", "start", refused.name)
		m.systemctl("start", "oci-mainpid-metrics.service")
		before := time.Now()
		for alert, n := range map[string]unit{"OciMainpidWrongMainPID": wrong, "OciMainpidUnitFailed": failed, "OciMainpidPIDRefused": refused} {
			m.await(alert, 2*time.Minute, func() bool { return !m.alerts(n.name)[alert].IsZero() })
			since := m.alerts(n.name)[alert]
			// Whether Prometheus reached node_exporter is a sample of each scrape.
			var data struct {
				Result []struct{ Values [][2]any }
			}
			m.ask("query", url.Values{"query": {`up{job="node"}[10m]`}}, &data)
			scrapes := 0
			for _, v := range data.Result[0].Values {
				if at := time.UnixMilli(int64(v[0].(float64) * 1000)); at.After(before) && at.Before(since) {
					scrapes++
				}
			}
			m.t.Logf("%s: %v and %d scrapes after the metrics", alert, since.Sub(before).Round(time.Millisecond), scrapes)
			if scrapes > 2 {
				m.t.Errorf("%s fires after %d scrapes", alert, scrapes)
			}
			m.await(alert+" at Alertmanager", time.Minute, func() bool {
				out := m.run("curl", "--silent", "http://localhost:9093/api/v2/alerts?filter="+url.QueryEscape(fmt.Sprintf("alertname=%q", alert)))
				return strings.Contains(out, n.name) && strings.Contains(out, `"summary"`)
			})
		}
		if firing := m.alerts(good.name); len(firing) != 0 {
			m.t.Errorf("alerts of a unit that is well: %v", firing)
		}
		if said := m.run("journalctl", "--no-pager", "UNIT="+good.name, "MESSAGE_ID="+message.Refused.ID); !strings.Contains(said, "refused") {
			m.t.Errorf("the user's message is not in the journal: %s", said)
		}
		m.subtest("the dashboard", func(box machine) { monitoring{box}.dashboard() })
		m.subtest("the log", func(m machine) {
			if log := m.journal("oci-mainpid-metrics.service"); regexp.MustCompile(`(?m)^(Starting|Finished) |Deactivated|Consumed`).MatchString(log) {
				m.t.Errorf("each run is in the log:\n%s", log)
			}
		})
		m.subtest("a link in place of node_exporter's directory", func(m machine) {
			const precious = "/root/precious/oci-mainpid.prom"
			m.write(precious, "precious")
			m.run("setpriv", "--reuid=prometheus", "--regid=prometheus", "--clear-groups", "sh", "-ec",
				`cd /var/lib/prometheus; mv node-exporter old; ln -s /root/precious node-exporter; ! touch /run/oci-mainpid-metrics/new`)
			m.systemctl("start", "oci-mainpid-metrics.service")
			if got := m.run("cat", precious); got != "precious" {
				m.t.Errorf("root's file has become %q", got)
			}
		})
	})
}

// dashboard asks Prometheus what the dashboard would.
func (m monitoring) dashboard() {
	type variable struct{ Name, Definition string }
	var dashboard struct {
		Templating struct{ List []variable }
		Panels     []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(m.run("cat", "/usr/share/oci-mainpid/oci-mainpid.json")), &dashboard); err != nil {
		m.t.Fatal(err)
	}
	values := strings.NewReplacer("$instance", ".*", "$user", ".*")
	for _, v := range dashboard.Templating.List {
		if of := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(v.Definition); of != nil {
			var data []string
			m.ask("label/"+of[2]+"/values", url.Values{"match[]": {values.Replace(of[1])}}, &data)
			if len(data) == 0 {
				m.t.Errorf("variable %s has no value", v.Name)
			}
		}
	}
	queries := 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			queries++
			query := values.Replace(target.Expr)
			m.await(p.Title+": an answer to "+query, time.Minute, func() bool {
				var data struct{ Result []any }
				m.ask("query", url.Values{"query": {query}}, &data)
				return len(data.Result) > 0
			})
		}
	}
	if queries < 10 || len(dashboard.Templating.List) != 3 {
		m.t.Errorf("%d queries, %v", queries, dashboard.Templating)
	}
}
