//go:build e2e

package e2e

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A setting is what a page takes for granted.
type setting struct {
	// before and after do what the text around a block says or supposes. They are
	// found by a line of the block. after gets what the screen has shown.
	before map[string]func(r *reader, b block)
	after  map[string]func(r *reader, b block, screen string)
	// fails are the lines that are meant to fail.
	fails failing
	// excerpts are blocks of a file that somebody else has written, by their
	// second lines, with its path.
	excerpts map[string]string
}

// readmeUnit writes a unit of README.md, which other pages suppose.
func (r *reader) readmeUnit(path string) {
	r.t.Helper()
	all, err := page("README.md").blocks()
	if err != nil {
		r.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(b block) bool { return b.path() == path })
	if i < 0 {
		r.t.Fatalf("README.md has no %s", path)
	}
	r.write(path, all[i].text)
	if r.try("id", "web").status != 0 {
		r.run("useradd", "--create-home", "web")
	}
	r.systemctl("daemon-reload")
}

// statusProblems is a command of oci-mainpid.files(5).
const statusProblems = `oci-mainpid status --format=json | grep '"problem"' || echo none`

const (
	webContainer = quadletDir + "/web.container"
	webService   = unitDir + "/web.service"
)

// webOf is the user web's unit of that name, with the container.
func (r *reader) webOf(name, container string) unit {
	r.t.Helper()
	return unit{r.existingUser("web"), name, container}
}

// tidy stops web's units and removes them.
func (r *reader) tidy() {
	r.t.Helper()
	// systemd 262 stops none of several units if it does not know one of them.
	for _, unit := range []string{"web.service", "web-pod.service"} {
		if r.property(unit, "LoadState") == "loaded" {
			r.systemctl("stop", unit)
		}
	}
	r.shell(`rm -rf ` + quadletDir + `/* ` + unitDir + `/web.service*
		systemctl daemon-reload
		systemctl reset-failed`)
}

// says checks that the journal since the machine's boot has the message that is
// the block's heading, in which … stands for anything and / between those of
// different versions.
func (r *reader) says(b block) {
	r.t.Helper()
	r.run("journalctl", "--sync")
	r.matches(b, r.run("journalctl", "--boot", "--no-pager", "--output=cat"))
}

