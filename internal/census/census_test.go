package census

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"oci-mainpid-hook/conmonbridge"
	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/proc"
	"oci-mainpid-hook/internal/regular"
)

func TestMain(m *testing.M) {
	conmontest.Main()
	os.Exit(m.Run())
}

const web, db = 4711, 4712

// arguments are the command line of a conmon, shortened.
func arguments(id, session, name string) []string {
	return []string{"--api-version", "1", "-c", id, "-u", session, "-r", "/usr/bin/crun",
		"-n", name, "--full-attach", "-s", "-l", "k8s-file:/x", "--conmon-pidfile", "/run/user/0/none/conmon.pid",
		"--exit-command", "/usr/bin/podman", "--exit-command-arg", "-n", "--exit-command-arg", "-c"}
}

// id returns a container's ID.
func id(digit string) string { return strings.Repeat(digit, 64) }

// isConmon has the census take the executables, and no other, for conmon.
func isConmon(t *testing.T, executables ...string) {
	t.Helper()
	before := conmonbridge.Executables
	t.Cleanup(func() { conmonbridge.Executables = before })
	conmonbridge.Executables = executables
}

func skipUnlessRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("not root: no other users' processes, and conmon's executable must be root's")
	}
}

func take(t *testing.T, uids map[int]bool) Census {
	t.Helper()
	all, err := Take(context.Background(), uids, conmonbridge.Executables)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTake(t *testing.T) {
	skipUnlessRoot(t)
	env := []string{"PATH=/usr/bin", "PODMAN_SYSTEMD_UNIT=web.service", "INVOCATION_ID=aa"}
	first := conmontest.Start(t, conmontest.Options{UID: web, Args: arguments(id("1"), id("1"), "web"), Env: env})
	again := func(o conmontest.Options) conmontest.Conmon {
		t.Helper()
		o.Executable = first.Executable
		return conmontest.Start(t, o)
	}
	second := again(conmontest.Options{UID: db, Args: arguments(id("2"), id("2"), "db"), Env: []string{"OCI_MAINPID_FILE=/run/oci-mainpid/db@1.service/mainpid"}})
	nameless := again(conmontest.Options{UID: web, Args: []string{"-c", "short", "-n", "a\nb"}, Env: []string{"PODMAN_SYSTEMD_UNIT=" + strings.Repeat("x", 300)}})
	again(conmontest.Options{UID: web, Args: arguments(id("2"), id("3"), "exec"), Env: env})
	// Not by the name, but by the executable.
	conmontest.Start(t, conmontest.Options{UID: web, Args: arguments(id("4"), id("4"), "copy"), Env: env})
	isConmon(t, first.Executable)
	contain(t, first.Executable, env)

	cgroup := func(c conmontest.Conmon) string {
		group, err := proc.Cgroup(c.PID)
		if err != nil {
			t.Fatal(err)
		}
		return group
	}
	conmons := []Conmon{
		{PID: first.PID, UID: web, ContainerID: id("1"), Container: "web", Unit: "web.service", InvocationID: "aa", Cgroup: cgroup(first)},
		{PID: second.PID, UID: db, ContainerID: id("2"), Container: "db", Unit: "db@1.service", Cgroup: cgroup(second)},
		{PID: nameless.PID, UID: web, Cgroup: cgroup(nameless)},
	}
	for name, c := range map[string]struct {
		uids map[int]bool
		want []Conmon
	}{
		"of all users":     {nil, conmons},
		"of one user":      {map[int]bool{db: true}, conmons[1:2]},
		"of two users":     {map[int]bool{db: true, web: true}, conmons},
		"of another user":  {map[int]bool{4713: true}, nil},
		"of no known user": {map[int]bool{}, nil},
	} {
		got := take(t, c.uids)
		if !slices.IsSortedFunc(got.Conmons, func(a, b Conmon) int { return cmp.Compare(a.Start, b.Start) }) {
			t.Errorf("%s: not in the order in which they started: %+v", name, got.Conmons)
		}
		for i := range got.Conmons {
			got.Conmons[i].Start = 0
		}
		if !slices.Equal(got.Conmons, c.want) || got.LeftOut != nil {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// contain runs a conmon in a PID namespace of its own, as a process in a container
// that has conmon's name, executable and environment does.
func contain(t *testing.T, executable string, env []string) {
	t.Helper()
	cmd := exec.Command(executable, arguments(id("5"), id("5"), "inside")...)
	cmd.Args[0], cmd.Env = "conmon", env
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: web, Gid: web},
	}
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Process.Kill(); cmd.Wait() })
}

