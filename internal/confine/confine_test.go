package confine

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/conmontest"
)

// TestConfine looks, from inside a process that has confined itself, at what the
// kernel says of each of its threads.
func TestConfine(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	const keep = 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH
	if os.Getenv("CONFINE_TEST") != "" {
		if err := Bound(); err != nil {
			t.Fatal(err)
		}
		if err := Privileges(keep); err != nil {
			t.Fatal(err)
		}
		limits, err := os.ReadFile("/proc/self/limits")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s", limits)
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			status, err := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("%s", status)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestConfine$")
	cmd.Env = append(os.Environ(), "CONFINE_TEST=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	has := map[string]map[string]bool{}
	for line := range strings.Lines(string(out)) {
		for _, name := range []string{"Max cpu time", "Max data size", "Max core file size", "NoNewPrivs:", "CapPrm:", "CapEff:", "CapInh:"} {
			if value, ok := strings.CutPrefix(line, name); ok {
				if has[name] == nil {
					has[name] = map[string]bool{}
				}
				has[name][strings.Join(strings.Fields(value), " ")] = true
			}
		}
	}
	kept := fmt.Sprintf("%016x", keep)
	if os.Geteuid() != 0 {
		kept = fmt.Sprintf("%016x", 0)
	}
	for name, want := range map[string]string{
		"Max cpu time": "10 10 seconds", "Max data size": "268435456 268435456 bytes", "Max core file size": "0 0 bytes",
		"NoNewPrivs:": "1", "CapPrm:": kept, "CapEff:": kept, "CapInh:": fmt.Sprintf("%016x", 0),
	} {
		if len(has[name]) != 1 || !has[name][want] {
			t.Errorf("%s %v, want %q of all threads", name, has[name], want)
		}
	}
}
