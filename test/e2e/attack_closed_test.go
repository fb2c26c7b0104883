//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"path"
	"strconv"
	"strings"
	"time"
)

// The file systems and directories that systemd's generators work with, and where
// an administrator can put a generator in the place of an installed one.
const (
	generatorOutput    = "/run/systemd/generator"
	generatorOverrides = "/etc/systemd/system-generators"
)

// everyKind are Quadlet files of every kind, which are all the user's.
func everyKind() map[string]string {
	more := owned + "TimeoutStartSec=6\n"
	return map[string]string{
		"NAME.container":        sleeper + "Volume=NAME.volume:/data\nNetwork=NAME.network\n" + more,
		"NAME.volume":           "[Volume]\n" + more,
		"NAME.network":          "[Network]\n" + more,
		"NAME.image":            "[Image]\nImage=" + imageName + "\n" + more,
		"NAME.build":            "[Build]\nImageTag=localhost/NAME\nSetWorkingDirectory=/home/NAME\n" + more,
		"NAME.pod":              "[Pod]\nPodName=NAME-p\n" + more,
		"NAME-member.container": strings.Replace(sleeper, "ContainerName=NAME", "ContainerName=NAME-m", 1) + "Pod=NAME.pod\n" + more,
		"NAME-kube.kube":        "[Kube]\nYaml=/home/NAME/pod.yml\n" + more,
		"NAME-t@.container":     strings.Replace(sleeper, "ContainerName=NAME", "ContainerName=NAME-%i", 1) + more,
	}
}

// servicesOfEveryKind are what Quadlet makes of everyKind.
func servicesOfEveryKind(user string) []string {
	var all []string
	for _, suffix := range []string{"", "-volume", "-network", "-image", "-build", "-pod", "-member", "-kube", "-t@one"} {
		all = append(all, user+suffix+".service")
	}
	return all
}

// asRoot returns those of the services that systemd would start as root with a
// command of podman's.
func (m machine) asRoot(services ...string) (wrong []string) {
	m.t.Helper()
	out := m.run(append([]string{"systemctl", "show", "--property=Id,LoadState,User,ExecCondition,ExecStartPre,ExecStart,ExecStartPost,ExecStop,ExecStopPost", "--"}, services...)...)
	for _, block := range strings.Split(out, "\n\n") {
		p := map[string]string{}
		podman := false
		for line := range strings.Lines(block) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			p[name] = value
			podman = podman || strings.HasPrefix(name, "Exec") && strings.Contains(value, "podman ")
		}
		if user := p["User"]; podman && (user == "" || user == "root" || user == "0") {
			wrong = append(wrong, fmt.Sprintf("%s has User=%q and runs podman", p["Id"], user))
		}
	}
	return wrong
}

// rootsPodman returns what root's podman has: containers, with those of pods, images,
// volumes and networks.
func (m machine) rootsPodman() string {
	m.t.Helper()
	return m.shell(`
		cd /var/lib/containers/storage 2>/dev/null || exit 0
		ls -d overlay-containers/*/ overlay-images/*/ volumes/*/ /etc/containers/networks/*.json 2>/dev/null || :`)
}

// truncated returns the drop-ins of the user's units that are the beginning of
// what they were, which fewer has.
func (u user) truncated(whole string) []string {
	u.t.Helper()
	out := u.shell(`
		cd "$1"
		for f in "$3"*.service.d/*.conf "user@$4.service.d"/*.conf; do
			[ -e "$f" ] && [ -e "$2/$f" ] || continue
			size=$(stat -c %s "$f")
			if [ $size -lt $(stat -c %s "$2/$f") ] && cmp -s -n $size "$f" "$2/$f"; then echo "$f has $size bytes"; fi
		done`, generatorOutput, whole, u.name, u.uid)
	if out == "" {
		return nil
	}
	return strings.Split(out, "\n")
}

// samples returns some of the numbers from 1 to count: as many as there are seconds
// for each race, but not fewer than least.
func samples(count, least int) []int {
	n := min(count, max(least, int(raceTime.Seconds())))
	var all []int
	for i := range n {
		all = append(all, 1+i*count/n)
	}
	return all
}

