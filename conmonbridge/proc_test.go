package conmonbridge

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Process
		ok       bool
	}{
		{"ordinary", "123 (conmon) S 1 123 123 0 -1", Process{123, "conmon", 'S', 1}, true},
		{"comm with parentheses", "5 (a) R 9 (b) Z 7 5", Process{5, "a) R 9 (b", 'Z', 7}, true},
		{"comm with a newline", "5 (a\nb) R 7 5", Process{5, "a\nb", 'R', 7}, true},
		{"empty comm", "5 () R 7 5", Process{5, "", 'R', 7}, true},
		{"parent outside the namespace", "5 (a) R 0 5", Process{5, "a", 'R', 0}, true},
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

func TestReadProcess(t *testing.T) {
	p, err := ReadProcess(os.Getpid())
	if err != nil || p.PID != os.Getpid() || p.PPID != os.Getppid() {
		t.Errorf("this process: %+v, %v", p, err)
	}
	if _, err := ReadProcess(maxPID + 1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	env := environment([]byte("A=1\x00OCI_MAINPID_FILE=/run/a b\nc\x00AB=2\x00A=3\x00EMPTY=\x00junk\x00"))
	for name, want := range map[string]string{
		"A": "1", "AB": "2", "EMPTY": "", "junk": "", "B": "", "OCI_MAINPID_FILE": "/run/a b\nc",
	} {
		if got := env.get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if got := environment(nil).get(""); got != "" {
		t.Errorf("empty environment: %q", got)
	}
}

func FuzzEnvironment(f *testing.F) {
	f.Add([]byte("A=1\x00B=2\x00"), "B")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if v := environment(b).get(name); v != "" && !strings.Contains(string(b), name+"="+v) {
			t.Errorf("%q in %q: %q", name, b, v)
		}
	})
}

func TestListenDescriptor(t *testing.T) {
	for _, c := range []struct {
		name string
		env  environment
		want int
	}{
		{"only the mainpid file", environment("LISTEN_FDS=1\x00LISTEN_FDNAMES=mainpidfile"), 3},
		{"behind two sockets", environment("LISTEN_FDS=3\x00LISTEN_FDNAMES=web:web:mainpidfile"), 5},
		{"held back", environment("LISTEN_FDS=1\x00LISTEN_FDNAMES=web:mainpidfile"), -1},
		{"another name", environment("LISTEN_FDS=1\x00LISTEN_FDNAMES=mainpidfile2"), -1},
		{"no names", environment("LISTEN_FDS=1"), -1},
		{"no number", environment("LISTEN_FDS=x\x00LISTEN_FDNAMES=mainpidfile"), -1},
		{"nothing", nil, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := listenDescriptor(c.env); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
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

func FuzzFollowing(f *testing.F) {
	f.Add([]byte("/usr/bin/conmon\x00--api-version\x001\x00-n\x00web\x00"), "-n")
	f.Fuzz(func(t *testing.T, b []byte, before string) {
		got := following(b, before)
		if got != "" && !strings.Contains("\x00"+string(b)+"\x00", "\x00"+before+"\x00"+got+"\x00") {
			t.Errorf("%q after %q: %q", b, before, got)
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
	conmon := startConmon(t)
	pids, err := children(conmon.PID)
	if err != nil || !slices.Contains(pids, conmon.Container) {
		t.Errorf("children of %d: %v, %v; want %d", conmon.PID, pids, err, conmon.Container)
	}
	if _, err := children(maxPID + 1); !errors.Is(err, ErrNoProcess) {
		t.Errorf("no process: %v", err)
	}
}
