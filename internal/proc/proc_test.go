package proc

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/regular"
)

func TestMain(m *testing.M) {
	conmontest.Main()
	os.Exit(m.Run())
}

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Process
		ok       bool
	}{
		{"ordinary", "123 (conmon) S 1 123 123 0 -1", Process{123, "conmon", 'S', 1, 0}, true},
		{"comm with parentheses", "5 (a) R 9 (b) Z 7 5", Process{5, "a) R 9 (b", 'Z', 7, 0}, true},
		{"comm with a newline", "5 (a\nb) R 7 5", Process{5, "a\nb", 'R', 7, 0}, true},
		{"empty comm", "5 () R 7 5", Process{5, "", 'R', 7, 0}, true},
		{"parent outside the namespace", "5 (a) R 0 5", Process{5, "a", 'R', 0, 0}, true},
		{"with its start", "123 (conmon) S 1 123 123 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 4711 5", Process{123, "conmon", 'S', 1, 4711}, true},
		{"empty", "", Process{}, false},
		{"no comm", "5 R 7", Process{}, false},
		{"parentheses the wrong way", "5 )a( R 7", Process{}, false},
		{"cut after comm", "5 (a)", Process{}, false},
		{"cut after state", "5 (a) R", Process{}, false},
		{"negative pid", "-5 (a) R 7", Process{}, false},
		{"negative parent", "5 (a) R -7", Process{}, false},
		{"parent that is no number", "5 (a) R x", Process{}, false},
		{"state of two letters", "5 (a) RR 7", Process{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseStat([]byte(c.in))
			if got != c.want || (err == nil) != c.ok {
				t.Errorf("got %+v, %v; want %+v, ok %v", got, err, c.want, c.ok)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("123 (conmon) S 1 123"))
	f.Add([]byte("5 (a) R 9 (b) Z 7 5"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parseStat(b); err == nil && (p.PID <= 0 || p.PPID < 0) {
			t.Errorf("%q: %+v", b, p)
		}
	})
}

func TestRead(t *testing.T) {
	p, err := Read(os.Getpid())
	if err != nil || p.PID != os.Getpid() || p.PPID != os.Getppid() {
		t.Errorf("this process: %+v, %v", p, err)
	}
	if _, err := Read(MaxPID + 1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	env := Strings([]byte("A=1\x00OCI_MAINPID_FILE=/run/a b\nc\x00AB=2\x00A=3\x00EMPTY=\x00junk\x00"))
	for name, want := range map[string]string{
		"A": "1", "AB": "2", "EMPTY": "", "junk": "", "B": "", "OCI_MAINPID_FILE": "/run/a b\nc",
	} {
		if got := env.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if got := Strings(nil).Get(""); got != "" {
		t.Errorf("empty environment: %q", got)
	}
}

func FuzzEnvironment(f *testing.F) {
	f.Add([]byte("A=1\x00B=2\x00"), "B")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if v := Strings(b).Get(name); v != "" && !strings.Contains(string(b), name+"="+v) {
			t.Errorf("%q in %q: %q", name, b, v)
		}
	})
}

func TestParseCgroup(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"unified", "0::/system.slice/web.service\n", "/system.slice/web.service"},
		{"hybrid", "4:memory:/a\n1:name=systemd:/b\n0::/system.slice/web.service/runtime\n", "/system.slice/web.service/runtime"},
		{"none", "4:memory:/a\n", ""},
		{"empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parseCgroup([]byte(c.in)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add([]byte("4:memory:/a\n0::/system.slice/web.service\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := parseCgroup(b); !strings.Contains(string(b), got) {
			t.Errorf("%q: %q", b, got)
		}
	})
}

func FuzzStatusField(f *testing.F) {
	f.Add([]byte("Name:\tconmon\nUid:\t1000\t1000\t1000\t1000\nNSpid:\t42\n"), "Uid")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		for _, v := range statusField(b, name) {
			if v == "" || !strings.Contains(string(b), name+":") || !strings.Contains(string(b), v) {
				t.Errorf("%q in %q: %q", name, b, v)
			}
		}
	})
}

