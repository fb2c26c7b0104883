package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/internal/census"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/handover"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/terminal"
)

var update = flag.Bool("update", false, "write the golden files")

// unit is an active unit with conmon 100.
func unit(change func(*manager.Unit)) *manager.Unit {
	u := &manager.Unit{
		Name: "web.service", User: "web", UID: 1000, LoadState: "loaded", ActiveState: "active", SubState: "running", Result: "success",
		InvocationID: "now", MainPID: 100, Delegate: true, StateChange: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Post: []manager.Command{{Path: "/x/notify-mainpid", Arguments: []string{"notify-mainpid", "--user=1000"}}},
	}
	if change != nil {
		change(u)
	}
	return u
}

func TestJudge(t *testing.T) {
	conmon := census.Conmon{PID: 100, UID: 1000, Container: "web", InvocationID: "now", Recorded: 100}
	older := census.Conmon{PID: 50, UID: 1000, Container: "web", InvocationID: "before", Unit: "web.service"}
	yes, no := true, false
	for name, c := range map[string]struct {
		unit    *manager.Unit
		conmons []census.Conmon
		verify  error
		agrees  *bool
		problem string
		main    int // of podman's view
	}{
		"well":                  {unit(nil), []census.Conmon{conmon}, nil, &yes, "", 100},
		"podman says no PID":    {unit(nil), []census.Conmon{{PID: 100, UID: 1000, InvocationID: "now"}}, nil, &yes, "", 100},
		"another process":       {unit(func(u *manager.Unit) { u.MainPID = 7 }), []census.Conmon{conmon}, nil, &no, "systemd's main process is 7, podman's conmon is 100", 100},
		"no main process":       {unit(func(u *manager.Unit) { u.MainPID = 0 }), []census.Conmon{conmon}, nil, &no, "systemd has no main process, podman's conmon is 100", 100},
		"no conmon":             {unit(nil), nil, nil, &no, "systemd's main process is 100, but no conmon of this start runs", 0},
		"neither":               {unit(func(u *manager.Unit) { u.MainPID = 0 }), nil, nil, &no, "no conmon of this start runs", 0},
		"another user's conmon": {unit(nil), []census.Conmon{{PID: 100, UID: 1001, InvocationID: "now"}}, nil, &no, "systemd's main process is 100, but no conmon of this start runs", 0},
		"podman wrote another":  {unit(nil), []census.Conmon{{PID: 100, UID: 1000, InvocationID: "now", Recorded: 99}}, nil, &no, "systemd's main process is 100, podman wrote down 99 as the container's conmon", 100},
		"not verified":          {unit(nil), []census.Conmon{conmon}, errors.New("process 100: does not execute conmon"), &no, "process 100: does not execute conmon", 100},
		"an older one besides":  {unit(nil), []census.Conmon{older, conmon}, nil, &yes, "container web still runs, of an earlier start (conmon 50)", 100},
		"stopped":               {unit(func(u *manager.Unit) { u.ActiveState, u.MainPID = "inactive", 0 }), nil, nil, nil, "", 0},
		"failed, and yet it runs": {
			unit(func(u *manager.Unit) { u.ActiveState, u.MainPID = "failed", 0 }), []census.Conmon{older, conmon}, nil, nil,
			"container web still runs, of an earlier start (conmon 50), and 1 more", 0,
		},
		"starting": {unit(func(u *manager.Unit) { u.ActiveState, u.MainPID = "activating", 99 }), []census.Conmon{conmon}, nil, nil, "", 100},
		"refused": {unit(func(u *manager.Unit) {
			u.Start = []manager.Command{{Path: "/usr/bin/oci-mainpid", Arguments: []string{"oci-mainpid", "refuse", "--unit=x", "no user"}}}
		}), nil, nil, nil, "no user", 0},
		"not loaded":      {unit(func(u *manager.Unit) { u.LoadState, u.LoadError = "bad-setting", "why" }), nil, nil, nil, "bad-setting: why", 0},
		"a volume":        {unit(func(u *manager.Unit) { u.Post = nil }), nil, nil, nil, "", 0},
		"no unit of ours": {unit(func(u *manager.Unit) { u.Post, u.MainPID = nil, 7 }), []census.Conmon{conmon}, nil, &no, "systemd's main process is 7, podman's conmon is 100", 100},
	} {
		s := statusOf(c.unit, c.conmons, 0, func(census.Start, census.Conmon) error { return c.verify })
		if (s.Agrees == nil) != (c.agrees == nil) || s.Agrees != nil && *s.Agrees != *c.agrees || s.Problem != c.problem {
			t.Errorf("%s: %+v", name, s)
		}
		pid := 0
		if s.Conmon != nil {
			pid = s.Conmon.PID
		}
		if pid != c.main {
			t.Errorf("%s: conmon %d", name, pid)
		}
	}
}

