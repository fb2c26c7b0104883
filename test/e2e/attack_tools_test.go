//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"oci-mainpid-hook/internal/message"
)

// What a command that root types may use, whatever users do: processor time, for
// the machine may be busy; the time in which it must have ended by itself; memory,
// in KiB; and what it may print.
const (
	toolCPU    = 10 * time.Second
	toolTime   = 40 * time.Second
	toolMemory = 256 << 10
	toolBytes  = 256 << 10
	toolLines  = 2000
)

// excessOf runs a command of root's and says where it took more than it may, and
// what it printed. It ends, or is ended, in any case.
func (m machine) excessOf(args ...string) (wrong []string, out string) {
	m.t.Helper()
	const file = "/var/tmp/measured"
	report := m.run(append([]string{attacker, "measure", toolTime.String(), file}, args...)...)
	var how string
	var status, memory, took, cpu, bytes, lines int
	if _, err := fmt.Sscan(report, &how, &status, &memory, &took, &cpu, &bytes, &lines); err != nil {
		m.t.Fatalf("%q: %v", report, err)
	}
	m.t.Logf("%s: %s with %d: %d KiB, %d ms, %d ms of processor time, %d bytes, %d lines", strings.Join(args, " "), how, status, memory, took, cpu, bytes, lines)
	say := func(format string, a ...any) {
		wrong = append(wrong, strings.Join(args, " ")+" "+fmt.Sprintf(format, a...))
	}
	switch how {
	case "terminated":
		say("did not end within %v", toolTime)
	case "killed":
		say("did not end within %v, nor with SIGTERM", toolTime)
	case "stuck":
		say("did not end within %v, nor with SIGKILL", toolTime)
	}
	if memory > toolMemory {
		say("took %d KiB of memory", memory)
	}
	if time.Duration(cpu)*time.Millisecond > toolCPU {
		say("took %d ms of processor time", cpu)
	}
	if bytes > toolBytes || lines > toolLines {
		say("printed %d bytes in %d lines", bytes, lines)
	}
	return wrong, m.shell(`head -c 1000000 "$1"`, file)
}

// background starts a script as the user, in a unit of the system that ends with
// the test.
func (u user) background(name, script string) {
	u.t.Helper()
	name = u.name + "-" + name
	file := u.home() + "/" + name
	u.writeHome(name, "cd ~ || exit\nattacker="+attacker+"\n"+script)
	u.run("systemd-run", "--quiet", "--collect", "--uid="+u.uid, "--unit="+name, "--property=TasksMax=infinity",
		"--setenv=HOME="+u.home(), "--setenv=XDG_RUNTIME_DIR="+u.runtimeDir(), "/bin/sh", file)
	u.t.Cleanup(func() {
		u.try("systemctl", "kill", "--signal=KILL", name)
		u.try("systemctl", "stop", name)
	})
}

// awaitHome waits for a file in the user's home that is not empty.
func (u user) awaitHome(name string) {
	u.t.Helper()
	u.await(u.name+" has "+name, time.Minute, func() bool { return u.try("test", "-s", u.home()+"/"+name).status == 0 })
}

// forgedID stands for a container that a process claims to be conmon of.
const forgedID = "deadbeefdeadbeefdeadbeefdeadbeefdeadbeefdeadbeefdeadbeefdeadbeef"

// asConmonOf has a process that is none look like conmon of an earlier start of the
// unit: environment and arguments are its own to choose.
func asConmonOf(unit, program string) string {
	return "PODMAN_SYSTEMD_UNIT=" + unit + " INVOCATION_ID=0123456789abcdef0123456789abcdef " + program + " -c " + forgedID + " -u " + forgedID + " -n forged"
}