func TestChildren(t *testing.T) {
	conmon := conmontest.Start(t, conmontest.Options{})
	pids, err := Children(conmon.PID)
	if err != nil || !slices.Contains(pids, conmon.Container) {
		t.Errorf("children of %d: %v, %v; want %d", conmon.PID, pids, err, conmon.Container)
	}
	if _, err := Children(MaxPID + 1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
}

func TestReadStatus(t *testing.T) {
	s, err := ReadStatus(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if uid, ok := s.UID(); uid != os.Getuid() || !ok || s.Contained() {
		t.Errorf("this process: %+v", s)
	}
	if _, ok := (Status{UIDs: []string{"1000", "0", "0", "0"}}).UID(); ok {
		t.Error("two users are taken for one")
	}
	if _, err := ReadStatus(MaxPID + 1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Skipf("no PID namespace: %v", err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	if s, err := ReadStatus(cmd.Process.Pid); err != nil || !s.Contained() {
		t.Errorf("a process in another PID namespace: %+v, %v", s, err)
	}
}

func TestExecutable(t *testing.T) {
	conmon := conmontest.Start(t, conmontest.Options{})
	want, err := Identify(conmon.Executable)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Executable(conmon.PID); err != nil || !got.Same(want) || got.UID != uint32(os.Getuid()) || got.Mode&0o777 != 0o755 {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := Executable(os.Getpid()); err != nil || got.Same(want) {
		t.Errorf("another executable: %+v, %v", got, err)
	}
	if _, err := Executable(MaxPID + 1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
}

func TestArguments(t *testing.T) {
	conmon := conmontest.Start(t, conmontest.Options{Args: []string{"-n", "", "web"}, Env: []string{"A=1"}})
	args, err := Arguments(conmon.PID, MaxStrings)
	if err != nil || string(args) != "conmon\x00-n\x00\x00web\x00" {
		t.Errorf("%q, %v", args, err)
	}
	if env, err := Environ(conmon.PID, MaxStrings); err != nil || env.Get("A") != "1" {
		t.Errorf("%q, %v", env, err)
	}
	if _, err := Arguments(conmon.PID, 5); !errors.Is(err, regular.ErrTooLarge) {
		t.Errorf("larger than the limit: %v", err)
	}
	if _, err := Environ(conmon.PID, 5); !errors.Is(err, regular.ErrTooLarge) {
		t.Errorf("larger than the limit: %v", err)
	}
}

func TestPIDs(t *testing.T) {
	pids, err := PIDs()
	if err != nil || !slices.Contains(pids, os.Getpid()) || !slices.IsSorted(pids) {
		t.Errorf("%v, %v", pids, err)
	}
	if got := Ancestors(); len(got) == 0 || got[0] != os.Getppid() || slices.Contains(got, 1) {
		t.Errorf("above this process: %v", got)
	}
}

func TestUserNamespace(t *testing.T) {
	own, err := UserNamespace(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Skipf("no user namespace: %v", err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	if other, err := UserNamespace(cmd.Process.Pid); err != nil || other == own || other == InitialUserNamespace {
		t.Errorf("%s, %v; this process is in %s", other, err, own)
	}
}

func TestFindDescriptor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	holder := conmontest.Start(t, conmontest.Options{Files: []*os.File{f}})
	if fd, ok := FindDescriptor(holder.PID, path); !ok || fd != 3 {
		t.Errorf("got %d, %v", fd, ok)
	}
	if _, ok := FindDescriptor(holder.PID, path+"2"); ok {
		t.Error("found what is not there")
	}
	if _, ok := FindDescriptor(MaxPID+1, path); ok {
		t.Error("found it in no process")
	}
}
