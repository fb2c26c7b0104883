//go:build e2e

// Package e2e tests the installed product on real systemd and podman: each case
// on a throw-away machine of each stack, see package sandbox. It needs root.
//
//	go test -tags e2e ./test/e2e -stacks=trixie -run TestMainPID
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

// stacksVariable names the environment variable that has the default of -stacks.
const stacksVariable = "OCI_MAINPID_STACKS"

var (
	stackNames = flag.String("stacks", defaultStacks(), "comma-separated `SUITES` of Debian to test on; by default $"+stacksVariable)
	keep       = flag.Bool("keep", false, "leave the machines running, for a look around")
)

func defaultStacks() string {
	if names := os.Getenv(stacksVariable); names != "" {
		return names
	}
	return string(sandbox.Trixie + "," + sandbox.Forky)
}

// interrupted ends with the first interrupt: the commands in the machines fail,
// so that the tests end and the machines are powered off.
var interrupted, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)

// scratch is a directory for what the tests share.
var scratch string

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if scratch, err = os.MkdirTemp("", "oci-mainpid-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	stop()
	os.RemoveAll(scratch)
	for _, s := range stacks() {
		if err := s.end(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = max(status, 1)
		}
	}
	os.Exit(status)
}

// stack is what one of Debian's suites makes of the product. All cases share
// its machine, which boots for the first of them.
type stack struct {
	suite sandbox.Suite
	once  sync.Once
	box   *sandbox.Machine
	err   error
}

var stacks = sync.OnceValue(func() []*stack {
	var all []*stack
	for _, name := range strings.Split(*stackNames, ",") {
		all = append(all, &stack{suite: sandbox.Suite(strings.TrimSpace(name))})
	}
	return all
})

func (s *stack) machine() (*sandbox.Machine, error) {
	s.once.Do(func() {
		var progress bytes.Buffer
		if s.box, s.err = sandbox.Boot(interrupted, sandbox.Config{Suite: s.suite, Progress: &progress}); s.err == nil {
			s.err = install(s.box)
		} else {
			s.err = fmt.Errorf("%w\n%s", s.err, &progress)
		}
	})
	return s.box, s.err
}

func (s *stack) end() error {
	if s.box == nil {
		return nil
	}
	if *keep {
		fmt.Println("still running:", s.box.Name)
		return nil
	}
	return s.box.PowerOff(context.Background())
}

// makeMutex: two machines, one directory that the Makefile builds in.
var makeMutex sync.Mutex

// runMake runs a target of the Makefile for a directory that stands for the
// root of another system.
func runMake(target, destdir string) error {
	if !filepath.IsAbs(destdir) || filepath.Clean(destdir) == "/" {
		return fmt.Errorf("make %s DESTDIR=%q: would change this machine", target, destdir)
	}
	return runMakefile(target, "DESTDIR="+destdir, "PREFIX=/usr")
}

// runMakefile runs make with the arguments in the directory of the Makefile.
func runMakefile(args ...string) error {
	makeMutex.Lock()
	defer makeMutex.Unlock()
	cmd := exec.Command("make", append([]string{"--directory=../.."}, args...)...)
	// These tests are run by make themselves; its flags are not for this one.
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// product makes a directory that stands for the root of a Debian system that has the
// product and the guest. Each machine gets a copy: make takes seconds.
var product = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(scratch, "product")
	debian := filepath.Join(dir, "etc", "debian_version") // where zsh looks is Debian's own, see ZSHCOMPDIR
	err := errors.Join(os.MkdirAll(filepath.Dir(debian), 0o755), os.WriteFile(debian, nil, 0o644))
	if err != nil {
		return "", err
	}
	return dir, errors.Join(runMake("install", dir), installGuest(dir))
})

// install installs the product and the guest.
func install(box *sandbox.Machine) error {
	dir, err := product()
	if err != nil {
		return err
	}
	archive, err := exec.Command("tar", "--create", "--directory="+dir, "usr").Output()
	if err != nil {
		return fmt.Errorf("copy the product: %w", err)
	}
	extract := exec.Command("tar", "--extract", "--no-overwrite-dir", "--directory="+box.Root())
	extract.Stdin = bytes.NewReader(archive)
	if out, err := extract.CombinedOutput(); err != nil {
		return fmt.Errorf("install the product in %s: %w\n%s", box.Root(), err, out)
	}
	if out, err := box.Command(interrupted, "journalctl", "--update-catalog").CombinedOutput(); err != nil {
		return fmt.Errorf("journalctl --update-catalog: %w\n%s", err, out)
	}
	return nil
}

