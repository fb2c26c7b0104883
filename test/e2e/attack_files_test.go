//go:build e2e

package e2e

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// contents: what the user writes into the mainpid file, and how.
func (b battle) contents() {
	u := b.user()
	daemon := b.victim("root")
	opened, named := u.stage("mixed", false), u.stage("user", true)
	stages := []unit{opened, named}
	const noPID = `mainpid file \S+: .* no PID`

	b.fightOn(stages, []attack{
		{name: "a gigabyte", script: `dd if=/dev/zero bs=1 count=1 seek=1G status=none >&3`, reason: `mainpid file \S+: \d+ bytes are no PID`},
		{name: "a writer that never closes", script: `printf 12 >&3`, status: 3, reason: `no PID in the mainpid file \S+: nothing came within 3s`},
		{name: "a writer that never stops", script: `$attacker scribble 3 1 &`, status: 3, reason: `no PID in the mainpid file \S+: nothing came within 3s`},
		{name: "a PID that is none", script: `printf '%s\n' -1 >&3`, reason: noPID},
		{name: "four bytes", script: `printf '\1\0\0\0' >&3`, reason: `refused: process 1: runs as UID 0`},
		{name: "a PID with what looks like another line of a notification", script: `printf '1\nA=1' >&3`, reason: noPID},
	})
	b.fight("a writer that rewrites after the check", func(f fight) {
		n := named.in(f.machine)
		f.judgeStorm(n, `
			conmon /usr/bin/conmon; claim $pid
			(while :; do echo `+daemon.pid+` >"$OCI_MAINPID_FILE"; done) &`, daemon)
		f.judgeStorm(opened.in(f.machine), `
			conmon /usr/bin/conmon; claim $pid
			$attacker scribble 3 "1
" &`)
	})
	b.fight("a claimed conmon that ends while it is looked at", func(f fight) {
		f.judgeStorm(named.in(f.machine), `
			conmon /usr/bin/conmon; claim $pid
			sleep 0.00$(($$ % 10)); kill -9 $pid`)
	})
	b.fight("a lease on the mainpid file", func(f fight) {
		n := named.in(f.machine)
		taken := 0
		for round := 0; round < 10 && taken < 3; round++ {
			lease := "lease-" + n.user.name
			f.run("systemd-run", "--quiet", "--collect", "--uid="+n.uid, "--unit="+lease, attacker, "lease", n.mainPIDFile())
			o := n.attempt("exec 3>&-", nil)
			// There is no lease on a file that root has open already.
			isTaken := f.try("systemctl", "is-active", "--quiet", lease).status == 0
			f.try("systemctl", "stop", lease)
			if isTaken {
				taken++
				f.judge(o.notRefused(1, `resource temporarily unavailable`)...)
			}
		}
		if taken == 0 {
			f.t.Error("no lease came before root opened the file")
		}
	})
	b.fight("taking room in /run", func(f fight) {
		for _, n := range stages {
			n := n.in(f.machine)
			o := n.attempt(`
				conmon /usr/bin/conmon; claim $pid
				(sleep 0.5; if head -c 64M /dev/zero >&3; then touch succeeded; else touch refused; fi) &`, nil)
			// Until the unit is stopped, at least, the room is taken.
			f.await("the user has tried", soon, func() bool {
				return f.try("sh", "-c", `[ -e "$1/succeeded" ] || [ -e "$1/refused" ]`, "sh", n.home()).status == 0
			})
			var wrong []string
			if f.try("test", "-e", n.home()+"/succeeded").status == 0 {
				wrong = append(wrong, n.name+": the user has taken 64 MiB of /run: "+f.run("df", "/run"))
			}
			wrong = append(wrong, o.notTaken()...)
			f.judge(wrong...)
		}
	})
}

// judgeStorm judges a race: systemd is told of no process but those claimed.
func (f fight) judgeStorm(n unit, script string, victims ...victim) {
	f.t.Helper()
	cursor := path.Join(attackRun, "storm.cursor")
	f.shell(`rm -f "$1"; journalctl --sync; journalctl --quiet --lines=1 --cursor-file="$1" >/dev/null`, cursor)
	claimed, wrong := n.storm(script)
	f.run("journalctl", "--sync")
	log := f.run("journalctl", "--quiet", "--no-pager", "--unit="+n.name, "--cursor-file="+cursor)
	for _, sent := range regexp.MustCompile(`Got notification message .*\bMAINPID=(\d+)`).FindAllStringSubmatch(log, -1) {
		if !claimed[sent[1]] {
			wrong = append(wrong, sent[0])
		}
	}
	if len(claimed) == 0 {
		wrong = append(wrong, "nothing was claimed")
	}
	for _, v := range victims {
		wrong = append(wrong, v.harmed()...)
	}
	f.judgeAll(len(claimed), wrong...)
}

