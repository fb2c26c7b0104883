// Package account looks up the users that run containers: passwd(5), their
// subordinate IDs (subuid(5), subgid(5)) and their runtime directories.
package account

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/user"
)

// Account is a user that may run containers.
type Account struct {
	Name        string
	UID, GID    int
	Home, Shell string // as in passwd(5)
}

// RuntimeDir returns the user's runtime directory, XDG_RUNTIME_DIR in
// pam_systemd(8). podman keeps its state there until reboot.
func (a Account) RuntimeDir() string { return "/run/user/" + strconv.Itoa(a.UID) }

// Manager returns the name of the user's service manager, user@.service(5).
func (a Account) Manager() string { return "user@" + strconv.Itoa(a.UID) + ".service" }

// IsSystem reports whether the user is a system user. systemd-logind does not remove the
// shared memory of system users, RemoveIPC= in logind.conf(5).
func (a Account) IsSystem() bool { return a.UID <= 999 }

var (
	// ErrUnknown says that there is no such user.
	ErrUnknown = errors.New("does not exist")
	// ErrRoot says that the user is root.
	ErrRoot = errors.New("is root, whose containers need no oci-mainpid")
	// ErrNoAnswer says that the name service did not answer in time,
	// nsswitch.conf(5).
	ErrNoAnswer = errors.New("could not be looked up: the name service (getent passwd) does not answer")
)

// NoIDsError says that a user lacks subordinate IDs, without which podman runs no
// container.
type NoIDsError struct {
	User string
	// Missing are the kinds that are missing, "user" and "group".
	Missing []string
	// Free is a range that no user has, in the form of usermod(8); "" if none is left.
	Free string
}

func (e *NoIDsError) Error() string {
	if e.Free == "" {
		return fmt.Sprintf("user %q has no %d subordinate %s IDs, and no range of that size is free: remove one that nobody needs from /etc/subuid and /etc/subgid", e.User, RangeSize, strings.Join(e.Missing, " and "))
	}
	return fmt.Sprintf("user %q has no subordinate %s IDs; type: %s && systemctl daemon-reload", e.User, strings.Join(e.Missing, " and "), e.Remedy())
}

// Remedy returns the command that gives the user all missing IDs, and what to do before
// it if no range is left.
func (e *NoIDsError) Remedy() string {
	command := strings.Join(e.Usermod("add"), " ")
	if e.Free == "" {
		return "remove a range that nobody needs from /etc/subuid and /etc/subgid, then: " + command
	}
	return command
}

// Usermod returns the command line of usermod(8) that adds ("add") the missing IDs, or
// takes them away again ("del").
func (e *NoIDsError) Usermod(verb string) []string {
	command := []string{"usermod"}
	for _, kind := range e.Missing {
		command = append(command, fmt.Sprintf("--%s-sub%cids", verb, kind[0]), cmp.Or(e.Free, "FIRST-LAST"))
	}
	return append(command, e.User)
}

// Accounts looks users up and remembers the answers. The zero value reads the
// system's own files.
type Accounts struct {
	// Etc is the directory of passwd, subuid, subgid and nsswitch.conf; /etc if
	// empty.
	Etc string
	// Getent is the path of getent(1), which is asked for a user who is not in
	// passwd. It is /usr/bin/getent if empty. With "-" only passwd counts.
	Getent string

	mutex sync.Mutex
	known map[string]lookup
}

type lookup struct {
	account Account
	err     error
}

// nameServiceTimeout bounds how long the name service, such as a network directory,
// may hold up a boot. LookupAll spends it once for all users.
const nameServiceTimeout = 5 * time.Second