// onStacks runs a test on each stack's machine, on all stacks at once.
func onStacks(t *testing.T, test func(m machine)) {
	onStacksIn(t, everywhere, test)
}

// onStacksIn is onStacks for a test that one stack may be enough for.
func onStacksIn(t *testing.T, where place, test func(m machine)) {
	for _, s := range stacks() {
		if !where.has(s.suite) {
			continue
		}
		t.Run(string(s.suite), func(t *testing.T) {
			t.Parallel()
			box, err := s.machine()
			if err != nil {
				t.Fatal(err)
			}
			test(machine{t, box})
		})
	}
}

// place says on which stacks a test runs. What depends on our programs and the kernel
// alone needs one of them only: such tests are shared out so that all machines are busy
// for as long. With -everywhere, and in make attack, everything runs everywhere.
type place int

var runEverywhere = flag.Bool("everywhere", false, "run all cases on all stacks, also those that one stack is enough for, and those that differ little from others")

const (
	everywhere place = iota
	onFirst
	onLast
)

func (p place) has(suite sandbox.Suite) bool {
	all := stacks()
	switch {
	case *runEverywhere || thorough():
	case p == onFirst:
		return suite == all[0].suite
	case p == onLast:
		return suite == all[len(all)-1].suite
	}
	return true
}

// onOneStack is onStacks for a test that needs one stack, beside other such tests.
func onOneStack(t *testing.T, where place, test func(m machine)) {
	t.Parallel()
	onStacksIn(t, where, test)
}

// onFreshMachinesIn is onStacksIn for a test that changes its machine for good. The
// machine has not got the product.
func onFreshMachinesIn(t *testing.T, where place, test func(m machine)) {
	for _, s := range stacks() {
		if where.has(s.suite) {
			s.onFreshMachine(t, test)
		}
	}
}

func (s *stack) onFreshMachine(t *testing.T, test func(m machine)) {
	t.Run(string(s.suite), func(t *testing.T) {
		t.Parallel()
		box, err := sandbox.Boot(interrupted, sandbox.Config{Suite: s.suite})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := box.PowerOff(context.Background()); err != nil {
				t.Error(err)
			}
		})
		test(machine{t, box})
	})
}

// machine is a machine in the hands of one test.
type machine struct {
	t   *testing.T
	box *sandbox.Machine
}

// subtest runs a case of the test.
func (m machine) subtest(name string, test func(m machine)) {
	m.t.Helper()
	m.subtestIn(everywhere, name, test)
}

// subtestIn is subtest for a case that one stack may be enough for.
func (m machine) subtestIn(where place, name string, test func(m machine)) {
	m.t.Helper()
	if !where.has(m.box.Suite) {
		return
	}
	m.t.Run(name, func(t *testing.T) { test(machine{t, m.box}) })
}

// dealt counts the cases of each test that were dealt out to the stacks.
var dealt = struct {
	sync.Mutex
	cases map[string]int
}{cases: map[string]int{}}

// share is subtest for a case of which one stack is enough, where a test has many: they
// are dealt out to the stacks. Each round begins with the next stack. So with crun and
// runc in turn, each stack gets both.
func (m machine) share(name string, test func(m machine)) {
	m.t.Helper()
	dealt.Lock()
	i := dealt.cases[m.t.Name()]
	dealt.cases[m.t.Name()]++
	dealt.Unlock()
	all := stacks()
	if suite := all[(i+i/len(all))%len(all)].suite; suite == m.box.Suite || *runEverywhere || thorough() {
		m.subtest(name, test)
	}
}

// rare is subtest for a case that only -everywhere tries: others show nearly the same.
func (m machine) rare(name string, test func(m machine)) {
	m.t.Helper()
	if *runEverywhere || thorough() {
		m.subtest(name, test)
	}
}