var now = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// services are one of each kind.
func services() []Service {
	yes, no := true, false
	at := func(s string) *time.Time {
		when, err := time.Parse(time.DateTime, s)
		if err != nil {
			panic(err)
		}
		return &when
	}
	return []Service{
		{Unit: "a-service-with-a-rather-long-name.service", User: "web-services", Cgroup: "service", LoadState: "loaded", ActiveState: "active", SubState: "running", Result: "success",
			Since: at("2026-01-02 03:04:05"), Restarts: 12345678, MainPID: 4194303, Conmon: &Conmon{PID: 4194303, Container: "a-container-of-a-long-name"}, Agrees: &yes},
		{Unit: "db@1.service", User: "db", Cgroup: "user", LoadState: "loaded", ActiveState: "active", SubState: "running", Result: "success",
			Since: at("2025-12-24 18:00:00"), MainPID: 7, Conmon: &Conmon{PID: 1234, Container: "db\x1b[31m"}, Agrees: &no, Problem: "systemd's main process is 7, podman's conmon is 1234"},
		{Unit: "failed.service", User: "db", Cgroup: "mixed", LoadState: "loaded", ActiveState: "failed", SubState: "failed", Result: "exit-code",
			Since: at("2024-12-24 18:00:00"), Problem: "container failed still runs, of an earlier start (conmon 5)", Refused: at("2024-12-24 18:00:00"), LastError: "podman: Error: \x1b]0;x\a" + strings.Repeat("long ", 30), LeftOver: []Conmon{{PID: 5}}},
		{Unit: "gone.service", User: "db", Cgroup: "mixed", LoadState: "loaded", ActiveState: "active", SubState: "running", MainPID: 9, Agrees: &no, Problem: "systemd's main process is 9, but no conmon of this start runs"},
		{Unit: "starting.service", User: "db", Cgroup: "mixed", LoadState: "loaded", ActiveState: "activating", SubState: "start-post", MainPID: 9, Conmon: &Conmon{PID: 10, Container: "s"}},
		{Unit: "vol-volume.service", User: "db", LoadState: "loaded", ActiveState: "active", SubState: "exited", Since: at("2026-01-02 03:04:05")},
		{Unit: "stopped.service", User: "db", Cgroup: "mixed", LoadState: "loaded", ActiveState: "inactive", SubState: "dead"},
		{Unit: "masked.service", LoadState: "masked", Problem: "masked"},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got:\n%s", name, got)
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	WriteTable(&terminal.Output{Writer: &b, Width: 80}, services(), now)
	golden(t, "table.txt", b.Bytes())
	for line := range strings.Lines(b.String()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if strings.ContainsAny(b.String(), "\x1b\a") {
		t.Error("control characters")
	}
	b.Reset()
	WriteTable(&terminal.Output{Writer: &b, Width: 80, Colour: true}, services()[:2], now)
	golden(t, "colour.txt", b.Bytes())
	b.Reset()
	WriteTable(&terminal.Output{Writer: &b, Width: 80}, nil, now)
	golden(t, "none.txt", b.Bytes())
}

func TestPrometheus(t *testing.T) {
	list := services()
	list[0].Unit = `odd\x2d"name".service`
	list[0].User = "bad\xff\nuser"
	var b bytes.Buffer
	if err := WritePrometheus(&b, list); err != nil {
		t.Fatal(err)
	}
	golden(t, "prometheus.txt", b.Bytes())
	for line := range strings.Lines(b.String()) {
		if !strings.HasPrefix(line, "# ") && strings.Count(line, "{") != 1 {
			t.Errorf("%q", line)
		}
	}
}

func TestJSON(t *testing.T) {
	got, err := json.MarshalIndent(services()[:3], "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", append(got, '\n'))
}

// TestTableReplaced: a conmon whose file an upgrade has replaced is no problem.
func TestTableReplaced(t *testing.T) {
	agrees := true
	s := Service{Unit: "web.service", User: "web", LoadState: "loaded", ActiveState: "active", SubState: "running", MainPID: 5, Agrees: &agrees}
	for replaced, want := range map[bool]int{true: 1, false: 0} {
		s.Conmon = &Conmon{PID: 5, Container: "web", Replaced: replaced}
		var b bytes.Buffer
		WriteTable(&terminal.Output{Writer: &b, Width: 200}, []Service{s}, now)
		if got := strings.Count(b.String(), "conmon was replaced since (package upgrade)"); got != want {
			t.Errorf("%v: %s", replaced, b.String())
		}
	}
}

// TestChanged: a unit whose user has changed since its start, or is gone, runs as the
// user before.
func TestChanged(t *testing.T) {
	refuse := []manager.Command{{Path: "/usr/bin/oci-mainpid", Arguments: []string{"oci-mainpid", "refuse", "--unit=x", "its file is gone"}}}
	origin := dropin.Origin{Maker: dropin.Generator, User: "db", UID: 1001}
	ours := func(change func(*manager.Unit)) *manager.Unit {
		return unit(func(u *manager.Unit) {
			u.Origin, u.Dropin, u.Dropins = origin, "/x/50-oci-mainpid.conf", []string{"/x/50-oci-mainpid.conf"}
			change(u)
		})
	}
	for name, c := range map[string]struct {
		unit            *manager.Unit
		uid             int
		lives           bool
		problem, remedy string
	}{
		"the same user":             {ours(func(u *manager.Unit) {}), 1001, true, "", ""},
		"another user":              {ours(func(u *manager.Unit) {}), 1000, true, "container web still runs as UID 1000: the unit's user has become db", "systemctl restart web.service"},
		"another user, and it ends": {ours(func(u *manager.Unit) {}), 1000, false, "", ""},
		"written by hand":           {unit(nil), 1000, true, "", ""},
		"no user any more":          {ours(func(u *manager.Unit) { u.Origin, u.Post = dropin.Origin{}, nil }), 1000, true, "the unit has no user any more", "systemctl restart web.service"},
		"no file any more":          {ours(func(u *manager.Unit) { u.Origin, u.Post, u.Start = dropin.Origin{}, nil, refuse }), 1000, true, "its file is gone; systemctl stop web.service ends it", "systemctl stop web.service"},
	} {
		var s Service
		s.changed(c.unit, handover.Record{UID: c.uid, Container: "web"}, func(handover.Record) bool { return c.lives })
		if !strings.Contains(s.Problem, c.problem) || s.Remedy != c.remedy || (s.Problem == "") != (c.problem == "") || (s.Agrees == nil) != (c.problem == "") {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// TestElsewhere: root's containers of a unit are a problem with a remedy; what another
// user claims is neither.
func TestElsewhere(t *testing.T) {
	id := strings.Repeat("0a", 32)
	conmon := census.Conmon{PID: 100, UID: 1000, InvocationID: "now"}
	claim := census.Conmon{PID: 5, UID: 1001, Unit: "web.service", Container: "evil", ContainerID: id}
	for name, c := range map[string]struct {
		conmons          []census.Conmon
		active           string
		ofRoot, claiming int
		remedy           string
	}{
		"none":                         {[]census.Conmon{conmon}, "active", 0, 0, ""},
		"another user's":               {[]census.Conmon{conmon, claim}, "active", 0, 1, ""},
		"many of other users'":         {append(slices.Repeat([]census.Conmon{claim}, 50), conmon), "active", 0, maxElsewhere, ""},
		"root's, from before":          {[]census.Conmon{{PID: 7, UID: 0, InvocationID: "now", ContainerID: id}}, "active", 1, 0, "podman rm -f 0a0a0a0a0a0a && systemctl restart web.service"},
		"root's, by the unit's name":   {[]census.Conmon{conmon, {PID: 7, UID: 0, Unit: "web.service", InvocationID: "old", ContainerID: id}}, "inactive", 1, 0, "podman rm -f 0a0a0a0a0a0a"},
		"root's, beside the user's":    {[]census.Conmon{conmon, {PID: 7, UID: 0, Unit: "web.service", InvocationID: "now", ContainerID: id}}, "active", 0, 0, ""},
		"root's, of another unit":      {[]census.Conmon{conmon, {PID: 7, UID: 0, Unit: "db.service", InvocationID: "old", ContainerID: id}}, "active", 0, 0, ""},
		"root's, with an odd ID":       {[]census.Conmon{{PID: 7, UID: 0, Unit: "web.service", ContainerID: "$(reboot)"}}, "failed", 1, 0, "kill 7"},
		"a claim of the current start": {[]census.Conmon{conmon, {PID: 5, UID: 1001, InvocationID: "now"}}, "active", 0, 0, ""},
	} {
		u := unit(func(u *manager.Unit) { u.ActiveState = c.active })
		s := statusOf(u, c.conmons, 0, func(census.Start, census.Conmon) error { return nil })
		before := s.Problem
		s.elsewhere(u, c.conmons)
		if len(s.OfRoot) != c.ofRoot || len(s.Claiming) != c.claiming || s.Remedy != c.remedy || c.ofRoot == 0 && s.Problem != before {
			t.Errorf("%s: %+v", name, s)
		}
		var b bytes.Buffer
		WriteTable(&terminal.Output{Writer: &b, Width: 200}, []Service{s}, now)
		if got := strings.Contains(b.String(), "a process of UID 1001 says"); got != (c.claiming > 0) || strings.Contains(b.String(), "evil") {
			t.Errorf("%s: %s", name, b.String())
		}
	}
}
