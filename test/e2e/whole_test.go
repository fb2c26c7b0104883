//go:build e2e && machines

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

// Without KVM, everything takes ten times as long.
func init() { soon, commandTimeout = 3*time.Minute, 10*time.Minute }

// bootWhole boots a machine of the first stack's that has a kernel of its own, and what
// else the configuration says.
func bootWhole(t *testing.T, c sandbox.Config) machine {
	t.Helper()
	var progress bytes.Buffer
	c.Suite, c.Whole, c.Progress = stacks()[0].suite, true, &progress
	box, err := sandbox.Boot(interrupted, c)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	t.Cleanup(func() {
		if *keep {
			t.Log("still running: ", box.Name)
		} else if err := box.PowerOff(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return machine{t, box}
}

// onWholeMachine runs a test on such a machine that has the product.
func onWholeMachine(t *testing.T, test func(m machine)) {
	m := bootWhole(t, sandbox.Config{})
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, path.Dir(guestPath)), 0o755), runMake("install", dir), installGuest(dir)); err != nil {
		t.Fatal(err)
	}
	m.copyTree(dir)
	m.run("systemd-tmpfiles", "--create", "oci-mainpid.conf")
	m.run("systemctl", "daemon-reload")
	test(m)
}

// copyTree copies the files in a directory of the host to the root of a machine that
// does not have its own on the host.
func (m machine) copyTree(dir string) {
	m.t.Helper()
	files, err := exec.Command("tar", "-czf", "-", "-C", dir, ".").Output()
	if err != nil {
		m.t.Fatal(err)
	}
	m.must(m.feed(string(files), "tar", "-xzf", "-", "-C", "/", "--no-same-owner", "--no-overwrite-dir", "--keep-directory-symlink"))
}

// TestWhole: what needs a kernel of its own: vsock, limits that bind, boots, quotas, AppArmor.
func TestWhole(t *testing.T) {
	onWholeMachine(t, func(m machine) {
		m.t.Log(m.run("uname", "-r"), m.run("cat", "/sys/fs/cgroup/cgroup.controllers"))
		m.subtest("vsock", machine.vsock)
		m.subtest("limits", machine.limits)
		m.subtest("boots", machine.boots)
		m.subtest("quota on the home", machine.quotaOnHome)
		m.subtest("AppArmor", machine.appArmor)
	})
}

// limits: those of the unit bind the container in Cgroup=service, podman's own elsewhere.
func (m machine) limits() {
	u := m.user()
	const (
		// crun kill works in all modes, podman exec does not.
		hungry = `sh -c 'trap "exec tail /dev/zero" USR1; while :; do sleep 1000 & wait; done'`
		forks  = `sh -c '(for i in $(seq 300); do sleep 1000 & done); trap "exit 0" TERM; sleep 1000 & wait'`
		busy   = `sh -c 'while :; do :; done'`
	)
	text := func(exec, more string) string {
		return "[Container]\nImage=" + imageName + "\nNetwork=none\nPodmanArgs=--stop-timeout=1\nExec=" + exec + "\n" + owned + more
	}
	u.quadlets(map[string]string{
		"NAME-memory.container": text(hungry, "MemoryMax=64M\nMemorySwapMax=0\nOOMPolicy=stop\n"+inMode("service")),
		"NAME-podman.container": strings.Replace(text(hungry, ""), "--stop", "--memory=64m --memory-swap=64m --stop", 1),
		"NAME-tasks.container":  text(forks, "TasksMax=100\n"+inMode("service")),
		"NAME-cpu.container":    text(busy, "CPUQuota=20%\n"+inMode("service")),
	})
	start := func(m machine, name string) (unit, func(file string) string) {
		n := u.in(m).quadletUnit("NAME-"+name+".service", "systemd-NAME-"+name)
		n.start()
		n.assertMainPIDIsConmon()
		group := "/sys/fs/cgroup" + n.property("ControlGroup")
		return n, func(file string) string { return n.run("cat", group+"/"+file) }
	}
	eat := func(n unit, state, result string) {
		n.podman("kill", "--signal=USR1", n.container)
		n.awaitState(state)
		n.assertProperties(map[string]string{"Result": result})
		n.assertGone()
	}
	m.subtest("MemoryMax= in service: the container that takes more is killed", func(m machine) {
		n, group := start(m, "memory")
		if got := group("memory.max"); got != "67108864" {
			m.t.Errorf("memory.max is %s", got)
		}
		eat(n, "failed", "oom-kill")
	})
	m.subtest("podman --memory in mixed: the container that takes more is killed", func(m machine) {
		n, _ := start(m, "podman")
		eat(n, "failed", "exit-code")
		n.assertEnded("failed", "exit-code", "137")
	})
	m.subtest("TasksMax= in service", func(m machine) {
		n, group := start(m, "tasks")
		// podman, which ends, had some of the tasks: later there may be less than 100.
		m.await("the kernel has refused it another task", soon, func() bool { return group("pids.events") != "max 0" })
		if got := group("pids.max"); got != "100" {
			m.t.Errorf("pids.max is %s", got)
		}
		if out := n.try("journalctl", "CONTAINER_NAME="+n.container, "--output=cat").stdout; !strings.Contains(out, "can't fork") {
			m.t.Errorf("the container says %q", out)
		}
		n.stop()
		n.assertGone()
	})
	m.subtest("CPUQuota= in service", func(m machine) {
		n, group := start(m, "cpu")
		if got := group("cpu.max"); got != "20000 100000" {
			m.t.Errorf("cpu.max is %q", got)
		}
		m.await("it has been throttled", soon, func() bool { return !strings.Contains(group("cpu.stat"), "nr_throttled 0\n") })
		usage := m.shell(`f=/sys/fs/cgroup$1/cpu.stat; read _ a <$f; read s _ </proc/uptime; sleep 10; read _ b <$f; read e _ </proc/uptime; echo "$a $b $s $e" | awk '{print int(($2 - $1) / ($4 - $3) / 10000)}'`, n.property("ControlGroup"))
		if percent, err := strconv.Atoi(usage); err != nil || percent < 5 || percent > 30 {
			m.t.Errorf("it takes %s %% of a processor", usage)
		}
		n.stop()
		n.assertGone()
	})
}