// everyOther is share for every other one of cases that differ little, and rare for those
// between, by the case's number.
func (m machine) everyOther(i int, name string, test func(m machine)) {
	m.t.Helper()
	if i%2 == 0 {
		m.share(name, test)
	} else {
		m.rare(name, test)
	}
}

// result is what became of a command.
type result struct {
	command        []string
	stdout, stderr string
	status         int // 128 and the number of the signal that ended it, as for a shell
}

func (r result) String() string {
	return fmt.Sprintf("%q: exit status %d\nstdout: %s\nstderr: %s", r.command, r.status, r.stdout, r.stderr)
}

// commandTimeout bounds every command in a machine. The longest that is meant
// to be is the start of a unit that waits for its hook.
var commandTimeout = 2 * time.Minute

// try runs a command as root, which may fail.
func (m machine) try(args ...string) result {
	m.t.Helper()
	return m.feed("", args...)
}

// feed is try with standard input.
func (m machine) feed(stdin string, args ...string) result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(interrupted, commandTimeout)
	defer cancel()
	return m.finish(ctx, m.box.Command(ctx, args[0], args[1:]...), stdin, args)
}

// finish runs a command that ends with the context.
func (m machine) finish(ctx context.Context, cmd *exec.Cmd, stdin string, args []string) result {
	m.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	// A reader that does not want all of its input is no failure.
	if errors.Is(err, syscall.EPIPE) {
		err = nil
	}
	r := result{command: args, stdout: strings.TrimSpace(stdout.String()), stderr: strings.TrimSpace(stderr.String())}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		m.t.Fatalf("%q: %v\n%v", args, ctx.Err(), r)
	case errors.As(err, &exit):
		r.status = exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.status = 128 + int(ws.Signal())
		}
	case err != nil:
		m.t.Fatalf("%q: %v", args, err)
	}
	return r
}

// must fails the test unless a command succeeded, and returns what it wrote to
// standard output.
func (m machine) must(r result) string {
	m.t.Helper()
	if r.status != 0 {
		m.t.Fatal(r)
	}
	return r.stdout
}

// run runs a command as root and returns what it wrote to standard output.
func (m machine) run(args ...string) string {
	m.t.Helper()
	return m.must(m.try(args...))
}

// shell runs a script, with arguments from $1 on.
func (m machine) shell(script string, args ...string) string {
	m.t.Helper()
	return m.run(append([]string{"sh", "-ec", script, "sh"}, args...)...)
}

// write makes a file, and the directories above it.
func (m machine) write(path, text string) {
	m.t.Helper()
	m.must(m.feed(text, "sh", "-ec", `mkdir -p "${1%/*}"; cat >"$1"`, "sh", path))
}

func (m machine) systemctl(args ...string) string {
	m.t.Helper()
	return m.run(append([]string{"systemctl"}, args...)...)
}

// property returns a property of a unit, see systemctl show.
func (m machine) property(unit, name string) string {
	m.t.Helper()
	return m.systemctl("show", "--value", "--property="+name, "--", unit)
}

// journal returns the messages of a unit, see journalctl(1) for more arguments.
func (m machine) journal(unit string, args ...string) string {
	m.t.Helper()
	// What was sent before is there when this returns.
	m.run("journalctl", "--sync")
	return m.run(append([]string{"journalctl", "--no-pager", "--output=cat", "--unit=" + unit}, args...)...)
}

// cgroup returns the control group of a process.
func (m machine) cgroup(pid string) string {
	m.t.Helper()
	return strings.TrimPrefix(m.run("grep", "^0:", "/proc/"+pid+"/cgroup"), "0::")
}

// await waits until something is so, and fails the test when that takes longer
// than it may.
func (m machine) await(what string, within time.Duration, so func() bool) {
	m.t.Helper()
	// To ask is mostly a command in the machine, which takes the processor from what
	// is awaited: ask less often the longer it takes.
	pause := 20 * time.Millisecond
	for deadline := time.Now().Add(within); !so(); time.Sleep(pause) {
		if time.Now().After(deadline) {
			m.t.Fatalf("after %v still not: %s", within, what)
		}
		pause = min(pause*3/2, 300*time.Millisecond)
	}
}

