package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/status"
)

// execute runs oci-mainpid with the arguments.
func execute(args ...string) (stdout string, err error) {
	var out bytes.Buffer
	cmd := command(newLog(io.Discard))
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err = dispatch(cmd)
	return out.String(), err
}

func TestWrongCommandLines(t *testing.T) {
	for name, args := range map[string][]string{
		"check: a format":        {"check", "--format=xml"},
		"check: a name":          {"check", "a b"},
		"check: a template":      {"check", "web@.service"},
		"status: a format":       {"status", "--format=text"},
		"status: metrics, again": {"status", "--format=prometheus", "--watch"},
		"status: a flag":         {"status", "--colour"},
		"explain: no unit":       {"explain"},
		"explain: two units":     {"explain", "a", "b"},
		"completion: no shell":   {"completion"},
		"completion: a shell":    {"completion", "tcsh"},
		"refuse: no reason":      {"refuse", "--unit=web.service"},
		"generate: no file":      {"generate"},
		"generate: no user":      {"generate", "web.service"},
		"generate: a mode":       {"generate", "--user=web", "--cgroup=split", "web.service"},
		"generate: a version":    {"generate", "--systemd-version=new", "web.service"},
		"no command":             {},
		"a command":              {"generat"},
		"a flag":                 {"--version-of-podman"},
	} {
		if _, err := execute(args...); !errors.Is(err, errUsage) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVersion(t *testing.T) {
	if out, err := execute("--version"); err != nil || out != "oci-mainpid "+version+"\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestCompletionScripts(t *testing.T) {
	for shell, want := range map[string]string{
		"bash": "__start_oci-mainpid oci-mainpid", "zsh": "#compdef oci-mainpid", "fish": "complete -c oci-mainpid",
	} {
		if out, err := execute("completion", shell); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, %d bytes", shell, err, len(out))
		}
	}
	for flag, want := range map[string]string{"status": "table\njson\nprometheus\n", "check": "text\njson\n"} {
		if out, err := execute("__complete", flag, "--format", ""); err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("%s: %v, %q", flag, err, out)
		}
	}
	// 4 is cobra's ShellCompDirectiveNoFileComp.
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"modes", "mixed\nservice\nuser\n:4\n", []string{"generate", "--cgroup", ""}},
		{"modes, joined", "mixed\nservice\nuser\n:4\n", []string{"generate", "--cgroup="}},
		{"versions", ":4\n", []string{"generate", "--systemd-version", ""}},
		{"directories", ":16\n", []string{"generate", "--output-dir", ""}},
		{"a second unit for explain", ":4\n", []string{"explain", "web", ""}},
		{"no such command", ":4\n", []string{"web"}},
		{"shells", "bash", []string{"completion", "b"}},
		{"nothing for a shell", ":4\n", []string{"completion", "bash", ""}},
	} {
		if out, err := execute(append([]string{"__complete"}, c.args...)...); err != nil || !strings.HasPrefix(out, c.want) {
			t.Errorf("%s: %v, %q", c.name, err, out)
		}
	}
}

// TestCompleteUsers: users are those who can run containers, and no files.
func TestCompleteUsers(t *testing.T) {
	want := strings.Join(append((&account.Accounts{}).Names(), ":4\n"), "\n")
	if out, err := execute("__complete", "generate", "--user", ""); err != nil || !strings.HasPrefix(out, want) {
		t.Errorf("%v, %q, want %q", err, out, want)
	}
}

func TestServiceNames(t *testing.T) {
	got := serviceNames([]string{"web", "web.service", "db@1", "x.timer"})
	if want := []string{"web.service", "db@1.service", "x.timer.service"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestStatusFormats(t *testing.T) {
	services := []status.Service{{Unit: "web.service", LoadState: "loaded", ActiveState: "inactive"}}
	for name, c := range map[string]struct {
		format string
		watch  bool
		check  func(string) bool
	}{
		"table":       {"table", false, func(s string) bool { return strings.HasPrefix(s, "UNIT ") && strings.HasSuffix(s, "0\n") }},
		"table again": {"table", true, func(s string) bool { return strings.HasPrefix(s, "UNIT ") && strings.HasSuffix(s, "0\n\n") }},
		"json": {"json", false, func(s string) bool {
			var list []map[string]any
			return json.Unmarshal([]byte(s), &list) == nil && list[0]["unit"] == "web.service" && strings.Count(s, "\n") > 3
		}},
		"json again": {"json", true, func(s string) bool { return strings.Count(s, "\n") == 1 }},
		"prometheus": {"prometheus", false, func(s string) bool { return strings.Contains(s, `oci_mainpid_unit_active{unit="web.service"`) }},
	} {
		var b bytes.Buffer
		write, err := statusWriter(c.format, &b)
		if err == nil {
			err = write(services, c.watch)
		}
		if err != nil || !c.check(b.String()) {
			t.Errorf("%s: %v, %q", name, err, b.String())
		}
	}
}
