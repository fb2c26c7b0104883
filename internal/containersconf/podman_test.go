//go:build e2e

package containersconf

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAsPodman compares what Read finds with what podman-info(1) says, for files in
// many places. It changes /etc/containers and /usr/share/containers, and is for a
// mount namespace of its own; test/e2e runs it there. OCI_MAINPID_TEST_USER is a user
// who has no podman running, and its UID and home.
func TestAsPodman(t *testing.T) {
	name, uid, home := os.Getenv("OCI_MAINPID_TEST_USER"), os.Getenv("OCI_MAINPID_TEST_UID"), os.Getenv("OCI_MAINPID_TEST_HOME")
	if name == "" {
		t.Skip("OCI_MAINPID_TEST_USER is not set: test/e2e sets it")
	}
	runtime := t.TempDir()
	number, err := strconv.Atoi(uid)
	if err == nil {
		err = os.Chown(runtime, number, -1)
	}
	for dir := runtime; err == nil && dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	asUser := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("setpriv", append([]string{"--reuid=" + uid, "--regid=" + name, "--init-groups", "env", "-i", "--chdir=/",
			"PATH=/usr/bin:/usr/sbin", "HOME=" + home, "USER=" + name, "XDG_RUNTIME_DIR=" + runtime}, args...)...)
		var warnings strings.Builder
		cmd.Stderr = &warnings
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v: %s", args, err, &warnings)
		}
		return strings.TrimSpace(string(out))
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(runtime + "/libpod/tmp/pause.pid"); err == nil {
			pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
			if pid > 1 {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
	})
	version := asUser("podman", "version", "--format={{.Client.Version}}")
	podman6 := !strings.HasPrefix(version, "4.") && !strings.HasPrefix(version, "5.")

	const (
		usr, etc = "/usr/share/containers/containers.conf", "/etc/containers/containers.conf"
		rootless = ".rootless.conf.d/"
	)
	// otherwise are the cases in which Read does not read as podman 5 does, and why.
	otherwise := map[string]string{}
	if !podman6 {
		otherwise["a drop-in with nothing in it"] = "a drop-in takes the place of one of its name in another directory"
	}
	if strings.HasPrefix(version, "5.8.") {
		for _, what := range []string{"for users, over all", "for users, with the earlier name", "for this user"} {
			otherwise[what] = "containers.rootless.conf.d of /etc is read, and not that of /usr/share"
		}
	}
	own := home + "/.config/containers/containers.conf"
	special := func(main, below string) string { return strings.TrimSuffix(main, ".conf") + below }
	for what, files := range map[string][]string{
		"nothing":                                   nil,
		"/usr":                                      {usr},
		"/etc over /usr":                            {usr, etc},
		"the user's over all":                       {usr, etc, own},
		"a drop-in of /usr, a file of /etc":         {usr + ".d/50.conf", etc},
		"a drop-in of /usr, the user's file":        {usr + ".d/50.conf", own},
		"a drop-in of /etc, the user's file":        {etc + ".d/50.conf", own},
		"drop-ins, /usr's has the later name":       {usr + ".d/60.conf", etc + ".d/50.conf"},
		"drop-ins, the user's has the earlier name": {etc + ".d/60.conf", own + ".d/50.conf"},
		"drop-ins of one name":                      {usr + ".d/50.conf", etc + ".d/50.conf", own + ".d/50.conf"},
		"for users":                                 {special(usr, rootless+"50.conf")},
		"for users, over all":                       {etc + ".d/50.conf", special(etc, rootless+"50.conf")},
		"for users, with the earlier name":          {etc + ".d/60.conf", special(etc, rootless+"50.conf")},
		"for this user":                             {special(etc, rootless+"50.conf"), special(etc, rootless+uid+"/50.conf")},
		"for this user, in /usr":                    {etc + ".d/50.conf", special(usr, rootless+uid+"/60.conf")},
		"for another user":                          {special(etc, rootless+"1/50.conf")},
		"for root":                                  {special(etc, ".rootful.conf.d/50.conf")},
		"for users, in the home":                    {special(own, rootless+"50.conf")},
		"another suffix":                            {etc + ".d/50.toml"},
		"links":                                     {etc + ".d/50.conf", "link " + etc + ".d/60.conf"},
		"a link in the place of a drop-in":          {usr + ".d/50.conf", "link " + etc + ".d/50.conf"},
		"a link in the place of a file":             {usr, "link " + etc},
		"a main file with nothing in it":            {usr, "empty " + etc},
		"a drop-in with nothing in it":              {usr + ".d/50.conf", "empty " + etc + ".d/50.conf"},
	} {
		t.Run(what, func(t *testing.T) {
			for _, dir := range []string{"/usr/share/containers", "/etc/containers", home + "/.config/containers"} {
				os.RemoveAll(dir + "/conmons")
				left, _ := filepath.Glob(dir + "/containers*")
				for _, path := range left {
					os.RemoveAll(path)
				}
			}
			for i, path := range files {
				kind, path, special := strings.Cut(path, " ")
				if !special {
					kind, path = "", kind
				}
				// A conmon of its own for each file: podman says which one it takes.
				conmon := fmt.Sprintf("/usr/share/containers/conmons/%d", i)
				text := fmt.Sprintf("[engine]\nconmon_path = [%q]\n", conmon)
				write(t, conmon+".conf", text)
				program, err := os.ReadFile("/usr/bin/conmon")
				if err == nil {
					err = os.WriteFile(conmon, program, 0o755)
				}
				if err == nil {
					err = os.MkdirAll(filepath.Dir(path), 0o755)
				}
				switch {
				case err != nil:
				case kind == "link":
					err = os.Symlink(conmon+".conf", path)
				case kind == "empty":
					err = os.WriteFile(path, nil, 0o644)
				default:
					err = os.WriteFile(path, []byte(text), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			theirs := asUser("podman", "info", "--format={{.Host.Conmon.Path}}")
			settings, problems := Reader{System: SystemFiles, Home: home, Config: home + "/.config", UID: number, Podman6: podman6}.Read(t.Context())
			ours := "/usr/bin/conmon"
			if len(settings.ConmonPath) > 0 {
				ours = settings.ConmonPath[0]
			}
			t.Logf("podman %s: %s; %d files", version, theirs, len(files))
			if why := otherwise[what]; why != "" {
				if ours == theirs {
					t.Errorf("podman %s agrees now: it is no longer so that %s", version, why)
				}
				return
			}
			if ours != theirs || len(problems) > 0 {
				t.Errorf("we find %s, %v; podman says %s", ours, problems, theirs)
			}
		})
	}
}