// tools: what users leave for root's check, status and explain.
func (b battle) tools() {
	b.fight("an executable, and a directory of hooks, on a file system that never answers", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "mixed"})
		n.start()
		// The overlay asks what is below it with the rights of who mounted it, so nothing
		// keeps root out. The first of the two that are below is stopped, so that the
		// second one takes requests and never answers.
		u.background("hang", `
			rm -rf hang; mkdir -p hang; cd hang; mkdir low up1 work1 first up2 work2 second more mnt
			cp $attacker low/conmon; : >log; mkdir low/hooks.d
			exec unshare --user --map-root-user --mount sh -ec '
				fuse-overlayfs -o lowerdir=low,upperdir=up1,workdir=work1,timeout=0 first
				fuse-overlayfs -o lowerdir=first,upperdir=up2,workdir=work2,timeout=0 second
				mount -t overlay overlay -o lowerdir=second:more mnt
				`+asConmonOf(n.name, "mnt/conmon signals log")+` &
				echo $! >pid
				wait'`)
		u.awaitHome("hang/pid")
		pid := u.run("cat", u.home()+"/hang/pid")
		f.await("it executes it", soon, func() bool {
			return strings.HasSuffix(f.try("readlink", "/proc/"+pid+"/exe").stdout, "/hang/mnt/conmon")
		})
		u.writeHome(".config/containers/containers.conf", fmt.Sprintf("[engine]\nhooks_dir = [\"/proc/%s/root%s/hang/mnt/hooks.d\", \"/usr/share/containers/oci/hooks.d\"]\n", pid, u.home()))
		f.shell(`kill -STOP $(pgrep -u "$1" -f ^fuse-overlayfs.*lowerdir=low)`, u.uid)
		f.t.Cleanup(func() { f.try("sh", "-c", `kill -KILL $(pgrep -u "$1" -f ^fuse-overlayfs.*lowerdir=low)`, "sh", u.uid) })
		for _, args := range [][]string{{"status"}, {"status", "--format=json"}, {"check", n.name}, {"check"}, {"explain", n.name}} {
			wrong, _ := f.excessOf(append([]string{"oci-mainpid"}, args...)...)
			f.judge(wrong...)
			if len(wrong) > 0 {
				break // each may take a minute
			}
		}
	})
	b.fight("a crowd of processes named conmon, with large arguments and environments", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "mixed"})
		n.start()
		crowd := 1200
		if thorough() {
			crowd = 6000
		}
		u.background("crowd", fmt.Sprintf(`
			cp /bin/dash conmon; rm -f never crowd; mkfifo never
			ulimit -s unlimited
			v=$(head -c 120000 /dev/zero | tr '\0' x)
			export A=$v B=$v C=$v D=$v E=$v F=$v
			PODMAN_SYSTEMD_UNIT=%s INVOCATION_ID=0123456789abcdef0123456789abcdef exec ./conmon -c '
				i=0; while [ $i -lt %d ]; do (read line <never) & i=$((i + 1)); done
				echo $i >crowd; wait' -c %s -u %[3]s -n "$v" -n "$v" -n "$v" -n "$v" -n "$v" -n "$v"`, n.name, crowd, forgedID))
		u.await("the crowd is there", 5*time.Minute, func() bool { return u.try("test", "-s", u.home()+"/crowd").status == 0 })
		for _, args := range [][]string{{"status"}, {"status", "--format=json"}, {"check", n.name}} {
			wrong, _ := f.excessOf(append([]string{"oci-mainpid"}, args...)...)
			f.judge(wrong...)
		}
	})
	b.fight("a containers.conf that is large or deep", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "mixed"})
		n.systemctl("daemon-reload")
		const size = 980_000
		fill := func(item string) string { return strings.Repeat(item, size/len(item)) }
		for _, c := range []struct{ name, text string }{
			{"one list", "[engine]\nhooks_dir = [" + fill(`"/x",`) + "]\n"},
			{"lists in lists", "[engine]\nhooks_dir = " + fill("[") + "\n"},
			{"a key of many", fill("a.") + "a = 1\n"},
			{"many keys", "[engine]\n" + fill("hooks_dir = []\n")},
			{"many tables", fill("[engine]\n")},
			{"comments in a list", "[engine]\nhooks_dir = [\n" + fill("#\n") + "]\n"},
			{"escapes", "[engine]\nhooks_dir = [\"" + fill(`\u0041`) + "\"]\n"},
			{"tables in a list", "[engine]\nhooks_dir = [" + fill("{append=true},") + "]\n"},
		} {
			u.writeHome(".config/containers/containers.conf", c.text)
			wrong, _ := f.excessOf("oci-mainpid", "check", n.name)
			for i := range wrong {
				wrong[i] = c.name + ": " + wrong[i]
			}
			f.judge(wrong...)
		}
	})
	b.fight("many directories of hooks with many names of large files", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "mixed"})
		n.systemctl("daemon-reload")
		u.must(u.try(u.as("sh", "-ec", `
			mkdir -p ~/hooks.d
			{ printf '{"version": "1.0.0", "hook": {"path": "/bin/true", "args": ["'; head -c 900000 /dev/zero | tr '\0' x; printf '"]}, "when": {"always": true}, "stages": ["poststart"]}'; } >~/hooks.d/0.json
			for i in $(seq 100); do ln ~/hooks.d/0.json ~/hooks.d/$i.json; done`)...))
		for name, dirs := range map[string][]string{
			"one":                      {u.home() + "/hooks.d"},
			"the same again and again": strings.Fields(strings.Repeat(u.home()+"/hooks.d ", 170)),
			"not there":                strings.Fields(strings.Repeat("/not/there/at/all ", 17000)),
			"root's":                   strings.Fields(strings.Repeat("/usr/share/containers/oci/hooks.d /usr/bin ", 5000)),
		} {
			list, err := json.Marshal(dirs)
			if err != nil {
				f.t.Fatal(err)
			}
			u.writeHome(".config/containers/containers.conf", "[engine]\nhooks_dir = "+string(list)+"\n")
			wrong, _ := f.excessOf("oci-mainpid", "check", n.name)
			for i := range wrong {
				wrong[i] = name + ": " + wrong[i]
			}
			f.judge(wrong...)
		}
	})
	b.fight("a process that chooses what root is advised to type", func(f fight) {
		u := f.user()
		n := u.podmanUnit(service{mode: "mixed", options: "--volume=" + attackDir + ":/attack:ro",
			command: `sh -c 'cp /attack/attacker /tmp/conmon; : >/tmp/log; ` + strings.ReplaceAll(asConmonOf(u.name+".service", "/tmp/conmon signals /tmp/log"), `"`, `\"`) + ` & trap "exit 0" TERM; sleep 1000 & wait'`})
		n.start()
		judgeAdvice := func() {
			f.t.Helper()
			var wrong []string
			for _, format := range []string{"text", "json"} {
				out := f.try("oci-mainpid", "check", "--format="+format, n.name).stdout
				if found := regexp.MustCompile(`.*(systemd-run[^"]*--(pipe|pty|shell)|runuser|setpriv|` + forgedID[:12] + `).*`).FindString(out); found != "" {
					wrong = append(wrong, "check advises: "+found)
				}
				if !strings.Contains(out, n.name) {
					wrong = append(wrong, "check says nothing of "+n.name+": "+out)
				}
			}
			f.judge(wrong...)
		}
		f.await("it is there", soon, func() bool { return f.try("pgrep", "-u", u.uid, "-f", "^/tmp/conmon.*"+forgedID).status == 0 })
		judgeAdvice()
		// The same outside of a container; and by the real conmon, started by hand.
		u.background("advice", `mkdir -p fake; cp $attacker fake/conmon; : >log; `+asConmonOf(n.name, "fake/conmon signals log"))
		f.await("it is there", soon, func() bool { return f.try("pgrep", "-u", u.uid, "-f", "^fake/conmon.*"+forgedID).status == 0 })
		judgeAdvice()
	})
}