// matches is says for a text, whose end is shown if it does not match.
func (r *reader) matches(b block, text string) {
	r.t.Helper()
	const troubleshooting page = "docs/troubleshooting.md"
	if has, err := troubleshooting.text(); err != nil || !strings.Contains(has, "\n### "+b.heading+"\n") {
		r.t.Fatalf("%s has no heading %q (%v)", troubleshooting, b.heading, err)
	}
	var patterns []string
	for _, message := range strings.Split(b.heading, " / ") {
		pattern := regexp.QuoteMeta(message)
		for _, variable := range []string{"…", "1000", "80"} {
			pattern = strings.ReplaceAll(pattern, variable, ".*")
		}
		patterns = append(patterns, pattern)
	}
	// crun quotes the path, and podman what it logs.
	plain := strings.NewReplacer("`", "", `\`, "").Replace(text)
	if !regexp.MustCompile(strings.Join(patterns, "|")).MatchString(plain) {
		r.t.Errorf("%v: nothing says %q in\n%s", b, b.heading, text[max(0, len(text)-3000):])
	}
}

// saysAsReadme checks that the journal has the messages that README.md shows
// under The problem, whatever the numbers.
func (r *reader) saysAsReadme() {
	r.t.Helper()
	blocks, err := page("README.md").blocks()
	if err != nil {
		r.t.Fatal(err)
	}
	journal := r.run("journalctl", "--boot", "--no-pager", "--output=cat")
	i := slices.IndexFunc(blocks, func(b block) bool { return b.heading == "The problem" })
	for line := range strings.Lines(blocks[max(i, 0)].text) {
		pattern := regexp.MustCompile(`\d+`).ReplaceAllString(regexp.QuoteMeta(strings.TrimSuffix(line, "\n")), `\d+`)
		if !regexp.MustCompile("(?m)^" + pattern + "$").MatchString(journal) {
			r.t.Errorf("README.md: nothing says %q", line)
		}
	}
}

// settings are those of all pages with commands or files, but README.md, which
// TestReadme reads.
var settings = map[page]setting{
	"docs/oci-mainpid.8.md": {
		before: map[string]func(r *reader, b block){
			"oci-mainpid generate --user=web " + webService: func(r *reader, _ block) { r.readmeUnit(webService) },
			"oci-mainpid generate --dry-run " + webContainer: func(r *reader, _ block) {
				r.webOf("web.service", "web").assertMainPIDIsConmon()
				r.tidy()
				r.readmeUnit(webContainer)
			},
			"systemctl enable --now oci-mainpid-metrics.timer": func(r *reader, _ block) {
				r.run("mkdir", "-p", "/var/lib/prometheus/node-exporter") // node_exporter's package does
				r.systemctl("start", "web")
			},
		},
		after: map[string]func(r *reader, b block, screen string){
			"systemctl enable --now oci-mainpid-metrics.timer": func(r *reader, _ block, _ string) {
				r.await("the metrics of web.service", soon, func() bool {
					return strings.Contains(r.try("cat", "/var/lib/prometheus/node-exporter/oci-mainpid.prom").stdout, `oci_mainpid_unit_active{unit="web.service",user="web",cgroup="mixed"} 1`)
				})
			},
		},
	},
	"docs/selinux-apparmor.md": {},
	"docs/oci-mainpid.files.5.md": {
		before: map[string]func(r *reader, b block){
			statusProblems: func(r *reader, _ block) {
				r.readmeUnit(webContainer)
				r.systemctl("start", "web")
			},
		},
		after: map[string]func(r *reader, b block, screen string){
			statusProblems: func(r *reader, b block, screen string) {
				if !strings.HasSuffix(screen, "\nnone") {
					r.t.Errorf("%v: %s", b, screen)
				}
			},
		},
	},
	"docs/oci-mainpid.unit.5.md": {
		before: map[string]func(r *reader, b block){
			"Volume=web.volume:/data": func(r *reader, _ block) { r.try("useradd", "--create-home", "web") },
		},
		after: map[string]func(r *reader, b block, screen string){
			"[Volume]": func(r *reader, b block, _ string) {
				r.systemctl("daemon-reload")
				if b.heading == "DESCRIPTION" {
					r.systemctl("start", "web")
					r.webOf("web.service", "systemd-web").assertMainPIDIsConmon()
					r.tidy()
					return
				}
				r.systemctl("start", "front")
				r.webOf("front.service", "systemd-front").assertMainPIDIsConmon()
				r.webOf("web-pod.service", "systemd-web-infra").assertMainPIDIsConmon()
				r.webOf("front.service", "systemd-front").assertProperties(map[string]string{"User": "web"})
				r.run("curl", "--silent", "--fail", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "http://localhost:8080/")
				r.tidy()
			},
			"Cgroup=service": func(r *reader, _ block, _ string) {
				r.systemctl("daemon-reload")
				r.systemctl("start", "web")
				n := r.webOf("web.service", "systemd-web")
				p := n.assertMainPIDIsConmon()
				if group := n.cgroup(p.payload); !strings.HasPrefix(group, "/system.slice/web.service/") {
					r.t.Errorf("the container is in %s, not in the unit", group)
				}
			},
			"TimeoutStartSec=10min": func(r *reader, _ block, _ string) {
				r.systemctl("daemon-reload")
				r.webOf("web.service", "systemd-web").assertProperties(map[string]string{"TimeoutStartUSec": "10min"})
			},
		},
	},
	"docs/oci-mainpid-generator.8.md": {
		before: map[string]func(r *reader, b block){
			"/usr/lib/systemd/system-generators/oci-mainpid-generator --dry-run >/dev/null": func(r *reader, _ block) { r.readmeUnit(webContainer) },
		},
		after: map[string]func(r *reader, b block, screen string){
			"mkdir -p /etc/systemd/system-generators": func(r *reader, _ block, _ string) {
				r.systemctl("daemon-reload")
				if got := r.systemctl("cat", "web"); strings.Contains(got, "50-oci-mainpid.conf") {
					r.t.Errorf("the generator still runs:\n%s", got)
				}
			},
		},
	},
	"docs/oci-mainpid-hook.8.md": {
		after: map[string]func(r *reader, b block, screen string){
			"podman run -d --rm --name t docker.io/library/busybox sleep 100": func(r *reader, _ block, screen string) {
				if !strings.HasSuffix(screen, "\n"+hookProgram) {
					r.t.Errorf("%s", screen)
				}
			},
		},
	},
	"docs/notify-mainpid.8.md": {
		before: map[string]func(r *reader, b block){
			"OpenFile=/run/oci-mainpid/users/1000/web.service/mainpid:mainpidfile": func(r *reader, _ block) {
				r.readmeUnit(webService)
				r.run("oci-mainpid", "generate", "--user=web", webService)
				r.systemctl("daemon-reload")
				r.systemctl("start", "web")
			},
			"User=app": func(r *reader, _ block) { r.run("useradd", "--system", "app") },
		},
		after: map[string]func(r *reader, b block, screen string){
			"# /usr/local/bin/start-app": func(r *reader, _ block, _ string) {
				r.systemctl("daemon-reload")
				r.systemctl("start", "app")
				pid := r.property("app", "MainPID")
				if comm := r.run("cat", "/proc/"+pid+"/comm"); comm != "sleep" {
					r.t.Errorf("the main process of app is %s", comm)
				}
			},
			"export NOTIFY_SOCKET=/run/systemd/notify": func(r *reader, _ block, screen string) {
				if !strings.HasSuffix(screen, "\n0") {
					r.t.Errorf("%s", screen)
				}
			},
		},
		excerpts: map[string]string{"OpenFile=/run/oci-mainpid/users/1000/web.service/mainpid:mainpidfile": webService + ".d/50-oci-mainpid.conf"},
	},
	"docs/rootful-to-rootless.md": {
		before: map[string]func(r *reader, b block){
			"sysctl -p /etc/sysctl.d/50-ports.conf": func(r *reader, _ block) {
				r.run("sed", "-i", "s/8080:80/80:80/", quadletDir+"/site.container")
				r.systemctl("daemon-reload")
				r.try("systemctl", "restart", "site")
				r.says(block{heading: "Failed to bind port 80 (Permission denied) / Listen failed for HOST TCP port */80: Permission denied"})
			},
		},
		after: map[string]func(r *reader, b block, screen string){
			"[Volume]": func(r *reader, _ block, _ string) {
				r.shell(`mkdir /srv/site
					echo hello >/srv/site/index.html
					chown 33:33 /srv/site/index.html
					printf %s secret | podman secret create site-password -
					systemctl daemon-reload
					systemctl start site
					podman exec systemd-site sh -c 'echo kept >/data/file && chown 33:33 /data/file'`)
			},
			"systemctl status site --no-pager": func(r *reader, _ block, _ string) {
				n := r.webOf("site.service", "systemd-site")
				n.assertMainPIDIsConmon()
				r.run("curl", "--silent", "--fail", "--retry", "5", "--retry-all-errors", "http://localhost:8080/")
				want := "kept hello 33 33 secret"
				got := n.podman("exec", n.container, "sh", "-c",
					`echo $(cat /data/file /srv/index.html) $(stat -c %u /data/file /srv/index.html) $(cat /run/secrets/site-password)`)
				if got != want {
					r.t.Errorf("the container has %q, not %q", got, want)
				}
			},
			"sysctl -p /etc/sysctl.d/50-ports.conf": func(r *reader, _ block, _ string) {
				r.systemctl("restart", "site")
				r.run("curl", "--silent", "--fail", "--retry", "5", "--retry-all-errors", "http://localhost/")
			},
			"oci-mainpid auto-update --dry-run": func(r *reader, _ block, screen string) {
				// podman 5.4 and 5.8 write the image differently.
				if !regexp.MustCompile(`\nsite web +systemd-site docker\.io/library/caddy\S* +registry (pending|false)`).MatchString(screen) {
					r.t.Error(screen)
				}
			},
			"systemctl enable --now oci-mainpid-auto-update.timer": func(r *reader, _ block, _ string) {
				r.systemctl("start", "oci-mainpid-auto-update")
			},
			"usermod --append --groups systemd-journal web": func(r *reader, _ block, _ string) {
				r.webOf("site.service", "systemd-site").assertMainPIDIsConmon()
			},
		},
	},
	"docs/credentials.md": {
		before: map[string]func(r *reader, b block){
			"Volume=%d:/run/credentials:ro": func(r *reader, _ block) { r.run("useradd", "--create-home", "web") },
		},
		after: map[string]func(r *reader, b block, screen string){
			"install -m 600 /dev/null /etc/web.password": func(r *reader, _ block, screen string) {
				if !strings.HasSuffix(screen, "\nkey\npassword") {
					r.t.Errorf("%s", screen)
				}
			},
		},
	},
	"docs/reload.md": {
		fails: failing{"systemctl reload web.service": 1},
		before: map[string]func(r *reader, b block){
			"Environment=NGINX=3:": func(r *reader, _ block) {
				r.run("useradd", "--create-home", "web")
				r.nginx()
			},
		},
		after: map[string]func(r *reader, b block, screen string){
			"systemctl enable --now web.socket": func(r *reader, _ block, screen string) {
				if !strings.HasSuffix(screen, "\nfirst") {
					r.t.Errorf("%s", screen)
				}
			},
			"sed -i s/first/second/ /srv/web/nginx.conf": func(r *reader, _ block, screen string) {
				if !regexp.MustCompile(`(?s)\d+ first\n +\d+ second\n`).MatchString(screen) || strings.Contains(screen[strings.LastIndex(screen, "uniq"):], "lost") {
					r.t.Errorf("%s", screen)
				}
				r.webOf("web.service", "systemd-web").assertMainPIDIsConmon()
			},
			"echo wrong >>/srv/web/nginx.conf": func(r *reader, _ block, screen string) {
				if !strings.HasSuffix(screen, "\nsecond") {
					r.t.Errorf("%s", screen)
				}
			},
		},
	},
	"docs/user-to-system.md": {
		before: map[string]func(r *reader, b block){
			"Volume=%h/site:/srv": func(r *reader, _ block) { r.run("useradd", "--create-home", "web") },
			"as_web systemctl --user stop site": func(r *reader, _ block) {
				// What the page supposes: a unit of the user's that runs.
				r.shell(`chown -R web: /home/web; loginctl enable-linger web; systemctl start user@$(id -u web)`)
				web := r.webOf("site.service", "systemd-site")
				web.run(web.as("mkdir", web.home()+"/site")...)
				web.writeHome("site/index.html", "hello\n")
				web.run(web.as("systemctl", "--user", "daemon-reload")...)
				web.run(web.as("systemctl", "--user", "start", "site")...)
				web.podman("exec", web.container, "sh", "-c", "echo kept >/data/file")
			},
		},
		after: map[string]func(r *reader, b block, screen string){
			"systemctl start site": func(r *reader, _ block, _ string) {
				n := r.webOf("site.service", "systemd-site")
				n.assertMainPIDIsConmon()
				if got := n.podman("exec", n.container, "sh", "-c", "echo $(cat /data/file /srv/index.html)"); got != "kept hello" {
					r.t.Errorf("the container has %q", got)
				}
				if got := n.run(n.as("systemctl", "--user", "show", "--property=LoadState", "--value", "site")...); got != "not-found" {
					r.t.Errorf("the user's manager still has the unit: %s", got)
				}
			},
			"loginctl disable-linger web": func(r *reader, _ block, _ string) {
				time.Sleep(stopDelay + 2*time.Second)
				r.webOf("site.service", "systemd-site").assertMainPIDIsConmon()
				r.run("curl", "--silent", "--fail", "--retry", "5", "--retry-all-errors", "http://localhost:8080/")
			},
		},
	},
	"docs/troubleshooting.md": {
		before: map[string]func(r *reader, b block){
			"journalctl -u web -b -x     # what was said, with explanations": func(r *reader, _ block) {
				r.readmeUnit(webContainer)
				r.systemctl("start", "web")
			},
			"ExecStopPost=-podman rm -f -i web": func(r *reader, _ block) { r.tidy() },
			"Cgroup=service":                    func(r *reader, _ block) { r.tidy() },
			"oci-mainpid podman web system migrate": func(r *reader, b block) {
				n := r.webOf("web.service", "systemd-web")
				n.systemctl("stop", "web", "oci-mainpid-pause@"+n.uid)
				n.run("sed", "-i", "/^web:/d", "/etc/subuid", "/etc/subgid")
				n.podman("system", "migrate")
				r.matches(b, n.try(n.as("podman", "info")...).stderr)
			},
			"oci-mainpid podman web system renumber": func(r *reader, _ block) { r.systemctl("stop", "web") },
		},
		after: map[string]func(r *reader, b block, screen string){
			"Type=notify": func(r *reader, b block, _ string) {
				r.systemctl("daemon-reload")
				r.systemctl("log-level", "debug")
				// An idle systemd looks at the sender of READY=1 while it is there, often.
				for tries := 1; ; tries++ {
					// web's next podman is the first. It moves to the user's manager if that
					// answers in time.
					r.systemctl("kill", "--kill-whom=main", "user@1000")
					r.await("user@1000 has ended", soon, func() bool { return r.property("user@1000", "ActiveState") == "inactive" })
					r.systemctl("start", "user@1000")
					r.run(r.existingUser("web").as("busctl", "--user", "list")...)
					res := r.try("systemctl", "start", "web")
					if res.status != 0 {
						break
					}
					if tries == 30 {
						r.t.Fatal(res)
					}
					r.systemctl("stop", "web")
				}
				r.says(b)
				r.try("systemctl", "start", "web")
				r.systemctl("log-level", "info")
				r.says(block{heading: "New main PID … does not belong to service, refusing."})
				r.saysAsReadme()
			},
			"Type=forking": func(r *reader, b block, _ string) {
				r.systemctl("daemon-reload")
				if res := r.try("systemctl", "start", "web"); res.status == 0 {
					r.t.Error(res)
				}
				r.says(b)
			},
			"systemctl restart web": func(r *reader, b block, _ string) {
				container := "web"
				if strings.Contains(b.heading, "cgroup.procs") {
					container = "systemd-web"
				}
				r.webOf("web.service", container).assertMainPIDIsConmon()
			},
			"Cgroup=service": func(r *reader, b block, _ string) {
				r.systemctl("daemon-reload")
				r.systemctl("start", "web")
				n := r.webOf("web.service", "systemd-web")
				n.assertMainPIDIsConmon()
				res := n.try(n.as("podman", "exec", n.container, "true")...)
				if res.status == 0 {
					r.t.Error(res)
				}
				r.matches(b, res.stderr)
				// The other remedy.
				r.shell(`cp ` + webContainer + ` /run/web.container
					sed -i '/^Image=/aGlobalArgs=--runtime=runc' ` + webContainer + `
					systemctl daemon-reload
					systemctl restart web`)
				n.podman("exec", n.container, "true")
				r.shell(`mv /run/web.container ` + webContainer + `
					systemctl daemon-reload
					systemctl restart web`)
			},
			"systemctl show -p RefuseManualStop user@1000.service user-runtime-dir@1000.service": func(r *reader, b block, screen string) {
				if strings.Count(screen, "RefuseManualStop=yes") != 2 {
					r.t.Errorf("%v: %s", b, screen)
				}
			},
		},
	},
	"CONTRIBUTING.md": {}, // is read on this machine
}

// TestPages types every command of every page, on a machine for each that is
// set up by what the page itself says, and has systemd, Quadlet and the
// generator accept every file. The pages take turns on the stacks: what they
// show works on all, as the other tests see. README.md is TestReadme's; what no
// test types is in notRun.
func TestPages(t *testing.T) {
	all, err := pages()
	if err != nil {
		t.Fatal(err)
	}
	had := map[page]map[string]bool{}
	turn := 0
	for _, p := range all {
		blocks, err := p.blocks()
		if err != nil {
			t.Fatal(err)
		}
		had[p] = map[string]bool{}
		commands := false
		for _, b := range blocks {
			if !slices.Contains([]string{"sh", "ini", "text"}, b.language) {
				t.Errorf("%v: a fence of language %q: write sh for commands, ini for files, text for the rest", b, b.language)
			}
			commands = commands || b.language != "text"
			for line := range strings.Lines(b.text) {
				had[p][strings.TrimSuffix(line, "\n")] = true
			}
		}
		s, ok := settings[p]
		if ok != (commands && p != "README.md" && p != withoutSystemd && p != earlyService) {
			t.Errorf("%s: commands: %v, setting: %v", p, commands, ok)
		}
		if !ok {
			continue
		}
		stack := stacks()[turn%len(stacks())]
		turn++
		t.Run(path.Base(string(p)), func(t *testing.T) {
			for key := range s.before {
				if !had[p][key] {
					t.Errorf("no line is %q", key)
				}
			}
			for key := range s.after {
				if !had[p][key] {
					t.Errorf("no line is %q", key)
				}
			}
			for line := range s.fails {
				if !had[p][line] {
					t.Errorf("no line is %q", line)
				}
			}
			if p == "CONTRIBUTING.md" {
				typeOnHost(t, blocks)
				return
			}
			t.Parallel()
			stack.onFreshMachine(t, func(m machine) {
				if err := install(m.box); err != nil {
					m.t.Fatal(err)
				}
				m.dockerHub()
				r := &reader{machine: m, dir: "/root"}
				r.open()
				r.readPage(s, blocks)
			})
		})
	}
	for p, lines := range notRun {
		for line := range lines {
			if !had[p][line] {
				t.Errorf("notRun: no line of %s is %q", p, line)
			}
		}
	}
}

// readPage reads all of a page.
func (r *reader) readPage(s setting, blocks []block) {
	r.t.Helper()
	var written []string // files that are not verified yet: one may name a later one
	for i, b := range blocks {
		if b.language == "text" {
			continue
		}
		lines := strings.Split(strings.TrimSuffix(b.text, "\n"), "\n")
		for _, line := range lines {
			if before := s.before[line]; before != nil {
				before(r, b)
			}
		}
		if len(lines) > 1 && s.excerpts[lines[1]] != "" {
			r.isExcerpt(b, s.excerpts[lines[1]])
			continue
		}
		if b.language == "ini" && b.path() == "" {
			r.t.Fatalf("%v: its first line does not say where the file is", b)
		}
		screen := r.read(b, s.fails)
		var after []func(r *reader, b block, screen string)
		for _, line := range lines {
			if f := s.after[line]; f != nil {
				after = append(after, f)
			}
		}
		if b.language == "ini" {
			written = append(written, b.path())
		}
		if len(after) > 0 || i+1 == len(blocks) || blocks[i+1].path() == "" {
			r.accepted(written)
			written = nil
		}
		for _, f := range after {
			f(r, b, screen)
		}
		if r.t.Failed() {
			r.t.FailNow()
		}
	}
}

// accepted checks that nobody complains of files.
func (r *reader) accepted(files []string) {
	r.t.Helper()
	for _, f := range files {
		if path.Dir(f) == quadletDir {
			for _, generator := range []string{"podman-system-generator", "oci-mainpid-generator"} {
				flag := map[string]string{"podman-system-generator": "--dryrun", "oci-mainpid-generator": "--dry-run"}[generator]
				res := r.try("/usr/lib/systemd/system-generators/"+generator, flag)
				complaints := slices.DeleteFunc(strings.Split(res.stderr, "\n"), func(line string) bool {
					return line == "" || strings.Contains(line, "Loading source unit file") || strings.Contains(line, "does not exist") ||
						strings.Contains(line, "using key User in the Service group") // see Troubleshooting
				})
				if res.status != 0 || len(complaints) > 0 {
					r.t.Errorf("%s: %v", f, res)
				}
			}
			continue
		}
		if strings.HasSuffix(path.Dir(f), "/.config/containers/systemd") { // a user's
			res := r.try("env", "QUADLET_UNIT_DIRS="+path.Dir(f), "/usr/lib/systemd/user-generators/podman-user-generator", "--user", "--dryrun")
			if res.status != 0 || !strings.Contains(res.stdout, "\nSourcePath="+f+"\n") {
				r.t.Errorf("%s: %v", f, res)
			}
			continue
		}
		verify := f
		if unit, ok := strings.CutSuffix(path.Dir(f), ".d"); ok {
			r.systemctl("daemon-reload")
			verify = r.property(path.Base(unit), "FragmentPath")
		}
		if path.Ext(f) == ".socket" {
			r.systemctl("daemon-reload") // Quadlet may make its service
		}
		if res := r.try("env", "SYSTEMD_UNIT_PATH=/run/systemd/generator:", "systemd-analyze", "verify", "--man=no", verify); res.status != 0 || res.stderr != "" {
			r.t.Errorf("%s: %v", f, res)
		}
	}
}

// isExcerpt checks that a file has the lines of a block, in this order.
func (r *reader) isExcerpt(b block, file string) {
	r.t.Helper()
	// Continued lines are one, and quotes are systemd's own business.
	plain := strings.NewReplacer("\\\n    ", "", `"`, "")
	rest := plain.Replace(r.run("cat", file))
	for line := range strings.Lines(plain.Replace(b.text)) {
		line = strings.TrimSuffix(line, "\n")
		_, after, ok := strings.Cut("\n"+rest+"\n", "\n"+line+"\n")
		if !ok {
			r.t.Errorf("%v: %s has no line %q behind those before:\n%s", b, file, line, rest)
			return
		}
		rest = after
	}
}
