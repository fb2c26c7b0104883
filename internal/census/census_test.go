package census

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// process is what a fake /proc/PID says.
type process struct {
	comm, state    string
	start          int
	uids           string
	cmdline, env   []string
	cmdlineIsAFIFO bool
}

// conmon is the command line of one, shortened.
func conmon(id, session, name string) []string {
	return []string{"/usr/bin/conmon", "--api-version", "1", "-c", id, "-u", session, "-r", "/usr/bin/crun",
		"-n", name, "--full-attach", "-s", "-l", "k8s-file:/x", "--conmon-pidfile", "/run/user/0/none/conmon.pid",
		"--exit-command", "/usr/bin/podman", "--exit-command-arg", "-n", "--exit-command-arg", "-c"}
}

func fakeProc(t *testing.T, processes map[int]process) string {
	t.Helper()
	proc := t.TempDir()
	if err := os.WriteFile(filepath.Join(proc, "uptime"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for pid, p := range processes {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		stat := strconv.Itoa(pid) + " (" + p.comm + ") " + p.state + strings.Repeat(" 0", 18) + " " + strconv.Itoa(p.start) + " 0 0\n"
		for name, text := range map[string]string{
			"stat":    stat,
			"cgroup":  "1:cpu:/\n0::/system.slice/x.service\n",
			"status":  "Name:\tconmon\nUid:\t" + p.uids + "\nGid:\t0\n",
			"cmdline": strings.Join(p.cmdline, "\x00") + "\x00",
			"environ": strings.Join(p.env, "\x00") + "\x00",
		} {
			if p.cmdlineIsAFIFO && name == "cmdline" {
				if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return proc
}

const same = "1000\t1000\t1000\t1000"

func TestTake(t *testing.T) {
	env := []string{"PATH=/usr/bin", "PODMAN_SYSTEMD_UNIT=web.service", "INVOCATION_ID=aa", "INVOCATION_ID=bb"}
	proc := fakeProc(t, map[int]process{
		30: {comm: "conmon", state: "S", start: 7, uids: same, cmdline: conmon("c1", "c1", "web"), env: env},
		20: {comm: "conmon", state: "S", start: 9, uids: same, cmdline: conmon("c2", "c2", "db")},
		19: {comm: "conmon", state: "S", start: 9, uids: same, cmdline: conmon("c0", "c0", "x"), env: []string{"OCI_MAINPID_FILE=/run/oci-mainpid/x@1.service/mainpid"}},
		21: {comm: "conmon", state: "S", start: 9, uids: same, cmdline: conmon("c2", "e1", "db"), env: env},
		22: {comm: "conmon", state: "Z", start: 9, uids: same, cmdline: conmon("c3", "c3", "x")},
		23: {comm: "podman", state: "S", start: 9, uids: same, cmdline: conmon("c3", "c3", "x")},
		24: {comm: "conmon", state: "S", start: 9, uids: "1000\t0\t0\t0", cmdline: conmon("c3", "c3", "x")},
		25: {comm: ") conmon", state: "S", start: 9, uids: same},
		26: {comm: "conmon", state: "S", start: 9, uids: same, cmdlineIsAFIFO: true},
	})
	started := time.Now()
	got, err := Take(proc)
	if err != nil {
		t.Fatal(err)
	}
	want := []Conmon{
		{PID: 30, UID: 1000, ContainerID: "c1", Container: "web", Unit: "web.service", InvocationID: "aa", Cgroup: "/system.slice/x.service", Start: 7},
		{PID: 19, UID: 1000, ContainerID: "c0", Container: "x", Unit: "x@1.service", Cgroup: "/system.slice/x.service", Start: 9},
		{PID: 20, UID: 1000, ContainerID: "c2", Container: "db", Cgroup: "/system.slice/x.service", Start: 9},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if took := time.Since(started); took > 5*patience {
		t.Errorf("took %v", took)
	}
	// Whoever still waits for the FIFO ends.
	if f, err := os.OpenFile(filepath.Join(proc, "26/cmdline"), os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
		f.Close()
	}
}

func TestOf(t *testing.T) {
	all := []Conmon{
		{PID: 1, UID: 1000, Unit: "web.service", InvocationID: "old"},
		{PID: 2, UID: 1000, Unit: "web.service", InvocationID: "new"},
		{PID: 3, UID: 1001, Unit: "web.service", InvocationID: "new"},
		{PID: 4, UID: 1000, InvocationID: "new"},
		{PID: 5, UID: 1000},
		{PID: 6, UID: 1000, Cgroup: "/system.slice/web.service/runtime"},
		{PID: 7, UID: 1000, Cgroup: "/system.slice/web.service2"},
		{PID: 8, UID: 1000, Cgroup: "/user.slice"},
		{PID: 9, UID: 1000, Unit: "web.service"},
	}
	pids := func(list []Conmon) (pids []int) {
		for _, c := range list {
			pids = append(pids, c.PID)
		}
		return pids
	}
	for name, c := range map[string]struct {
		start             Start
		current, leftOver []int
	}{
		"running":          {Start{Unit: "web.service", UID: 1000, InvocationID: "new", MainPID: 8, ControlGroup: "/system.slice/web.service"}, []int{2, 4, 6, 8}, []int{1, 9}},
		"told by the hook": {Start{Unit: "web.service", UID: 1000, InvocationID: "x", MainPID: 99, Told: 8}, []int{8}, []int{1, 2, 9}},
		"never started":    {Start{Unit: "web.service", UID: 1000}, nil, []int{1, 2, 9}},
		"another":          {Start{Unit: "db.service", UID: 1001, InvocationID: "x"}, nil, nil},
	} {
		current, leftOver := c.start.Of(all)
		if !slices.Equal(pids(current), c.current) || !slices.Equal(pids(leftOver), c.leftOver) {
			t.Errorf("%s: %v %v", name, pids(current), pids(leftOver))
		}
	}
}

func TestMainOf(t *testing.T) {
	kube := []Conmon{{PID: 1, Container: "p-infra"}, {PID: 2, Container: "0123456789ab-service"}}
	for name, c := range map[string]struct {
		start   Start
		current []Conmon
		want    int
	}{
		"none":                      {Start{MainPID: 1}, nil, 0},
		"the first":                 {Start{}, []Conmon{{PID: 7}, {PID: 8}}, 7},
		"systemd's, if it is there": {Start{MainPID: 8}, []Conmon{{PID: 7}, {PID: 8}}, 8},
		"the service container's":   {Start{Kube: true}, kube, 2},
		"no service container":      {Start{Kube: true}, kube[:1], 0},
	} {
		got, ok := c.start.Main(c.current)
		if got.PID != c.want || ok != (c.want != 0) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestVerify(t *testing.T) {
	self := Conmon{PID: os.Getpid(), UID: os.Getuid()}
	start := Start{UID: os.Getuid(), InvocationID: "aa"}
	for name, c := range map[string]struct {
		conmon Conmon
		start  Start
		want   string // part of the error, "" for none
	}{
		"without a start, genuine":     {Conmon{PID: self.PID, Genuine: true}, start, ""},
		"without a start, not genuine": {self, start, "does not execute conmon"},
		"another user's":               {Conmon{PID: self.PID, Genuine: true}, Start{UID: 4242}, "runs as UID"},
		"no conmon":                    {Conmon{PID: self.PID, InvocationID: "aa"}, start, "does not execute conmon"},
		"gone":                         {Conmon{PID: 1 << 22}, start, "no such process"},
	} {
		err := c.start.Verify(c.conmon)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadPID(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]int{"12\n": 12, "12": 12, "": 0, "-1": 0, "x": 0, strings.Repeat("1", 100): 0} {
		if err := os.WriteFile(dir+"/mainpid", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := ReadPID(dir, dir+"/mainpid"); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
	if got := ReadPID(dir, "/etc/hostname"); got != 0 {
		t.Errorf("outside: %d", got)
	}
}