// quotaOnHome: a user whose quota is used up can stop a unit, cannot start it, is told
// why, and can start it again with room.
func (m machine) quotaOnHome() {
	u := m.user()
	m.shell(`
		rm -f /home.img; truncate -s 400M /home.img
		mkfs.ext4 -q -O quota -E quotatype=usrquota,root_owner=$2:$2 /home.img
		mount -o loop /home.img /mnt
		cp -a "/home/$1/." /mnt
		umount /mnt
		mount -o loop,usrquota /home.img "/home/$1"
		setquota -u "$1" 0 80000 0 0 "/home/$1"`, u.name, u.uid)
	u.quadlets(map[string]string{"NAME.container": sleeper + owned})
	n := u.quadletUnit("NAME.service", "NAME")
	n.start()
	n.assertMainPIDIsConmon()
	if r := m.try(u.as("dd", "if=/dev/zero", "of="+u.home()+"/full", "bs=4k")...); !strings.Contains(r.stderr, "Disk quota exceeded") {
		m.t.Fatal(r)
	}
	n.stop()
	if left := m.try("pgrep", "-U", u.uid, "-f", "conmon|sleep").stdout; left != "" {
		m.t.Errorf("processes are left: %s", left)
	}
	r := m.try("systemctl", "start", n.name)
	if r.status == 0 || !strings.Contains(n.journal(n.name), "disk quota exceeded") {
		m.t.Errorf("%v\n%s", r, n.journal(n.name))
	}
	m.run("rm", u.home()+"/full")
	n.start()
	n.assertMainPIDIsConmon()
	n.stop()
	n.assertGone()
}

