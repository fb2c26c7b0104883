package manager

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/godbus/dbus/v5"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
)

// with returns the recorded properties with some of them changed.
func with(changes Properties) Properties {
	p := maps.Clone(recorded)
	maps.Copy(p, changes)
	return p
}

// run is a command as systemd has it, with flags.
func run(flags []string, args ...string) []any {
	return []any{args[0], args, flags, uint64(1), uint64(2), uint64(3), uint64(4), uint32(5), int32(1), int32(3)}
}

func TestUnitFromRecordedProperties(t *testing.T) {
	u := newUnit("usr.service", recorded, &account.Accounts{Getent: "-"})
	if u.User != "db" || u.UID != 1001 || u.Type != "exec" || u.Delegate || u.Cgroup() != "" || u.OriginErr == nil {
		t.Errorf("%+v", u)
	}
	if u.ActiveState != "active" || u.SubState != "running" || u.MainPID == 0 || u.Result != "success" || u.StateChange.IsZero() || u.InactiveExit == 0 || u.ActiveEnter < u.InactiveExit {
		t.Errorf("%+v", u)
	}
	if len(u.InvocationID) != 32 {
		t.Errorf("invocation ID %q", u.InvocationID)
	}
	if u.Dropin != "/etc/systemd/system/usr.service.d/50-oci-mainpid.conf" || !u.Ours() {
		t.Errorf("drop-in %q", u.Dropin)
	}
	if !slices.Equal(u.OpenFiles, []string{"/run/oci-mainpid/usr.service/mainpid"}) || u.Env("OCI_MAINPID_FILE") != u.OpenFiles[0] || u.Env("NONE") != "" {
		t.Errorf("%q %q", u.OpenFiles, u.Environment)
	}
	podman, ok := u.Podman()
	cgroups, given := podman.Last("cgroups")
	if !ok || !given || cgroups != "no-conmon" {
		t.Errorf("%+v", podman)
	}
	if start := u.Start[0]; start.AsRoot() || start.PID == 0 || start.StartedMonotonic == 0 {
		t.Errorf("%+v", start)
	}
	notifier, ok := u.Notifier()
	if user, _ := notifier.option("--user"); !ok || user != "1001" || !notifier.AsRoot() || notifier.Code != 1 || notifier.Status != 0 || notifier.EndedMonotonic <= notifier.StartedMonotonic {
		t.Errorf("%+v", notifier)
	}
	if len(u.Pre) == 0 || !u.Pre[0].IsNotifyMainPID() || u.Pre[0].NotifiesMainPID() || u.Kube() || u.Refused() != "" {
		t.Errorf("%+v", u.Pre)
	}
}