// failClosed: whatever keeps the generator from its work, no unit of a user's is
// root's.
func (b battle) failClosed() {
	u := b.user()
	services := servicesOfEveryKind(u.name)
	u.writeHome("pod.yml", podYAML(u.name))
	u.writeHome("Containerfile", "FROM "+imageName+"\n")
	u.quadlets(everyKind())
	// Where /run is full, that is kept elsewhere.
	whole := "/var/tmp/" + u.name + "-whole"
	b.shell(`mkdir -p "$2"; cp -r "$1"/*.service.d "$2"`, generatorOutput, whole)
	b.t.Cleanup(func() { b.run("rm", "-rf", whole) })
	if n := b.shell(`ls -d "$1/$2"*.service.d | wc -l`, whole, u.name); n != strconv.Itoa(len(services)) {
		b.t.Fatalf("%s drop-ins of %d", n, len(services))
	}
	before := b.rootsPodman()
	// verdict looks at the units as systemd has them.
	verdict := func(f fight, moment string) (wrong []string) {
		u := u
		u.machine = f.machine
		for _, w := range append(f.asRoot(services...), u.truncated(whole)...) {
			wrong = append(wrong, moment+": "+w)
		}
		return wrong
	}
	// starts are judged by what root's podman has afterwards.
	starts := func(f fight, moment string) (wrong []string) {
		f.try(append([]string{"timeout", "60", "systemctl", "start"}, services...)...)
		if after := f.rootsPodman(); after != before {
			wrong = append(wrong, fmt.Sprintf("%s: root's podman had %q, has %q", moment, before, after))
		}
		f.try(append([]string{"systemctl", "kill", "--signal=KILL"}, services...)...)
		f.try(append([]string{"systemctl", "stop"}, services...)...)
		f.try(append([]string{"systemctl", "reset-failed"}, services...)...)
		return wrong
	}
	// restore has systemd read its units again with nothing in the way.
	restore := func(f fight) {
		f.systemctl("daemon-reload")
		if wrong := verdict(f, "restored"); len(wrong) > 0 {
			f.t.Fatal(wrong)
		}
	}

	b.fight("/run full to the last page at each moment of a daemon-reload", func(f fight) {
		defer restore(f)
		size := f.run("findmnt", "--noheadings", "--output=SIZE", "--bytes", "/run")
		defer f.run("mount", "-o", "remount,size="+size, "/run")
		// reload returns how many events there were. systemd refuses to reload with less
		// than 16 MiB; more would take longer to be taken.
		reload := func(from, to int) int {
			out := f.shell(`
				mount -o remount,size=$(($(df --output=used --block-size=1M /run | tail -n 1) + 20))m /run
				"$1" fill /run/full /run/systemd "$2" "$3" >/var/tmp/filled & filler=$!
				until [ -s /var/tmp/filled ]; do sleep 0.02; done
				timeout 100 systemctl daemon-reload 2>/dev/null || :
				kill $filler; wait $filler
				tail -n 1 /var/tmp/filled`, attacker, strconv.Itoa(from), strconv.Itoa(to))
			n, err := strconv.Atoi(out)
			if err != nil {
				f.t.Fatal(out)
			}
			return n
		}
		const never = 1 << 30
		count := reload(never, 0)
		f.t.Logf("%d events", count)
		if count < 20 {
			f.t.Fatalf("only %d events", count)
		}
		f.judge(verdict(f, "not full")...)
		for _, from := range samples(count, 5) {
			reload(from, 0)
			f.judge(verdict(f, fmt.Sprintf("full from event %d on", from))...)
			reload(from, from+count/5)
			f.judge(verdict(f, fmt.Sprintf("full from event %d to %d", from, from+count/5))...)
		}
		reload(1, 0)
		f.judge(starts(f, "full all the time")...)
	})
	b.fight("a name service that does not answer, and 33 users that are not known", func(f fight) {
		ghosts := map[string]string{}
		for i := range 33 {
			ghosts[fmt.Sprintf("NAME-ghost%d.container", i)] = sleeper + fmt.Sprintf("[Service]\nUser=NAME-ghost%d\n", i)
		}
		expand := strings.NewReplacer("NAME", u.name).Replace
		dir := path.Join(quadletDir, u.name+"-ghosts")
		for name, text := range ghosts {
			f.write(path.Join(dir, expand(name)), expand(text))
		}
		defer restore(f)
		defer f.run("rm", "-r", dir)
		// The C library asks nscd(8) first, where its socket is; it gives up after 5 s.
		f.run("systemd-run", "--quiet", "--collect", "--unit=mute", "--property=RuntimeDirectory=nscd", attacker, "mute", "/run/nscd/socket")
		defer f.run("systemctl", "stop", "mute")
		f.await("the name service does not answer", soon, func() bool {
			return f.try("timeout", "2", "getent", "passwd", "nobody-there").status == 124
		})
		begin := time.Now()
		f.try("systemctl", "daemon-reload")
		took := time.Since(begin)
		var wrong []string
		if took > 60*time.Second {
			wrong = append(wrong, fmt.Sprintf("systemd reloaded for %v, and then kills the generator", took.Round(time.Second)))
		}
		for _, s := range append(services, expand("NAME-ghost0.service"), expand("NAME-ghost32.service")) {
			if f.try("sh", "-c", `[ -e "$1/$2.d/50-oci-mainpid.conf" ] || [ -e "$1/${2%@*}@.service.d/50-oci-mainpid.conf" ]`, "sh", generatorOutput, s).status != 0 {
				wrong = append(wrong, s+" has no drop-in")
			}
		}
		wrong = append(wrong, verdict(f, "no answer")...)
		for i := range 33 {
			wrong = append(wrong, f.asRoot(fmt.Sprintf("%s-ghost%d.service", u.name, i))...)
		}
		if r := f.try("timeout", "40", "systemctl", "start", expand("NAME-ghost7.service")); r.status == 0 {
			wrong = append(wrong, "the unit of an unknown user started")
		}
		f.judgeAll(33, wrong...)
	})
	b.fight("the generator killed at each of its writes", func(f fight) {
		f.shell(`mkdir -p "$1"; ln -sf "$2" "$1/oci-mainpid-generator"`, generatorOverrides, attacker)
		defer restore(f)
		defer f.run("rm", generatorOverrides+"/oci-mainpid-generator")
		kill := func(at int) (changes, status int) {
			f.write(attackRun+"/generator.kill", strconv.Itoa(at))
			f.systemctl("daemon-reload")
			report := f.try("cat", generatorOutput+".late/attack.report").stdout
			if _, err := fmt.Sscan(report, &changes, &status); err != nil {
				f.t.Fatalf("no report of the generator: %q, %v", report, err)
			}
			return changes, status
		}
		changes, status := kill(0)
		f.t.Logf("%d writes", changes)
		if changes < 20 || status != 0 {
			f.t.Fatalf("%d writes, exit status %d", changes, status)
		}
		for _, at := range samples(changes, 10) {
			if _, status := kill(at); status != 128+9 {
				f.t.Fatalf("write %d: exit status %d, not killed", at, status)
			}
			f.judge(verdict(f, fmt.Sprintf("killed at write %d", at))...)
		}
		kill(changes / 2)
		f.judge(starts(f, "killed in the middle")...)
	})
	for _, c := range []struct{ name, away, back string }{
		{"the generator masked", `mkdir -p "$1"; ln -s /dev/null "$1/oci-mainpid-generator"`, `rm "$1/oci-mainpid-generator"`},
		{"the package's files removed", `
			mkdir /var/tmp/package; cd /usr
			for f in lib/systemd/system-generators/oci-mainpid-generator libexec/oci-mainpid bin/oci-mainpid; do
				mkdir -p "/var/tmp/package/${f%/*}"; mv "$f" "/var/tmp/package/$f"
			done`, `cp -a /var/tmp/package/. /usr; rm -r /var/tmp/package`},
	} {
		b.fight(c.name, func(f fight) {
			f.shell(c.away, generatorOverrides)
			defer restore(f)
			defer f.shell(c.back, generatorOverrides)
			f.systemctl("daemon-reload")
			f.judge(append(verdict(f, c.name), starts(f, c.name)...)...)
		})
	}
}