// TestLeftOut: what a census lacks, it says.
func TestLeftOut(t *testing.T) {
	late := errors.New("it is late")
	tooLate, cancel := context.WithCancelCause(context.Background())
	cancel(late)
	none := func(candidate) (Conmon, int, error) { return Conmon{}, 0, proc.ErrNoProcess }
	for _, c := range []struct {
		name       string
		ctx        context.Context
		candidates int
		read       func(candidate) (Conmon, int, error)
		conmons    int
		want       []LeftOut
	}{
		{"nothing", context.Background(), maxConmons, func(c candidate) (Conmon, int, error) { return Conmon{PID: c.pid}, 1000, nil }, maxConmons, nil},
		{"processes that end meanwhile", context.Background(), 5, none, 0, nil},
		{"too many", context.Background(), maxConmons + 7, none, 0, []LeftOut{{web, 7, ErrTooMany}}},
		{"too much", context.Background(), 9, func(c candidate) (Conmon, int, error) { return Conmon{PID: c.pid}, maxTotal / 4, nil }, 4, []LeftOut{{web, 5, ErrTooLarge}}},
		{"one that is too large", context.Background(), 3, func(c candidate) (Conmon, int, error) {
			if c.pid == 1 {
				return Conmon{}, 0, regular.ErrTooLarge
			}
			return Conmon{PID: c.pid}, 1000, nil
		}, 2, []LeftOut{{web, 1, ErrTooLarge}}},
		{"some that never answer", context.Background(), maxNoAnswer + 3, func(c candidate) (Conmon, int, error) {
			if c.pid == 0 {
				return Conmon{PID: c.pid}, 1000, nil
			}
			select {}
		}, 1, []LeftOut{{web, maxNoAnswer + 2, ErrNoAnswer}}},
		{"too late", tooLate, 3, none, 0, []LeftOut{{web, 3, late}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			candidates := make([]candidate, c.candidates)
			for i := range candidates {
				candidates[i] = candidate{pid: i, uid: web}
			}
			started := time.Now()
			got := takeUser(c.ctx, web, candidates, c.read)
			if len(got.Conmons) != c.conmons || !slices.Equal(got.LeftOut, c.want) {
				t.Errorf("%d conmons, %v; want %d, %v", len(got.Conmons), got.LeftOut, c.conmons, c.want)
			}
			if took := time.Since(started); took > (maxNoAnswer+1)*patience {
				t.Errorf("took %v", took)
			}
		})
	}
	if text := (LeftOut{web, 7, ErrTooMany}).String(); text != "7 processes of user 4711 that execute conmon are left out: there are more than 1000" {
		t.Error(text)
	}
}

// TestDeadline: a process that never answers does not keep Take beyond its time.
func TestDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	started := time.Now()
	got := takeUser(ctx, web, make([]candidate, 2), func(candidate) (Conmon, int, error) { select {} })
	if !slices.Equal(got.LeftOut, []LeftOut{{web, 2, context.DeadlineExceeded}}) || time.Since(started) > patience {
		t.Errorf("%+v after %v", got, time.Since(started))
	}
	if _, err := Take(ctx, nil, conmonbridge.Executables); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("of a time that is over: %v", err)
	}
}

// largeArguments are a command line of at least that size, in bytes.
func largeArguments(size int) []string {
	args := arguments(id("9"), id("9"), "large")
	for size > 0 {
		arg := strings.Repeat("x", min(size, 100<<10)) // execve(2): at most 128 KiB
		args = append(args, arg)
		size -= len(arg)
	}
	return args
}