func TestUnitOfOtherKinds(t *testing.T) {
	for name, c := range map[string]struct {
		changes Properties
		check   func(*Unit) bool
	}{
		"the container's own arguments": {
			Properties{"ExecStartEx": [][]any{run(nil, "/usr/bin/podman", "run", "--cgroups=split", "x", "--cgroups=no")}},
			func(u *Unit) bool { p, _ := u.Podman(); c, _ := p.Last("cgroups"); return c == "split" },
		},
		"podman by env": {
			Properties{"ExecStartEx": [][]any{run(nil, "/usr/bin/env", "A=B", "podman", "run", "--cgroups=split", "x")}},
			func(u *Unit) bool { p, ok := u.Podman(); return ok && p.Verb == "run" },
		},
		"kube": {
			Properties{"ExecStartPostEx": [][]any{run([]string{"privileged"}, "/x/notify-mainpid", "--user=1", "--require=kube")}},
			(*Unit).Kube,
		},
		"refused": {
			Properties{"ExecStartEx": [][]any{run(nil, "/usr/bin/oci-mainpid", "refuse", "--unit=usr.service", "no such user")}},
			func(u *Unit) bool { return u.Refused() == "no such user" },
		},
		"no drop-in, but notify-mainpid": {
			Properties{"DropInPaths": []string{"/etc/x.conf"}},
			func(u *Unit) bool { return u.Dropin == "" && u.Ours() },
		},
		"none of ours": {
			Properties{"DropInPaths": []string{}, "ExecStartPostEx": [][]any{}, "ExecStartPost": [][]any{}},
			func(u *Unit) bool { return !u.Ours() },
		},
		"no flags, before systemd 243": {
			Properties{"ExecStartEx": nil, "ExecStart": [][]any{{"/usr/bin/podman", []string{"podman"}, false, uint64(1), uint64(2), uint64(3), uint64(4), uint32(5), int32(1), int32(0)}}},
			func(u *Unit) bool { return u.Start[0].PID == 5 },
		},
		"not started: the user's UID from the unit": {
			Properties{"UID": uint32(unknownUID)},
			func(u *Unit) bool { return u.UID == 1001 },
		},
		"root's": {
			Properties{"UID": uint32(unknownUID), "User": ""},
			func(u *Unit) bool { return u.UID == 0 },
		},
		"never started": {
			Properties{"InvocationID": []byte{}, "StateChangeTimestamp": uint64(0)},
			func(u *Unit) bool { return u.InvocationID == "" && u.StateChange.IsZero() },
		},
		"not loaded": {
			Properties{"LoadState": "bad-setting", "LoadError": []any{"org.x", "Unit has a bad setting."}},
			func(u *Unit) bool { return u.LoadError == "Unit has a bad setting." },
		},
		"a systemd that changed every type": {
			Properties{"MainPID": "7", "ExecStartEx": "x", "ExecStart": 5, "OpenFile": nil, "Environment": 1, "LoadError": "x", "InvocationID": "x"},
			func(u *Unit) bool { return u.MainPID == 0 && len(u.Start) == 0 },
		},
	} {
		if u := newUnit("usr.service", with(c.changes), &account.Accounts{Getent: "-"}); !c.check(u) {
			t.Errorf("%s: %+v", name, u)
		}
	}
}

func TestOrigin(t *testing.T) {
	path := filepath.Join(t.TempDir(), dropin.Name)
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	changes := Properties{"DropInPaths": []string{path}, "UID": uint32(unknownUID), "User": "a-name-that-nobody-has"}
	write("# Made by oci-mainpid-generator: format=3 user=db uid=1001 Cgroup=service source=/etc/usr.container\n[Service]\n")
	if u := newUnit("usr.service", with(changes), &account.Accounts{Getent: "-"}); u.Cgroup() != dropin.Service || u.UID != 1001 || u.Origin.Source != "/etc/usr.container" || u.OriginErr != nil {
		t.Errorf("%+v, %v", u.Origin, u.OriginErr)
	}
	write("[Service]\nUser=db\n")
	if u := newUnit("usr.service", with(changes), &account.Accounts{Getent: "-"}); u.OriginErr != dropin.ErrForeign {
		t.Errorf("by hand: %+v, %v", u.Origin, u.OriginErr)
	}
}

func TestOnDisk(t *testing.T) {
	etc, run := t.TempDir(), t.TempDir()
	for _, path := range []string{
		etc + "/web.service.d/50-oci-mainpid.conf", run + "/web.service.d/50-oci-mainpid.conf", run + "/db@1.service.d/50-oci-mainpid.conf",
		run + "/db@.service.d/50-oci-mainpid.conf", run + "/x y.service.d/50-oci-mainpid.conf", run + "/other.service.d/60-x.conf", run + "/a.socket.d/50-oci-mainpid.conf",
		run + "/user@1000.service.d/50-oci-mainpid.conf", run + "/user-runtime-dir@1000.service.d/50-oci-mainpid.conf",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := onDisk([]string{etc, run, "/nonexistent"}); !slices.Equal(got, []string{"web.service", "db@1.service"}) {
		t.Errorf("%q", got)
	}
}

func TestNoSuchUnit(t *testing.T) {
	for name, want := range map[string]bool{
		"org.freedesktop.systemd1.NoSuchUnit": true,
		"org.freedesktop.systemd1.LoadFailed": false,
	} {
		if got := isNoSuchUnit(fmt.Errorf("stop: %w", dbus.Error{Name: name})); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