// vsock: the protocol over the kernel's loopback, and what oci-mainpid run says of a
// container to a systemd that listens there.
func (m machine) vsock() {
	m.run("modprobe", "vsock_loopback")
	dir := m.t.TempDir()
	build := exec.Command("go", "test", "-c", "-tags=vsock", "-o", filepath.Join(dir, "run/sdnotify.test"), "../../sdnotify")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
	m.copyTree(dir)
	m.subtest("sdnotify", func(m machine) {
		out := m.run("/run/sdnotify.test", "-test.v", "-test.run=^TestVsock$")
		if !strings.Contains(out, "--- PASS: TestVsock/vsock-seqpacket/systemd-notify") {
			m.t.Error("not tested")
		}
	})
	m.subtest("oci-mainpid run", func(m machine) {
		m.write(path.Join(unitDir, "e2e-vsock.socket"), "[Socket]\nListenStream=vsock:1:4711\nAccept=yes\n")
		m.write(path.Join(unitDir, "e2e-vsock@.service"), "[Service]\nExecStart=cat\nStandardInput=socket\nStandardOutput=append:/run/e2e-vsock\n")
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "start", "e2e-vsock.socket")
		u := m.user()
		m.systemctl("start", "user@"+u.uid)
		r := u.supervised("env", "NOTIFY_SOCKET=vsock-stream:1:4711", "oci-mainpid", "run", "--", "podman", "run", "-d", "--rm", "--name=a", "--network=none", imageName, "sh", "-c", `trap "exit 5" TERM; sleep 1000 & wait`)
		m.await("systemd has heard it", soon, func() bool {
			heard := m.try("cat", "/run/e2e-vsock").stdout
			return strings.Contains(heard, "READY=1") && strings.Contains(heard, "STATUS=Container a runs") || r.ended()
		})
		r.kill("TERM")
		if status, said := r.end(); status != "5" {
			m.t.Errorf("status %s; %s", status, said)
		}
		u.assertNothingLeft()
	})
	m.subtest("a systemd that got vmm.notify_socket", func(m machine) {
		// Its system is this machine's, without what belongs to the machine.
		m.shell(`
			mkdir -p /srv/vm/usr/lib /srv/vm/usr/share /srv/credentials
			cd /srv/vm
			mkdir -p dev proc root run sys tmp var
			cp -a /bin /sbin /lib /lib64 /etc .
			cp -a /usr/bin /usr/sbin /usr/lib64 usr
			for d in /usr/lib/*; do case $d in */modules|*/firmware|*/dracut|*/podman) ;; *) cp -a $d usr/lib;; esac; done
			cp -a /usr/share/dbus-1 usr/share
			rm -rf etc/fstab etc/machine-id etc/containers/systemd etc/systemd/system/*.wants
			touch etc/machine-id
			printf vsock:1:4712 >/srv/credentials/vmm.notify_socket`)
		const log = "/run/e2e-vm"
		m.shell(`(oci-mainpid run --notify=fd:3 --ready=multi-user.target --listen=vsock:1:4712 -- podman run -d --rm --name=vm --stop-timeout=60 \
			--network=none --systemd=always --env=CREDENTIALS_DIRECTORY=/run/credentials --volume=/srv/credentials:/run/credentials:ro --rootfs /srv/vm /sbin/init \
			>$1 2>&1 3>$1.ready; echo $? >$1.status) </dev/null >/dev/null 2>&1 &`, log)
		ended := func() bool { return m.try("test", "-s", log+".status").status == 0 }
		m.await("it is ready", soon, func() bool { return m.try("grep", "ready", log+".ready").status == 0 || ended() })
		if ended() {
			m.t.Fatal(m.run("cat", log, log+".status"))
		}
		if got := m.run("podman", "exec", "vm", "systemctl", "is-active", "multi-user.target"); got != "active" {
			m.t.Errorf("multi-user.target is %s", got)
		}
		m.try("podman", "exec", "vm", "systemctl", "poweroff")
		m.await("it has ended", soon, ended)
		if got := m.run("cat", log+".status"); got != "0" {
			m.t.Errorf("status %s after a power-off; %s", got, m.run("cat", log))
		}
	})
}

// appArmor: a profile of podman's that is enforced and denies nothing that podman and
// the hook need.
func (m machine) appArmor() {
	const profile = "podman-e2e"
	m.write("/etc/apparmor.d/"+profile, `abi <abi/4.0>,
profile `+profile+` /usr/bin/podman flags=(attach_disconnected) {
  all,
  deny /etc/e2e-secret r,
}
`)
	m.run("touch", "/etc/e2e-secret")
	m.run("apparmor_parser", "--replace", "/etc/apparmor.d/"+profile)
	m.t.Cleanup(func() { m.try("apparmor_parser", "--remove", "/etc/apparmor.d/"+profile) })
	for _, mode := range []string{"mixed", "service", "user"} {
		m.subtest(mode, func(m machine) {
			u := m.user()
			u.quadlets(map[string]string{"NAME.container": sleeper + "Network=none\n" + owned + inMode(mode)})
			n := u.quadletUnit("NAME.service", "NAME")
			n.start()
			p := n.assertMainPIDIsConmon()
			for what, pid := range map[string]string{"conmon": p.conmon, "the container": p.payload} {
				if got := m.run("cat", "/proc/"+pid+"/attr/current"); got != profile+" (enforce)" {
					m.t.Errorf("%s runs as %s", what, got)
				}
			}
			if r := m.try(u.as("podman", "unshare", "cat", "/etc/e2e-secret")...); !strings.Contains(r.stderr, "Permission denied") {
				m.t.Errorf("the profile is not enforced: %v", r)
			}
			if denied := m.shell(`dmesg | grep 'apparmor="DENIED".*"podman-e2e"' || :`); denied != "" {
				m.t.Errorf("denied: %s", denied)
			}
			n.stop()
			n.assertGone()
		})
	}
}