// names: files whose names or sections are nearly what they should be.
func (b battle) names() {
	inService := "[Service]\nUser=USER\n"
	for _, c := range []struct {
		name string
		// files are Quadlet files; bad is the service that must not start, if the
		// files make one, and says is what must be said about it.
		files     map[string]string
		bad, says string
		more      bool // of a kind that another case is of, too
	}{
		{"a file name that ends in a dash: its drop-ins would be those of other units", map[string]string{
			"NAME-.container": sleeper + inService}, "NAME-.service", "NAME-", false},
		{"a template's name that ends in a dash", map[string]string{
			"NAME-@.container": sleeper + inService}, "NAME-@one.service", "NAME-", true},
		{"a service name that ends in a dash", map[string]string{
			"NAME-x.container": sleeper + "ServiceName=NAME-\n" + inService}, "NAME-.service", "NAME-", true},
		{"a pod whose name ends in a dash", map[string]string{
			"NAME-x.pod": "[Pod]\nServiceName=NAME-\n" + inService}, "NAME-.service", "NAME-", true},
		{"User= in [X-MainPID]", map[string]string{
			"NAME-x.container": sleeper + "[X-MainPID]\nUser=USER\n"}, "NAME-x.service", "[Service]", false},
		{"a comment behind the section's name", map[string]string{
			"NAME-x.container": sleeper + "[X-MainPID] # User=USER\n"}, "NAME-x.service", "", false},
		{"a comment behind [Service]", map[string]string{
			"NAME-x.container": sleeper + "[Service] # ours\nUser=USER\n"}, "NAME-x.service", "it cannot read", true},
		{"a section with an en dash", map[string]string{
			"NAME-x.container": sleeper + "[X–MainPID]\nUser=USER\n"}, "NAME-x.service", "X–MainPID", false},
		{"[X-MianPID]", map[string]string{
			"NAME-x.container": sleeper + "[X-MianPID]\nUser=USER\n"}, "NAME-x.service", "X-MianPID", true},
		{"[X-MianPID] with options, and User= where it belongs", map[string]string{
			"NAME-x.container": sleeper + inService + "[X-MianPID]\nCgroup=user\n"}, "NAME-x.service", "X-MianPID", false},
		{"User= in a section that nobody knows", map[string]string{
			"NAME-x.container": sleeper + "[Sevrice]\nUser=USER\n"}, "NAME-x.service", "Sevrice", true},
		{"a carriage return in a comment, with User=root behind it", map[string]string{
			"NAME-x.container": sleeper + inService + "# a comment\rUser=root\n"}, "NAME-x.service", "", false},
		{"a carriage return in a value, with an empty User= behind it", map[string]string{
			"NAME-x.container": sleeper + inService + "SyslogIdentifier=x\rUser=\n"}, "NAME-x.service", "", true},
	} {
		if c.more && !thorough() {
			continue
		}
		b.fight(c.name, func(f fight) {
			u := f.userWithoutImage()
			// Units of root's that systemd gives the drop-ins of NAME-.service, too; and one
			// of the user's that is as it should be.
			others := []string{u.name + "-other.service", u.name + "-other@one.service"}
			for _, o := range others {
				file := path.Join(unitDir, strings.Replace(o, "@one", "@", 1))
				f.write(file, "[Service]\nType=oneshot\nExecStart=/bin/true\n")
				f.t.Cleanup(func() { f.run("rm", file) })
			}
			files := maps.Clone(c.files)
			files["NAMEgood.container"] = strings.ReplaceAll(sleeper, "NAME", "NAMEgood") + inService
			before := f.rootsPodman()
			u.quadlets(files)
			expand := strings.NewReplacer("NAME", u.name).Replace
			bad := expand(c.bad)
			wrong := f.asRoot(bad)
			if exec := f.property(bad, "ExecStart"); strings.Contains(exec, "podman ") {
				wrong = append(wrong, fmt.Sprintf("%s is not refused, it would run %s", bad, exec))
			}
			if r := f.try("timeout", "40", "systemctl", "start", bad); r.status == 0 {
				wrong = append(wrong, fmt.Sprintf("%s started, with main PID %s", bad, f.property(bad, "MainPID")))
			}
			if c.says != "" {
				f.run("journalctl", "--sync")
				if said := f.run("journalctl", "--no-pager", "--output=cat", "--since=-2min", "--identifier=oci-mainpid-generator", "--identifier=notify-mainpid"); !strings.Contains(said, expand(c.says)) {
					wrong = append(wrong, fmt.Sprintf("nothing in the journal has %q:\n%s", expand(c.says), said))
				}
			}
			for _, o := range others {
				for name, want := range map[string]string{"User": "", "DropInPaths": ""} {
					if got := f.property(o, name); got != want {
						wrong = append(wrong, fmt.Sprintf("%s of root's has %s=%s", o, name, got))
					}
				}
			}
			good := u.name + "good.service"
			exec := f.property(good, "ExecStart")
			// Of a file that it cannot read, Quadlet makes no service, nor of others in the directory.
			if unreadable := c.says == "it cannot read"; strings.Contains(exec, "podman") == unreadable {
				wrong = append(wrong, fmt.Sprintf("%s, which is as it should be, would run %s", good, exec))
			}
			if after := f.rootsPodman(); after != before {
				wrong = append(wrong, fmt.Sprintf("root's podman had %q, has %q", before, after))
			}
			f.judge(wrong...)
		})
	}
	b.fight("generate, for a unit whose name ends in a dash", func(f fight) {
		u := f.userWithoutImage()
		for _, name := range []string{u.name + "-.service", u.name + "-@.service"} {
			file := path.Join(unitDir, name)
			f.write(file, service{mode: "user"}.withDefaults().text())
			f.t.Cleanup(func() { f.run("rm", "-rf", file, file+".d") })
			var wrong []string
			if r := f.try("oci-mainpid", "generate", "--user="+u.name, "--cgroup=user", file); r.status == 0 {
				wrong = append(wrong, "made a drop-in for "+name)
			}
			f.judge(wrong...)
		}
	})
}