// places: what stands where the helper's files are.
func (b battle) places() {
	u := b.user()
	n := u.stage("user", true)

	b.fight("swapping the files or their directories, as the user", func(f fight) {
		n := n.in(f.machine)
		n.attempt(fmt.Sprintf(`
			exec 3>&-
			rm -f swaps
			swap() { if "$@" 2>/dev/null; then echo "succeeded: $*" >>~/swaps; else echo refused >>~/swaps; fi; }
			for file in %s %s; do
				dir=${file%%/*}
				swap rm -f "$file"
				swap mv "$file" "$dir/other"
				swap mv "$file" ~
				swap ln -sfn /etc/passwd "$file"
				swap ln -f "$file" "$dir/other"
				swap mv "$HOME/attack" "$file"
				swap mkfifo "$dir/fifo"
				swap mknod "$dir/device" c 1 5
				swap mkdir "$dir/directory"
				swap touch "$dir/file"
				swap mv "$dir" "$dir.old"
				swap rmdir "$dir"
				swap mkdir "${dir%%/*}/directory"
				swap umount "${dir%%/*}"
				swap chmod 777 "$dir"
				swap ls "$dir"
			done
			swap ln -sfn /tmp /run/oci-mainpid
			swap mv /run/oci-mainpid /run/other
			swap chmod 666 "$file"
			swap sh -c 'echo ok >"$1"' sh "$file"
			swap truncate --size=1 "$file"
			echo nothing >"$OCI_MAINPID_FILE"`, n.mainPIDFile(), n.resultFile()), nil)
		for swap := range strings.Lines(f.run("cat", n.home()+"/swaps")) {
			if strings.HasPrefix(swap, "succeeded") {
				f.judge(swap)
			} else {
				f.judge()
			}
		}
	})
	b.fight("a mount of the user's over the files", func(f fight) {
		n := n.in(f.machine)
		f.judge(n.attempt(`
			mkdir -p mine; echo ok >mine/result; echo 1 >mine/mainpid
			unshare --user --map-root-user --mount sh -c 'mount --bind mine "${OCI_MAINPID_FILE%/*}" && touch mounted && exec sleep 1000' &
			until [ -e mounted ]; do sleep 0.01; done; rm mounted
			claim nothing`, nil).notRefused(1, `"nothing\\n" is no PID|7 bytes are no PID|8 bytes are no PID`)...)
	})

	// Only root can do this; it shows that the helper would notice.
	b.shell(`mkdir -p /run/elsewhere; echo 1 >/run/elsewhere/mainpid; echo untouched >/run/elsewhere/result; chmod -R a+rX /run/elsewhere`)
	socket := `perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => shift, Listen => 1) or die' `
	for _, file := range []struct{ what, variable string }{{"the mainpid file", "$1"}, {"the result file", "$2"}} {
		for _, c := range []struct{ what, script, reason string }{
			{"a link", `rm F; ln -s /run/elsewhere/${F##*/} F`, `a symbolic link is not followed`},
			{"a FIFO", `rm F; mkfifo -m 666 F`, `not a regular file|no such device or address`},
			{"a device", `rm F; mknod -m 666 F c 1 5`, `not a regular file|no such device or address|permission denied`},
			{"a socket", `rm F; ` + socket + `F; chmod 666 F`, `no such device or address`},
			{"a directory", `rm F; mkdir F`, `not a regular file|is a directory`},
		} {
			b.fight(file.what+" swapped for "+c.what+", by root", func(f fight) {
				script := strings.NewReplacer("${F##*/}", "${"+file.variable[1:]+"##*/}", "F", file.variable).Replace(c.script)
				f.judge(n.in(f.machine).misplaced(script).notRefused(1, c.reason)...)
			})
		}
	}
	for _, c := range []struct{ what, script, reason string }{
		{"a link", `d=${1%/*}; rm -rf $d; ln -s /run/elsewhere $d`, `a symbolic link is not followed|not a directory`},
		{"a FIFO", `d=${1%/*}; rm -rf $d; mkfifo $d`, `not a directory`},
		{"a directory of the user's", `chown ` + n.uid + ` ${1%/*}`, `belongs to UID ` + n.uid},
		{"a directory that all may write", `chmod 777 ${1%/*}`, `others may change what is in it`},
	} {
		b.fight("their directory swapped for "+c.what+", by root", func(f fight) {
			f.judge(n.in(f.machine).misplaced(c.script).notRefused(1, c.reason)...)
		})
	}
	b.shell(`[ "$(cat /run/elsewhere/mainpid /run/elsewhere/result)" = "$(printf '1\nuntouched')" ]`)
}

// misplaced starts the unit; root runs the script once the files were prepared.
// It gets the mainpid file as $1 and the result file as $2.
func (n unit) misplaced(script string) outcome {
	n.t.Helper()
	file := path.Join(attackRun, "misplace")
	n.write(file, "set -e\n"+script+"\n")
	// The script of the unit's own is to write nothing.
	n.dropin(70, fmt.Sprintf("[Service]\nExecStartPre=+/bin/sh %s %s %s\n", file, n.mainPIDFile(), n.resultFile()))
	n.systemctl("daemon-reload")
	defer func() {
		n.shell(`rm "$1"/70-*`, path.Join(unitDir, n.name+".d"))
		n.run("rm", "-rf", n.dir(), n.userDir())
		n.systemctl("daemon-reload")
	}()
	return n.attempt("exec sleep 1000", nil)
}