// LookupAll looks up all users at the same time, so that Lookup has the answers
// already. It takes at most 5 seconds.
func (a *Accounts) LookupAll(ctx context.Context, namesOrUIDs []string) {
	ctx, cancel := context.WithTimeout(ctx, nameServiceTimeout)
	defer cancel()
	var group sync.WaitGroup
	slots := make(chan struct{}, 64)
	names := slices.Clone(namesOrUIDs)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		group.Add(1)
		slots <- struct{}{}
		go func() {
			defer group.Done()
			a.Lookup(ctx, name)
			<-slots
		}()
	}
	group.Wait()
}

// Lookup returns the user with that name or UID, within 5 seconds. The error is
// ErrUnknown, ErrRoot, ErrNoAnswer, a *NoIDsError, or one of the file system, and has
// the user's name. With a *NoIDsError the account is set, too.
func (a *Accounts) Lookup(ctx context.Context, nameOrUID string) (Account, error) {
	a.mutex.Lock()
	l, ok := a.known[nameOrUID]
	a.mutex.Unlock()
	if ok {
		return l.account, l.err
	}
	ctx, cancel := context.WithTimeout(ctx, nameServiceTimeout)
	defer cancel()
	l.account, l.err = a.lookup(ctx, nameOrUID)
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.known == nil {
		a.known = map[string]lookup{}
	}
	a.known[nameOrUID] = l
	return l.account, l.err
}

func (a *Accounts) lookup(ctx context.Context, nameOrUID string) (Account, error) {
	u, err := a.find(ctx, nameOrUID)
	if err != nil {
		return Account{}, fmt.Errorf("user %q %w", nameOrUID, err)
	}
	if u.Uid == 0 {
		return Account{}, fmt.Errorf("user %q %w", nameOrUID, ErrRoot)
	}
	account := Account{Name: u.Name, UID: u.Uid, GID: u.Gid, Home: u.Home, Shell: u.Shell}
	if lacks, err := a.Lacks(account, 1); err != nil {
		return Account{}, err
	} else if lacks != nil {
		return account, lacks
	}
	return account, nil
}

// Lacks returns which kinds of subordinate IDs the user has less than least of, and nil
// if none.
func (a *Accounts) Lacks(account Account, least int64) (*NoIDsError, error) {
	if a.subordinateIDsElsewhere() {
		return nil, nil
	}
	lacks := &NoIDsError{User: account.Name}
	for _, kind := range []string{"user", "group"} {
		ranges, err := a.Ranges(account, kind)
		if err != nil {
			return nil, fmt.Errorf("user %q: read subordinate %s IDs: %w", account.Name, kind, err)
		}
		sum := int64(0)
		for _, r := range ranges {
			sum += r.Count
		}
		if sum < least {
			lacks.Missing = append(lacks.Missing, kind)
		}
	}
	if lacks.Missing == nil {
		return nil, nil
	}
	lacks.Free = a.FreeIDs(account.UID)
	return lacks, nil
}

// Ranges returns the user's subordinate IDs of a kind, "user" or "group", that are in
// subuid or subgid.
func (a *Accounts) Ranges(account Account, kind string) ([]user.SubID, error) {
	ranges, err := user.ParseSubIDFileFilter(filepath.Join(a.etc(), "sub"+kind[:1]+"id"), func(r user.SubID) bool {
		return r.Count > 0 && isTheirs(r, account.Name, account.UID)
	})
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return ranges, err
}

// Names returns the names in passwd of the users who have subordinate IDs, sorted. They
// are those that can run containers now.
func (a *Accounts) Names() []string {
	ranges, err := user.ParseSubIDFile(filepath.Join(a.etc(), "subuid"))
	if err != nil {
		return nil
	}
	users, err := user.ParsePasswdFileFilter(filepath.Join(a.etc(), "passwd"), func(u user.User) bool {
		return u.Uid != 0 && slices.ContainsFunc(ranges, func(r user.SubID) bool { return isTheirs(r, u.Name, u.Uid) })
	})
	if err != nil {
		return nil
	}
	names := make([]string, len(users))
	for i, u := range users {
		names[i] = u.Name
	}
	slices.Sort(names)
	return names
}