// soon is for what takes a machine that is not busy a moment.
var soon = 20 * time.Second

// userNumber counts the users of all machines.
var userNumber atomic.Int32

// user is a user of a machine who runs containers.
type user struct {
	machine
	name, uid string
	homeDir   string // /home/NAME if empty
}

// existingUser is a user whom something else has made.
func (m machine) existingUser(name string) user {
	m.t.Helper()
	fields := strings.Split(m.run("getent", "passwd", name), ":")
	return user{machine: m, name: name, uid: fields[2], homeDir: fields[5]}
}

// imageName is the image that every user has.
const imageName = "localhost/busybox"

// userStorage is a copy of the storage of a user who has the image and whose
// podman has no database yet, which would name the directories of that user.
const userStorage = "/var/lib/storage-of-users"

// user makes a user. As after a boot, nothing of the user's podman has run.
func (m machine) user() user {
	m.t.Helper()
	u := m.userWithoutImage()
	storage := u.home() + "/.local/share/containers/storage"
	if m.try("test", "-e", userStorage).status == 0 {
		m.shell(`mkdir -p "${1%/*}"; cp -a "$2" "$1"; chown -R --no-dereference "$3:" "$4"`, storage, userStorage, u.name, u.home()+"/.local")
		return u
	}
	u.systemctl("start", "user@"+u.uid)
	u.podman("import", "--quiet", sandbox.BusyboxTar, imageName)
	// user@UID is bound to it: both end, and what podman has in /run goes.
	u.systemctl("stop", "user-runtime-dir@"+u.uid)
	if r := u.try("test", "!", "-e", u.runtimeDir()); r.status != 0 {
		m.t.Fatalf("%s is still there", u.runtimeDir())
	}
	// Cases run beside each other; the first one that is done counts.
	m.shell(`cp -a "$1" "$2.$3"; rm -f "$2.$3/db.sql" "$2.$3/libpod/bolt_state.db"; mv -T "$2.$3" "$2" || rm -rf "$2.$3"`, storage, userStorage, u.name)
	return u
}

// userWithoutImage makes a user who need not run containers.
func (m machine) userWithoutImage() user {
	m.t.Helper()
	u := user{machine: m, name: fmt.Sprintf("user%03d", userNumber.Add(1))}
	m.run("useradd", "--create-home", u.name)
	u.uid = m.run("id", "--user", u.name)
	m.t.Cleanup(func() {
		if !*keep {
			// It may refuse to be stopped, so as to survive the user's logout.
			m.try("systemctl", "kill", "--kill-whom=main", "user@"+u.uid)
		}
	})
	return u
}

func (u user) runtimeDir() string { return "/run/user/" + u.uid }
func (u user) home() string       { return cmp.Or(u.homeDir, "/home/"+u.name) }

// as returns the command line that runs a command as the user, outside of any
// session and unit.
func (u user) as(args ...string) []string {
	return append([]string{
		"setpriv", "--reuid=" + u.uid, "--regid=" + u.name, "--init-groups",
		"env", "--chdir=/", "HOME=" + u.home(), "USER=" + u.name, "XDG_RUNTIME_DIR=" + u.runtimeDir(),
	}, args...)
}

// podman runs podman as the user, and returns what it wrote to standard output.
func (u user) podman(args ...string) string {
	u.t.Helper()
	return u.must(u.try(u.as(append([]string{"podman"}, args...)...)...))
}

// inspect returns what podman knows of a container.
func (u user) inspect(container, format string) string {
	u.t.Helper()
	return u.podman("container", "inspect", "--format={{"+format+"}}", container)
}

// login runs a command in a session of the user's, which ends with it.
func (u user) login(args ...string) result {
	u.t.Helper()
	return u.try(append([]string{
		"systemd-run", "--quiet", "--collect", "--pipe", "--wait", "--property=User=" + u.name, "--property=PAMName=login", "--",
	}, args...)...)
}

// writeHome makes a file as the user, whose path is relative to the home.
func (u user) writeHome(path, text string) {
	u.t.Helper()
	u.must(u.feed(text, u.as("sh", "-ec", `mkdir -p "${1%/*}"; cat >"$1"`, "sh", filepath.Join(u.home(), path))...))
}
