//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestContainersConf: we find the settings that podman finds, wherever its files are.
func TestContainersConf(t *testing.T) {
	onOneStack(t, onLast, containersConf)
}

func containersConf(m machine) {
	const program = "/usr/local/lib/containersconf.test"
	build := exec.Command("go", "test", "-tags", "e2e", "-c", "-o", filepath.Join(m.box.Root(), program), "../../internal/containersconf")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		m.t.Fatalf("build: %v\n%s", err, out)
	}
	u := m.userWithoutImage()
	r := m.try("unshare", "--mount", "env", "OCI_MAINPID_TEST_USER="+u.name, "OCI_MAINPID_TEST_UID="+u.uid, "OCI_MAINPID_TEST_HOME="+u.home(), "sh", "-ec",
		`mount -t tmpfs tmpfs /etc/containers; mount -t tmpfs tmpfs /usr/share/containers; exec "$0" -test.run='^TestAsPodman$' -test.v`, program)
	m.t.Log(r.stdout)
	if cases := len(regexp.MustCompile(`(?m)^ +--- PASS`).FindAllString(r.stdout, -1)); r.status != 0 || cases < 20 {
		m.t.Errorf("%d cases passed: %v", cases, r)
	}
}

// TestConmonV3: a conmon at the path of conmon-v3, which containers.conf(5) names, is a
// conmon. What it does when it runs is not tested: Debian does not have it.
func TestConmonV3(t *testing.T) {
	onOneStack(t, onLast, func(m machine) {
		const path = "/usr/bin/conmon-v3"
		m.run("cp", "/usr/bin/conmon", path)
		m.t.Cleanup(func() { m.run("rm", path) })
		u := m.user()
		u.writeHome(".config/containers/containers.conf", "[engine]\nconmon_path = [\""+path+"\"]\n")
		n := u.unit(service{mode: "mixed"})
		n.start()
		if pid := n.property("MainPID"); m.run("readlink", "/proc/"+pid+"/exe") != path {
			m.t.Errorf("the main process is %s", m.run("readlink", "/proc/"+pid+"/exe"))
		}
		if out := m.run("oci-mainpid", "status", n.name); !strings.Contains(out, u.name) || strings.Contains(out, "not conmon") {
			m.t.Errorf("status: %s", out)
		}
		n.stop()
		n.assertGone()
	})
}

// TestNoPauseProcess: the user's podman 6 works without a pause process, and a container
// of the user's runs so. A unit that starts then gets its pause process, and the container
// stays in podman's hands. podman 5 makes a pause process anyway.
func TestNoPauseProcess(t *testing.T) { onOneStack(t, onLast, noPauseProcess) }

func noPauseProcess(m machine) {
	u := m.user()
	tmp := u.runtimeDir() + "/libpod/tmp"
	u.systemctl("start", "user@"+u.uid)
	u.run(u.as("env", "PODMAN_NO_PAUSE_PROCESS=1", "podman", "run", "-d", "--name", "byhand", imageName, "sleep", "1000")...)
	m.t.Logf("without a pause process: %s", m.run("ls", tmp))
	n := u.unit(service{mode: "mixed"})
	n.start()
	n.assertMainPIDIsConmon()
	m.run("test", "-s", tmp+"/pause.pid")
	if got := m.property("oci-mainpid-pause@"+u.uid+".service", "ActiveState"); got != "active" {
		m.t.Errorf("podman-pause is %s", got)
	}
	if got := u.podman("exec", "byhand", "cat", "/proc/1/comm"); got != "sleep" {
		m.t.Errorf("podman exec: %s", got)
	}
	u.podman("rm", "--force", "--time=0", "byhand")
	n.stop()
	n.assertGone()
}
