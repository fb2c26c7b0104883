package hook

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runtime-spec/specs-go"

	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/message"
)

func TestMain(m *testing.M) {
	conmontest.Main()
	os.Exit(m.Run())
}

// state is the container's state as the runtime specification has it.
func state(pid int, status specs.ContainerState) string {
	b, err := json.Marshal(specs.State{
		Version: specs.Version, ID: "97b9f30d24ab", Status: status, Pid: pid, Bundle: "/x/userdata",
		Annotations: map[string]string{"io.container.manager": "libpod"},
	})
	if err != nil {
		panic(err)
	}
	return string(b) + "\n"
}

func TestMalformedState(t *testing.T) {
	good := state(os.Getpid(), "running")
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", "is empty"},
		{"truncated", good[:len(good)/2], "unexpected end of JSON input"},
		{"not JSON", "running", "invalid character"},
		{"binary", "\x00\xff\xfe", "invalid character"},
		{"another JSON value", "[1]", "cannot unmarshal array"},
		{"more behind it", good + good, "after top-level value"},
		{"pid that is text", `{"id":"x","status":"running","pid":"5"}`, "cannot unmarshal string"},
		{"pid larger than any number", `{"id":"x","status":"running","pid":99999999999999999999}`, "cannot unmarshal number"},
		{"no pid", `{"id":"x","status":"running"}`, `container "x" is running with pid 0`},
		{"pid 0", state(0, "running"), `container "97b9f30d24ab" is running with pid 0`},
		{"pid 1", state(1, "created"), "is created with pid 1"},
		{"negative pid", state(-5, "running"), "with pid -5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Run(strings.NewReader(c.in), new(message.Log))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "container state on standard input") {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 300) {
				t.Errorf("not one short line: %q", err)
			}
		})
	}
}

func TestNothingToDo(t *testing.T) {
	notOurs := conmontest.Start(t, conmontest.Options{Env: []string{"PODMAN_SYSTEMD_UNIT=web.service"}})
	file := filepath.Join(t.TempDir(), "mainpid")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ours := conmontest.Start(t, conmontest.Options{Env: []string{"OCI_MAINPID_FILE=" + file}})
	for name, in := range map[string]string{
		"a container of no unit of ours": state(notOurs.Container, "running"),
		"no conmon above it":             state(os.Getpid(), "running"),
		"a process that is gone":         state(4194303, "running"),
		"creating":                       state(ours.Container, "creating"),
		"stopped":                        state(ours.Container, "stopped"),
		"stopped, without a pid":         `{"id":"x","status":"stopped"}`,
	} {
		t.Run(name, func(t *testing.T) {
			if err := Run(strings.NewReader(in), new(message.Log)); err != nil {
				t.Error(err)
			}
		})
	}
	if b, err := os.ReadFile(file); len(b) != 0 || err != nil {
		t.Errorf("the mainpid file holds %q, %v", b, err)
	}
}

// unit is a unit's files and a conmon of it.
func unit(t *testing.T, below []string, env ...string) (file string, c conmontest.Conmon) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "mainpid")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	env = append(env, "PODMAN_SYSTEMD_UNIT=web.service", "OCI_MAINPID_FILE="+file)
	return file, conmontest.Start(t, conmontest.Options{Env: env, Below: below})
}

func TestDeliver(t *testing.T) {
	for _, c := range []struct {
		name   string
		status specs.ContainerState
		below  []string
	}{
		{"crun, which runs the hook behind the start", specs.StateRunning, []string{"container"}},
		{"runc, which runs it before", specs.StateCreated, []string{"runtime", "container"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file, conmon := unit(t, c.below)
			for range 2 { // the second time stands for the unit's second container
				if err := Run(strings.NewReader(state(conmon.Container, c.status)), new(message.Log)); err != nil {
					t.Fatal(err)
				}
				if b, err := os.ReadFile(file); string(b) != fmt.Sprintf("%d\n", conmon.PID) || err != nil {
					t.Errorf("the file holds %q, %v; want %d", b, err, conmon.PID)
				}
			}
		})
	}
}