func isTheirs(r user.SubID, name string, uid int) bool {
	return r.Name == name || r.Name == strconv.Itoa(uid)
}

// RangeSize is the number of subordinate IDs that useradd(8) gives to a user.
const RangeSize = 65536

// FreeIDs returns a range of RangeSize subordinate user and group IDs that no user has, in
// the form of usermod(8). Two users who both lack a range get different ones: each UID has
// a place of its own in the IDs that systemd leaves to containers
// (https://systemd.io/UIDS-GIDS). If that place is taken, the range is above all others,
// else the first that is free. If none is, FreeIDs returns "".
func (a *Accounts) FreeIDs(uid int) string {
	const first, last = 524288, 1879048191
	var all []user.SubID
	for _, file := range []string{"subuid", "subgid"} {
		if ranges, err := user.ParseSubIDFile(filepath.Join(a.etc(), file)); err == nil {
			all = append(all, ranges...)
		}
	}
	candidates := []int64{first + int64(uid)%((last+1-first)/RangeSize)*RangeSize, first, first}
	for _, r := range all {
		candidates[1] = max(candidates[1], r.SubID+r.Count)
		candidates = append(candidates, r.SubID+r.Count)
	}
	slices.Sort(candidates[2:])
	for _, begin := range candidates {
		taken := begin < first || begin+RangeSize-1 > last || slices.ContainsFunc(all, func(r user.SubID) bool {
			return r.SubID < begin+RangeSize && begin < r.SubID+r.Count
		})
		if !taken {
			return fmt.Sprintf("%d-%d", begin, begin+RangeSize-1)
		}
	}
	return ""
}

// SharesIDsWith returns the name of another user who has some of the account's
// subordinate IDs, or "" if there is none.
func (a *Accounts) SharesIDsWith(account Account) string {
	for _, file := range []string{"subuid", "subgid"} {
		ranges, err := user.ParseSubIDFile(filepath.Join(a.etc(), file))
		if err != nil {
			continue
		}
		for _, r := range ranges {
			if !isTheirs(r, account.Name, account.UID) {
				continue
			}
			for _, other := range ranges {
				if !isTheirs(other, account.Name, account.UID) && other.SubID < r.SubID+r.Count && r.SubID < other.SubID+other.Count {
					return other.Name
				}
			}
		}
	}
	return ""
}

func (a *Accounts) etc() string {
	if a.Etc == "" {
		return "/etc"
	}
	return a.Etc
}

func (a *Accounts) find(ctx context.Context, nameOrUID string) (user.User, error) {
	uid, notNumber := strconv.ParseUint(nameOrUID, 10, 31)
	match := func(u user.User) bool {
		return u.Name == nameOrUID || notNumber == nil && u.Uid == int(uid)
	}
	users, err := user.ParsePasswdFileFilter(filepath.Join(a.etc(), "passwd"), match)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return user.User{}, err
	}
	if len(users) == 0 && nameOrUID != "" {
		users = a.getent(ctx, nameOrUID, match)
	}
	switch {
	case len(users) > 0:
		return users[0], nil
	case ctx.Err() != nil:
		return user.User{}, ErrNoAnswer
	}
	return user.User{}, ErrUnknown
}

// getent asks the name service for a user that is not in passwd.
func (a *Accounts) getent(ctx context.Context, nameOrUID string, match func(user.User) bool) []user.User {
	path := a.Getent
	if path == "" {
		path = "/usr/bin/getent"
	}
	if path == "-" || strings.HasPrefix(nameOrUID, "-") {
		return nil
	}
	cmd := exec.CommandContext(ctx, path, "passwd", nameOrUID)
	cmd.WaitDelay = 100 * time.Millisecond
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

// subordinateIDsElsewhere reports whether subordinate IDs come from a source other
// than /etc/subuid and /etc/subgid, nsswitch.conf(5). Then only podman can find them.
func (a *Accounts) subordinateIDsElsewhere() bool {
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
