package quadlet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/user"
)

// Account is a user that may run containers.
type Account struct {
	Name string
	UID  int
}

// RuntimeDir is where the user's podman keeps what lasts until reboot, the
// XDG_RUNTIME_DIR of pam_systemd(8).
func (a Account) RuntimeDir() string { return "/run/user/" + strconv.Itoa(a.UID) }

// Accounts looks users up. The zero value reads the system's own files.
type Accounts struct {
	// Etc is the directory of passwd, subuid, subgid and nsswitch.conf, /etc if
	// empty.
	Etc string
	// Getent is asked for a user that passwd does not have; /usr/bin/getent if
	// empty, nothing if "-".
	Getent string

	known map[string]lookup
}

type lookup struct {
	account Account
	err     error
}

// getentTimeout bounds how long a network directory may hold up a boot.
const getentTimeout = 3 * time.Second

// Lookup returns the user of that name or number. It fails for a user that does
// not exist, for root, and for one without subordinate user and group IDs; the
// error says what to do about it.
func (a *Accounts) Lookup(nameOrUID string) (Account, error) {
	if l, ok := a.known[nameOrUID]; ok {
		return l.account, l.err
	}
	account, err := a.lookup(nameOrUID)
	if a.known == nil {
		a.known = map[string]lookup{}
	}
	a.known[nameOrUID] = lookup{account, err}
	return account, err
}

func (a *Accounts) lookup(nameOrUID string) (Account, error) {
	if strings.Contains(nameOrUID, "%") {
		return Account{}, fmt.Errorf("user %q: specifiers are not expanded here, write the user's name", nameOrUID)
	}
	u, err := a.find(nameOrUID)
	if err != nil {
		return Account{}, err
	}
	if u.Uid == 0 {
		return Account{}, fmt.Errorf("user %q is root, whose containers need no oci-mainpid", nameOrUID)
	}
	account := Account{Name: u.Name, UID: u.Uid}
	if a.elsewhere() {
		return account, nil
	}
	for _, f := range []struct{ file, kind, option string }{
		{"subuid", "user", "--add-subuids"},
		{"subgid", "group", "--add-subgids"},
	} {
		ranges, err := user.ParseSubIDFileFilter(filepath.Join(a.etc(), f.file), func(r user.SubID) bool {
			return r.Count > 0 && (r.Name == u.Name || r.Name == strconv.Itoa(u.Uid))
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return Account{}, fmt.Errorf("read subordinate %s IDs: %w", f.kind, err)
		}
		if len(ranges) == 0 {
			return Account{}, fmt.Errorf("user %q has no subordinate %s IDs in /etc/%s; give it a free range: usermod %s %s %s",
				u.Name, f.kind, f.file, f.option, FreeIDs(filepath.Join(a.etc(), "subuid"), filepath.Join(a.etc(), "subgid")), u.Name)
		}
	}
	return account, nil
}

// FreeIDs returns a range of subordinate IDs that nobody has in any of the
// files, subuid(5), for usermod(8). It has as many as useradd gives to a user.
func FreeIDs(files ...string) string {
	const first, count = 100000, 65536
	next := int64(first)
	for _, file := range files {
		ranges, err := user.ParseSubIDFile(file)
		if err != nil {
			continue
		}
		for _, r := range ranges {
			next = max(next, r.SubID+r.Count)
		}
	}
	return fmt.Sprintf("%d-%d", next, next+count-1)
}

func (a *Accounts) etc() string {
	if a.Etc == "" {
		return "/etc"
	}
	return a.Etc
}

func (a *Accounts) find(nameOrUID string) (user.User, error) {
	uid, notNumber := strconv.ParseUint(nameOrUID, 10, 31)
	match := func(u user.User) bool {
		return u.Name == nameOrUID || notNumber == nil && u.Uid == int(uid)
	}
	users, err := user.ParsePasswdFileFilter(filepath.Join(a.etc(), "passwd"), match)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return user.User{}, fmt.Errorf("look up user %q: %w", nameOrUID, err)
	}
	if len(users) == 0 {
		users = a.getent(nameOrUID, match)
	}
	if len(users) == 0 || nameOrUID == "" {
		return user.User{}, fmt.Errorf("user %q does not exist", nameOrUID)
	}
	return users[0], nil
}

// getent asks the name service switch, for users that are not in passwd.
func (a *Accounts) getent(nameOrUID string, match func(user.User) bool) []user.User {
	path := a.Getent
	if path == "" {
		path = "/usr/bin/getent"
	}
	if path == "-" || strings.HasPrefix(nameOrUID, "-") {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), getentTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "passwd", nameOrUID)
	// PID 1 waits for its generators: nss-systemd(8) must not ask it.
	cmd.Env = append(os.Environ(), "SYSTEMD_NSS_DYNAMIC_BYPASS=1")
	out, err := cmd.Output()
	if err != nil {
		return nil
	}
	users, err := user.ParsePasswdFilter(strings.NewReader(string(out)), match)
	if err != nil {
		return nil
	}
	return users
}

// elsewhere reports whether subordinate IDs come from another source than
// /etc/subuid and /etc/subgid, nsswitch.conf(5): podman then knows, not we.
func (a *Accounts) elsewhere() bool {
	data, err := os.ReadFile(filepath.Join(a.etc(), "nsswitch.conf"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if sources, ok := strings.CutPrefix(strings.TrimSpace(line), "subid:"); ok {
			return slices.ContainsFunc(strings.Fields(sources), func(s string) bool { return s != "files" })
		}
	}
	return false
}