func TestDeliverWaits(t *testing.T) {
	for _, c := range []struct{ name, answer, want string }{
		{"taken", "ok\n", ""},
		{"refused", "error: process 5: runs as UID 0\n", "web.service: notify-mainpid: process 5: runs as UID 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			result := filepath.Join(t.TempDir(), "result")
			if err := os.WriteFile(result, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			file, conmon := unit(t, nil, "OCI_MAINPID_RESULT="+result)
			done := make(chan error)
			go func() { done <- Run(strings.NewReader(state(conmon.Container, "running")), new(message.Log)) }()
			// It holds podman for as long as there is no answer.
			inotify, err := unix.InotifyInit1(unix.IN_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(inotify)
			if _, err := unix.InotifyAddWatch(inotify, file, unix.IN_CLOSE_WRITE|unix.IN_MODIFY); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(file); len(b) == 0 && err == nil {
				if _, err := unix.Read(inotify, make([]byte, 4096)); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case err := <-done:
				t.Fatalf("did not wait: %v", err)
			default:
			}
			if err := os.WriteFile(result, []byte(c.answer), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := <-done; (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestDeliverFails(t *testing.T) {
	file, conmon := unit(t, nil)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	err := Run(strings.NewReader(state(conmon.Container, "running")), new(message.Log))
	if err == nil || !strings.HasPrefix(err.Error(), "web.service: open "+file) {
		t.Errorf("got %v", err)
	}
}

// large is a state as crun writes it, with so many annotations that the hook does
// not keep all of it.
func large(pid int, status specs.ContainerState) string {
	return fmt.Sprintf(`{"ociVersion":"1.0","id":"97b9f30d24ab","pid":%d,"root":"/x","bundle":"/x","status":%q,"annotations":{"a":"%s"}}`,
		pid, status, strings.Repeat("x", 2*maxState))
}

func TestLargeState(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	stranger := conmontest.Start(t, conmontest.Options{})
	annotationsFirst := `{"annotations":{"a":"` + strings.Repeat("x", 2*maxState) + `"},"id":"x","status":"running","pid":5}`
	for name, in := range map[string]string{
		"a stranger's": large(stranger.Container, "running"),
		"a stranger's, with the annotations first":   annotationsFirst,
		"a stranger's, an ID that is too large":      `{"id":"` + strings.Repeat("x", 2*maxState) + `"}`,
		"a stranger's, annotations without an end":   large(stranger.Container, "running")[:maxState*3/2],
		"a container that is stopped":                large(stranger.Container, "stopped"),
		"a container whose process has gone already": large(4194303, "running"),
	} {
		t.Run(name, func(t *testing.T) {
			stdin := strings.NewReader(in)
			if err := Run(stdin, new(message.Log)); err != nil {
				t.Error(err)
			}
			// The runtime must not fail to write the rest.
			if stdin.Len() > 0 {
				t.Errorf("%d bytes are not read", stdin.Len())
			}
		})
	}
	t.Run("ours", func(t *testing.T) {
		file, conmon := unit(t, nil)
		if err := Run(strings.NewReader(large(conmon.Container, "running")), new(message.Log)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(file); string(b) != fmt.Sprintf("%d\n", conmon.PID) || err != nil {
			t.Errorf("the file holds %q, %v; want %d", b, err, conmon.PID)
		}
	})
}

// TestLargeStateOfOurs runs the hook below a process that has a destination, as
// crun has below podman, with a state from which the hook learns nothing.
func TestLargeStateOfOurs(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	if os.Getenv("HOOK_BELOW_PODMAN") != "" {
		err := Run(strings.NewReader(`{"id":"`+strings.Repeat("x", 2*maxState)+`"}`), new(message.Log))
		fmt.Println("hook:", err)
		return
	}
	podman := exec.Command("sh", "-c", `"$0" -test.run='^TestLargeStateOfOurs$'; true`, os.Args[0])
	podman.Env = append(os.Environ(), "HOOK_BELOW_PODMAN=1", "OCI_MAINPID_FILE=/run/oci-mainpid/web.service/mainpid")
	out, err := podman.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "hook: container state on standard input: its first 4 MiB have no id, status and pid") {
		t.Errorf("%q, %v", out, err)
	}
}

// TestContainerThatHasEnded runs the hook below a process that has a destination, as
// crun has below podman, for a container whose first process has gone.
func TestContainerThatHasEnded(t *testing.T) {
	conmontest.NotEmulated(t, conmontest.OwnProgram)
	id := strings.Repeat("0123456789abcdef", 4)
	in := strings.Replace(state(4194303, "running"), "97b9f30d24ab", id, 1)
	if os.Getenv("HOOK_BELOW_PODMAN") != "" {
		fmt.Println("hook:", Run(strings.NewReader(in), new(message.Log)))
		return
	}
	hook := func(file string) string {
		podman := exec.Command("sh", "-c", `"$0" -test.run='^TestContainerThatHasEnded$'; true`, os.Args[0])
		podman.Env = append(os.Environ(), "HOOK_BELOW_PODMAN=1", "OCI_MAINPID_FILE="+file)
		out, err := podman.CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	file := filepath.Join(t.TempDir(), "mainpid")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := hook(file); !strings.Contains(out, "no conmon above it") {
		t.Errorf("without a conmon: %s", out)
	}
	other := conmontest.Options{Below: []string{}, Args: []string{"-c", id, "-u", strings.Repeat("f", 64)}, Env: []string{"OCI_MAINPID_FILE=" + file}}
	conmontest.Start(t, other) // of a podman exec
	conmon := conmontest.Start(t, conmontest.Options{Below: []string{}, Args: []string{"-c", id, "-u", id}, Env: []string{"OCI_MAINPID_FILE=" + file}})
	if out := hook(file); !strings.Contains(out, "hook: <nil>") {
		t.Errorf("%s", out)
	}
	if b, err := os.ReadFile(file); string(b) != fmt.Sprintf("%d\n", conmon.PID) || err != nil {
		t.Errorf("the file holds %q, %v; want %d", b, err, conmon.PID)
	}
}

func FuzzParseBeginning(f *testing.F) {
	f.Add([]byte(state(5, "running")))
	f.Add([]byte(`{"annotations":{"pid":7},"id":"x","pid":5,"status":"running"`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseBeginning(b); err == nil && (s.ID == "" || s.Status == "" || s.Pid == 0) {
			t.Errorf("%q: %+v", b, s)
		}
	})
}

func FuzzReadState(f *testing.F) {
	f.Add([]byte(state(5, "running")))
	f.Add([]byte(`{"pid":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readState(strings.NewReader(string(b))); (err == nil) && !json.Valid(b) {
			t.Errorf("took %q", b)
		}
	})
}