// TestManyLarge has some hundred processes of one user execute conmon with as much
// on their command lines as execve(2) takes. The census of all users costs a few
// MB, and has the other user's conmon.
func TestManyLarge(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	skipUnlessRoot(t)
	if conmon := os.Getenv("CENSUS_OF"); conmon != "" {
		conmonbridge.Executables = []string{conmon}
		var users map[int]bool
		if os.Getenv("CENSUS_NOBODY") != "" {
			users = map[int]bool{}
		}
		all := take(t, users)
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, peak, _ := strings.Cut(string(status), "VmHWM:")
		fmt.Printf("%s KiB: %d conmons, %v\n", strings.Fields(peak)[0], len(all.Conmons), all.LeftOut)
		return
	}
	const processes, size = 200, 1500 << 10
	dir := t.TempDir()
	for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	conmon := filepath.Join(dir, "conmon")
	if err := os.WriteFile(conmon, shell, 0o755); err != nil {
		t.Fatal(err)
	}
	stdin, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	start := func(uid int, args []string) {
		cmd := exec.Command(conmon, append([]string{"-c", "read x"}, args...)...)
		cmd.Stdin = stdin
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	defer hold.Close()
	args := largeArguments(size)
	for range processes {
		start(web, args)
	}
	start(db, nil)
	// census returns the most memory that a process which takes one has had, in KiB,
	// and what the census is.
	census := func(env ...string) (kib int, all string) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestManyLarge$")
		cmd.Env = append(os.Environ(), append(env, "CENSUS_OF="+conmon)...)
		out, err := cmd.CombinedOutput()
		line, _, _ := strings.Cut(string(out), "\n")
		size, all, _ := strings.Cut(line, " KiB: ")
		kib, atoiErr := strconv.Atoi(size)
		if err := errors.Join(err, atoiErr); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return kib, all
	}
	least, none := census("CENSUS_NOBODY=1")
	started := time.Now()
	most, all := census()
	t.Logf("%d processes with %d KiB of arguments each: %d KiB in %v, %s; of nobody: %d KiB, %s", processes, size>>10, most, time.Since(started), all, least, none)
	left := LeftOut{web, processes, ErrTooLarge}
	if want := fmt.Sprintf("1 conmons, [%v]", left); all != want {
		t.Errorf("%s, want %s", all, want)
	}
	if none != "0 conmons, []" {
		t.Errorf("of nobody: %s", none)
	}
	if more := most - least; more > 16<<10 {
		t.Errorf("%d KiB more than the census of nobody", more)
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

func TestElsewhere(t *testing.T) {
	all := []Conmon{
		{PID: 1, UID: 1000, Unit: "web.service", InvocationID: "now"},
		{PID: 2, UID: 0, Unit: "web.service", InvocationID: "old"},
		{PID: 3, UID: 0, InvocationID: "now"},
		{PID: 4, UID: 0, Unit: "db.service"},
		{PID: 5, UID: 1001, Unit: "web.service"},
		{PID: 6, UID: 1001, InvocationID: "now"},
	}
	ofRoot, claiming := Start{Unit: "web.service", UID: 1000, InvocationID: "now"}.Elsewhere(all)
	if len(ofRoot) != 2 || ofRoot[0].PID != 2 || ofRoot[1].PID != 3 || len(claiming) != 1 || claiming[0].PID != 5 {
		t.Errorf("%v, %v", ofRoot, claiming)
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
		"without a start": {self, start, ""},
		"another user's":  {self, Start{UID: 4242}, "runs as UID"},
		"no conmon":       {Conmon{PID: self.PID, InvocationID: "aa"}, start, "does not execute conmon"},
		"gone":            {Conmon{PID: 1 << 22}, start, "no such process"},
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

// TestReplaced: an upgrade of conmon's package replaces the file of conmons that run.
func TestReplaced(t *testing.T) {
	skipUnlessRoot(t)
	conmon := conmontest.Start(t, conmontest.Options{UID: web, Args: arguments(id("1"), id("1"), "web"), Env: []string{"INVOCATION_ID=aa"}})
	isConmon(t, conmon.Executable)
	upgraded := conmon.Executable + ".new"
	if err := errors.Join(os.WriteFile(upgraded, []byte("new"), 0o755), os.Rename(upgraded, conmon.Executable)); err != nil {
		t.Fatal(err)
	}
	got := take(t, map[int]bool{web: true}).Conmons
	if len(got) != 1 || !got[0].Replaced || got[0].PID != conmon.PID {
		t.Fatalf("%+v", got)
	}
	start := Start{UID: web, InvocationID: "aa", MainPID: conmon.PID, Executables: conmonbridge.Executables}
	if err := start.Verify(got[0]); err != nil {
		t.Error(err)
	}
	// To systemd it is no conmon.
	claim, err := conmonbridge.NewClaim(conmon.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Close()
	err = claim.Verify(conmonbridge.Expected{Requirement: conmonbridge.RequireConmon, UID: web, InvocationID: "aa", Executables: conmonbridge.Executables})
	if err == nil || !strings.Contains(err.Error(), "does not execute conmon") {
		t.Errorf("got %v", err)
	}
	for name, spoil := range map[string]func(path string) error{
		"another path":              func(path string) error { conmonbridge.Executables = []string{path + "2"}; return nil },
		"a file of the user's":      func(path string) error { return os.Chown(path, web, web) },
		"one that others may write": func(path string) error { return os.Chmod(path, 0o757) },
	} {
		t.Run(name, func(t *testing.T) {
			conmon := conmontest.Start(t, conmontest.Options{UID: web, Args: arguments(id("1"), id("1"), "web")})
			isConmon(t, conmon.Executable)
			if err := errors.Join(spoil(conmon.Executable), os.Remove(conmon.Executable)); err != nil {
				t.Fatal(err)
			}
			if got := take(t, map[int]bool{web: true}).Conmons; slices.ContainsFunc(got, func(c Conmon) bool { return c.PID == conmon.PID }) {
				t.Errorf("it counts: %+v", got)
			}
		})
	}
}