// journals: what users write into the journal, for explain to read.
func (b battle) journals() {
	stage := b.user().stage("mixed", false)
	const reason = "runs as UID 0, not as the unit's user"
	for _, c := range []struct{ name, script string }{
		{"one entry of 130 KB, for which journalctl prints 480 KB", `$attacker journal 1 130000 large`},
		{"ten entries of 700 KB", `$attacker journal 10 700000 large`},
		{"5,200 small entries", `$attacker journal 5200 10 small`},
		{"one field of 480 KB", `$attacker journal 1 10 small LARGE=$(head -c 120000 /dev/zero | tr '\0' x) LARGER=$(head -c 120000 /dev/zero | tr '\0' x)`},
	} {
		b.fight("explain, after "+c.name+" of the user's", func(f fight) {
			n := stage.in(f.machine)
			n.attempt(c.script+"\nclaim 1", nil)
			wrong, out := f.excessOf("oci-mainpid", "explain", n.name)
			if text := strings.Join(strings.Fields(out), " "); !strings.Contains(text, reason) {
				wrong = append(wrong, "the reason of the failure is not told: "+shortened(out))
			}
			f.judge(wrong...)
		})
	}
	b.fight("explain, after the user's messages in the name of others", func(f fight) {
		n := stage.in(f.machine)
		for _, who := range []string{"notify-mainpid", "systemd", "took", "oci-mainpid"} {
			n.attempt(`
				fields="SYSLOG_IDENTIFIER=`+who+` UNIT=`+n.name+` OBJECT_SYSTEMD_UNIT=`+n.name+` INVOCATION_ID=$INVOCATION_ID CONMON_PID=4242"
				$attacker journal 1 0 "Supervising process 4242 which is forged" $fields
				$attacker journal 1 0 "conmon 4242 is forged is the main process" $fields MESSAGE_ID=`+message.MainProcess.ID+`
				claim 1`, nil)
			_, out := f.excessOf("oci-mainpid", "explain", n.name)
			var wrong []string
			if found := regexp.MustCompile(`(?m)^.*\btook\b.*$|^.*\b(notify-mainpid|systemd|oci-mainpid)\b.*4242.*$`).FindString(out); found != "" {
				wrong = append(wrong, "as "+who+": "+found)
			}
			if !strings.Contains(strings.Join(strings.Fields(out), " "), reason) {
				wrong = append(wrong, "as "+who+": the reason of the failure is not told: "+shortened(out))
			}
			f.judge(wrong...)
		}
	})
	b.fight("a drawing through a link of the user's in place of a directory", func(f fight) {
		n := stage.in(f.machine)
		n.attempt("claim 1", nil)
		f.shell(`mkdir -p /etc/attacked; rm -rf "$1"/link "$1"/own; mkdir "$1"/own; chown "$2" "$1"/own`, n.home(), n.uid)
		n.must(n.try(n.as("ln", "-s", "/etc/attacked", n.home()+"/link")...))
		n.must(n.try(n.as("ln", "-s", "/etc/attacked/by-file", n.home()+"/own/file.svg")...))
		for _, file := range []string{"link/x.svg", "link/../attacked/x.svg", "own/file.svg"} {
			r := f.try("oci-mainpid", "explain", "--svg="+n.home()+"/"+file, n.name)
			var wrong []string
			if made := f.run("ls", "-A", "/etc/attacked"); made != "" {
				wrong = append(wrong, fmt.Sprintf("%s: made %s\n%v", file, made, r))
			}
			if r.status == 0 {
				wrong = append(wrong, fmt.Sprintf("%s: %v", file, r))
			}
			f.judge(wrong...)
			f.shell(`rm -f /etc/attacked/*`)
		}
		f.run("rm", "-r", "/etc/attacked")
	})
}