// boots: units that are enabled come up at a boot, without a login, after their mounts.
func (m machine) boots() {
	u, byHand := m.user(), m.user()
	m.shell(`
		truncate -s 64M /data.img
		mkfs.ext4 -q -E root_owner="$1:$1" /data.img
		mkdir /srv/data
		echo /data.img /srv/data ext4 loop 0 0 >>/etc/fstab
		systemctl daemon-reload
		systemctl start srv-data.mount`, u.uid)
	u.quadlets(map[string]string{
		"NAME.container": "[Unit]\nRequiresMountsFor=/srv/data\n[Container]\nImage=" + imageName + "\nContainerName=NAME\nNetwork=none\nVolume=/srv/data:/data\n" +
			`Exec=sh -c 'trap "exit 0" TERM; echo started >>/data/started; sleep 1000 & wait'` + "\n" + owned + "[Install]\nWantedBy=multi-user.target\n",
		"NAME-wrong.container": "[Container]\nImage=" + imageName + "\n" + owned + "[X-MianPID]\nCgroup=user\n[Install]\nWantedBy=multi-user.target\n",
	})
	units := []unit{u.quadletUnit("NAME.service", "NAME"), byHand.unit(service{mode: "service", options: "--network=none"})}
	m.systemctl("enable", units[1].name)
	for _, n := range units {
		n.start()
	}
	said := func(m machine) int {
		return strings.Count(m.run("dmesg"), u.name+"-wrong.service: will not start: section [X-MianPID]")
	}
	for starts, boot := range []struct {
		name string
		boot func(context.Context) error
		same bool // the kernel's boot
	}{{"systemctl soft-reboot", m.box.SoftReboot, true}, {"reboot", m.box.Reboot, false}} {
		m.subtest(boot.name, func(m machine) {
			const bootID = "/proc/sys/kernel/random/boot_id"
			before, saidBefore, start := m.run("cat", bootID), said(m), time.Now()
			var invocations []string
			for _, n := range units {
				invocations = append(invocations, n.in(m).property("InvocationID"))
			}
			if err := boot.boot(interrupted); err != nil {
				m.t.Fatal(err)
			}
			m.t.Logf("took %v", time.Since(start).Round(time.Second))
			if same := m.run("cat", bootID) == before; same != boot.same {
				m.t.Errorf("the same boot of the kernel: %t", same)
			}
			for i, n := range units {
				n = n.in(m)
				n.awaitState("active")
				n.assertMainPIDIsConmon()
				if n.property("InvocationID") == invocations[i] {
					m.t.Errorf("%s has gone on", n.name)
				}
				if got := n.podman("ps", "--all", "--format={{.Names}}"); got != n.container {
					m.t.Errorf("containers of %s: %q", n.user.name, got)
				}
			}
			if sessions := m.shell("loginctl list-sessions --no-legend | grep -v ' manager ' || :") + m.try("ls", "/var/lib/systemd/linger").stdout; sessions != "" {
				m.t.Errorf("somebody has logged in, or lingers: %s", sessions)
			}
			mounted, _ := strconv.Atoi(m.property("srv-data.mount", "ActiveEnterTimestampMonotonic"))
			started, _ := strconv.Atoi(units[0].in(m).property("InactiveExitTimestampMonotonic"))
			if mounted == 0 || started < mounted {
				m.t.Errorf("mounted at %d, started at %d", mounted, started)
			}
			if got := m.run("wc", "-l", "/srv/data/started"); got != fmt.Sprint(starts+2, " /srv/data/started") {
				m.t.Errorf("the container has written %s", got)
			}
			// At a reboot the initrd's journal is there and has it.
			if boot.same && said(m) == saidBefore {
				m.t.Errorf("/dev/kmsg does not name the wrong file: %s", m.run("dmesg"))
			}
			if state := m.try("systemctl", "is-active", u.name+"-wrong.service").stdout; state == "active" {
				m.t.Error("the unit with a wrong file runs")
			}
		})
	}
	for _, n := range units {
		n.stop()
		n.assertGone()
	}
}
