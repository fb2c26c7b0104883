// Package conmontest is a conmon for tests: a real process of that name with a
// child that stands for the container, and nothing else of conmon.
package conmontest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Main takes over a process that Start has started, and returns in any other.
// A package that uses Start calls it first in its TestMain.
func Main() {
	name := filepath.Base(os.Args[0])
	switch name {
	case "conmon", "runtime":
		below, rest, _ := strings.Cut(os.Getenv("CONMONTEST_BELOW"), " ")
		if below == "" {
			fmt.Println(0)
			break
		}
		cmd := &exec.Cmd{
			Path: "/proc/self/exe", Args: []string{below},
			Env:   []string{"CONMONTEST_BELOW=" + rest},
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		}
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if below == "zombie" {
			for state := ""; !strings.Contains(state, ") Z "); time.Sleep(time.Millisecond) {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				state = string(b)
			}
			fmt.Println(cmd.Process.Pid)
		}
	case "container":
		fmt.Println(os.Getpid())
	case "zombie":
		os.Exit(0)
	default:
		return
	}
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// Conmon is a fake conmon that runs.
type Conmon struct {
	Executable string // path
	PID        int
	Container  int // PID of the container's first process, 0 if there is none
}

// Options say what Start starts; the zero value is an ordinary conmon.
type Options struct {
	// Executable is the path of a conmon's that Start made before, a new one if
	// empty.
	Executable string
	Name       string   // of a new executable, "conmon" if empty
	Args       []string // conmon's arguments
	Env        []string // conmon's whole environment
	Files      []*os.File
	// Below is the line of processes below it: "container" if nil, "runtime"
	// and "container" while runc creates it, none if empty, "zombie" for a
	// container that has ended.
	Below []string
	// UID is the user whom it runs as, this one's if 0.
	UID int
}

// OwnProgram is what a test needs that starts its own program.
const OwnProgram = "execution of a program of another processor"

// Emulated reports whether the tests run under make emulated.
func Emulated() bool { return os.Getenv("OCI_MAINPID_EMULATED") != "" }

// NotEmulated skips a test that needs what qemu-user(1) has not got, under make emulated.
func NotEmulated(t *testing.T, needed string) {
	t.Helper()
	if Emulated() {
		t.Skip("qemu-user has no " + needed)
	}
}

// AtMost returns how long a computation may take that takes at most d on a processor: ten
// times as long under make emulated.
func AtMost(d time.Duration) time.Duration {
	if Emulated() {
		d *= 10
	}
	return d
}

// Start starts a conmon with a container; both end with the test.
func Start(t *testing.T, o Options) Conmon {
	t.Helper()
	NotEmulated(t, OwnProgram)
	if o.Name == "" {
		o.Name = "conmon"
	}
	if o.Below == nil {
		o.Below = []string{"container"}
	}
	c := Conmon{Executable: o.Executable}
	if c.Executable == "" {
		c.Executable = filepath.Join(dir(t), o.Name)
		copyExecutable(t, c.Executable)
	}
	cmd := exec.Command(c.Executable, o.Args...)
	// The name that it goes by inside is always conmon.
	cmd.Args[0] = "conmon"
	cmd.Env = append([]string{"CONMONTEST_BELOW=" + strings.Join(o.Below, " ")}, o.Env...)
	cmd.ExtraFiles = o.Files
	cmd.SysProcAttr = credential(o.UID)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("conmon does not say which container it has: %v", err)
	}
	if c.Container, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatal(err)
	}
	c.PID = cmd.Process.Pid
	return c
}