// shortened is the end of a long text.
func shortened(text string) string { return text[max(0, len(text)-1500):] }

// raw returns the first character of a text that a terminal might obey or that
// changes the order of others, with what is around it.
func raw(text string) string {
	for i, r := range text {
		_, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == '\n' || r == '\t':
			continue
		case r == utf8.RuneError && size == 1, unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
			return fmt.Sprintf("%q", text[max(0, i-30):min(len(text), i+30)])
		}
	}
	return ""
}

// controls: characters in names that users choose.
func (b battle) controls() {
	const evil = `a\033[31m\302\233b\177\342\200\256c\233d\342\201\246e\rf`
	b.fight("control characters in a container's name", func(f fight) {
		u := f.user()
		n := u.stage("mixed", false)
		sameLength := strings.Repeat("n", len(f.run("printf", evil)))
		o := n.attempt(`
			name=$(printf '`+evil+`')
			$attacker journal 1 0 "$name" SYSLOG_IDENTIFIER="$name"
			echo "$name"
			/usr/bin/conmon --api-version 1 --full-attach --sync -c x -u x -n `+sameLength+` -r ~/runtime -b ~/bundle -p ~/bundle/pid -l k8s-file:log </dev/null >/dev/null 2>&1 3>&- &
			pid=$!
			until [ -n "$(cat /proc/$pid/task/$pid/children)" ]; do sleep 0.01; done
			$attacker replace cmdline $pid `+sameLength+` "$name"
			claim $pid`, nil)
		for _, args := range [][]string{
			{"status"}, {"status", "--format=json"}, {"status", "--format=prometheus"}, {"status", n.name},
			{"check", n.name}, {"check", "--format=json", n.name}, {"explain", n.name}, {"explain", "--svg=/var/tmp/drawing.svg", n.name},
		} {
			r := f.try(append([]string{"oci-mainpid"}, args...)...)
			var wrong []string
			if found := raw(r.stdout + r.stderr); found != "" {
				wrong = append(wrong, strings.Join(args, " ")+": "+found)
			}
			if strings.HasPrefix(args[0], "status") && strings.Contains(r.stderr, "no such format") {
				f.t.Fatal(r)
			}
			f.judge(wrong...)
		}
		var wrong []string
		if found := raw(f.run("cat", "/var/tmp/drawing.svg")); found != "" {
			wrong = append(wrong, "drawing: "+found)
		}
		f.judge(wrong...)
		f.judge(o.notTaken()...)
	})
	b.fight("control characters in what generate complains of", func(f fight) {
		u := f.userWithoutImage()
		evil := f.run("printf", evil)
		file := path.Join(unitDir, u.name+".service")
		f.t.Cleanup(func() { f.run("rm", "-f", file) })
		for _, c := range []struct{ what, text, user string }{
			{"a user", service{mode: "user"}.withDefaults().text(), evil},
			{"a section", service{mode: "user"}.withDefaults().text() + "[" + evil + "]\nUser=x\n", u.name},
			{"a key", service{mode: "user"}.withDefaults().text() + "[Service]\n" + evil + "\n", u.name},
			{"an option of podman's", strings.Replace(service{mode: "user"}.withDefaults().text(), "--rm", "--"+evil, 1), u.name},
			{"a type", service{mode: "user", more: "Type=" + evil}.withDefaults().text(), u.name},
		} {
			f.write(file, c.text)
			r := f.try("oci-mainpid", "generate", "--dry-run", "--user="+c.user, "--cgroup=user", file)
			var wrong []string
			if found := raw(r.stderr); found != "" {
				wrong = append(wrong, c.what+": "+found)
			}
			f.judge(wrong...)
		}
		for _, args := range [][]string{{"status", evil}, {"explain", evil}, {"check", evil}, {"generate", "--user=" + u.name, evil}, {evil}} {
			r := f.try(append([]string{"oci-mainpid"}, args...)...)
			var wrong []string
			if found := raw(r.stdout + r.stderr); found != "" {
				wrong = append(wrong, args[0]+": "+found)
			}
			f.judge(wrong...)
		}
	})
}
