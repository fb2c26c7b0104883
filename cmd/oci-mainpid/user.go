package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/diagnosis"
	"oci-mainpid-hook/internal/printable"
	"oci-mainpid-hook/internal/terminal"
)

// stateDir is root's directory for what must outlive a reboot.
const stateDir = "/var/lib/oci-mainpid"

func userCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "user",
		Short: "Make a user for containers",
		RunE: func(cmd *cobra.Command, args []string) error {
			return usageError(errors.New("user must be followed by: add NAME"))
		},
	}
	home, format := "", ""
	add := &cobra.Command{
		Use:   "add [flags] NAME",
		Short: "Make a system user who can run containers, or give one what is missing",
		Long: `Makes the system user NAME with a home, no login and subordinate IDs. If the user
exists, adds only what is missing.`,
		Example:           "  oci-mainpid user add web",
		ValidArgsFunction: cobra.NoFileCompletions,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError(fmt.Errorf("%d arguments, not one NAME", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "table" && format != "json" {
				return usageError(fmt.Errorf("--format=%s is neither table nor json", format))
			}
			u, err := addUser(cmd.Context(), args[0], home)
			if err != nil {
				return err
			}
			return u.write(cmd.OutOrStdout(), format)
		},
	}
	add.Flags().StringVar(&home, "home", "", "the user's home is `DIR`, by default /var/lib/NAME")
	add.Flags().StringVar(&format, "format", "table", "`FORMAT` is table or json")
	mustRegister(add, "format", "table", "json")
	if err := add.MarkFlagDirname("home"); err != nil {
		panic(err) // there is no such flag
	}
	cmd.AddCommand(add)
	return cmd
}

// addedUser is what user add --format=json writes.
type addedUser struct {
	User string `json:"user"`
	UID  int    `json:"uid"`
	Home string `json:"home"`
	// SubUIDs and SubGIDs are ranges in the form of usermod(8).
	SubUIDs []string `json:"subuids"`
	SubGIDs []string `json:"subgids"`
	// Added are the things that were missing: user, home, subordinate IDs.
	Added []string `json:"added"`
}

func (u addedUser) write(w io.Writer, format string) error {
	if format == "json" {
		return terminal.WriteJSON(w, u)
	}
	t := terminal.Table{Columns: []terminal.Column{{Title: "USER"}, {Title: "UID", Right: true}, {Title: "HOME", Least: 8}, {Title: "SUBORDINATE IDS"}, {Title: "ADDED"}}}
	t.Add(terminal.Cell{Text: terminal.Clean(u.User)}, terminal.Cell{Text: fmt.Sprint(u.UID)}, terminal.Cell{Text: terminal.Clean(u.Home)},
		terminal.Cell{Text: strings.Join(u.SubUIDs, ",")}, terminal.Cell{Text: cmp.Or(strings.Join(u.Added, ", "), "nothing")})
	t.Write(terminal.New(w))
	return nil
}

var (
	// userName is what systemd takes for a name anywhere, https://systemd.io/USER_NAMES, in
	// lower case.
	userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)
	homePath = regexp.MustCompile(`^(/[A-Za-z0-9_+@-][A-Za-z0-9._+@-]*)+$`)
)

// addUser makes a system user who can run containers, or gives one what is missing. home
// is "" for the user's own, or for /var/lib/NAME. It can be killed at any moment and
// called again.
func addUser(ctx context.Context, name, home string) (u addedUser, err error) {
	switch {
	case os.Geteuid() != 0:
		return u, errors.New("must be run as root, who may make users")
	case !userName.MatchString(name):
		return u, usageError(fmt.Errorf("%q is no name for a user: take small letters, digits, - and _, at most 31, and a letter or _ first, such as web", name))
	case home != "" && !homePath.MatchString(home):
		return u, usageError(fmt.Errorf("--home=%s: must be an absolute path of letters, digits and . _ + @ -, such as /srv/%s", home, name))
	}
	// Two calls at once must not find the same range free.
	lock, err := lockDir(stateDir)
	if err != nil {
		return u, err
	}
	defer lock.Close()
	sysusers, tmpfiles := "/etc/sysusers.d/oci-mainpid-"+name+".conf", "/etc/tmpfiles.d/oci-mainpid-"+name+".conf"
	u.Added = []string{}
	_, err = os.Lstat(sysusers)
	ours := err == nil // an earlier call made the user, or was about to
	a, err := lookup(ctx, name)
	switch {
	case errors.Is(err, account.ErrUnknown):
		home = cmp.Or(home, "/var/lib/"+name)
		if err := mayCreate(name, home, ours); err != nil {
			return u, err
		}
		text := fmt.Sprintf("# Made by oci-mainpid user add. See sysusers.d(5).\nu %s - \"Containers of system services\" %s\n", name, home)
		if err := writeConfig(sysusers, text); err != nil {
			return u, err
		}
		ours = true
		if err := runTool(ctx, lock, "systemd-sysusers", sysusers); err != nil {
			return u, err
		}
		u.Added = append(u.Added, "user")
		if a, err = lookup(ctx, name); err != nil {
			return u, err
		}
	case err != nil:
		return u, err
	case home != "" && home != a.Home:
		return u, fmt.Errorf("user %q exists, and the home is %s: leave --home out", name, a.Home)
	}
	if !a.IsSystem() {
		return u, fmt.Errorf("user %q is no system user (UID %d), so a logout deletes podman's locks: name a user that does not exist yet; to use this one all the same, see oci-mainpid check", name, a.UID)
	}
	if ours && isMissing(a.Home) {
		if err := writeConfig(tmpfiles, fmt.Sprintf("# Made by oci-mainpid user add. See tmpfiles.d(5).\nd %s 0700 %s %s -\n", a.Home, name, name)); err != nil {
			return u, err
		}
		if err := runTool(ctx, lock, "systemd-tmpfiles", "--create", tmpfiles); err != nil {
			return u, err
		}
		u.Added = append(u.Added, "home")
	}
	if home := diagnosis.HomeOf(a); home.Err != nil {
		return u, fmt.Errorf("user %q: home: %w; type: usermod --home /var/lib/%s %[1]s && install -d -m 700 -o %[1]s /var/lib/%[1]s", name, home.Err, name)
	}
	if err := u.addRanges(ctx, lock, a); err != nil {
		return u, err
	}
	u.User, u.UID, u.Home = a.Name, a.UID, a.Home
	return u, nil
}

// lookup returns the user, also one without subordinate IDs.
func lookup(ctx context.Context, name string) (account.Account, error) {
	var accounts account.Accounts
	a, err := accounts.Lookup(ctx, name)
	if errors.As(err, new(*account.NoIDsError)) {
		err = nil
	}
	return a, err
}

// addRanges gives the user at least account.RangeSize subordinate IDs of each kind.
func (u *addedUser) addRanges(ctx context.Context, lock *os.File, a account.Account) error {
	var accounts account.Accounts
	lacks, err := accounts.Lacks(a, account.RangeSize)
	switch {
	case err != nil:
		return err
	case lacks != nil && lacks.Free == "":
		return lacks
	case lacks != nil:
		before := accounts.SharesIDsWith(a)
		if err := runTool(ctx, lock, lacks.Usermod("add")...); err != nil {
			return err
		}
		if other := accounts.SharesIDsWith(a); other != before {
			// Another program does not know our lock.
			return errors.Join(fmt.Errorf("user %q: %s has got the same subordinate IDs meanwhile: type the same again", a.Name, other), runTool(ctx, lock, lacks.Usermod("del")...))
		}
		u.Added = append(u.Added, "subordinate IDs")
	}
	for kind, texts := range map[string]*[]string{"user": &u.SubUIDs, "group": &u.SubGIDs} {
		ranges, err := accounts.Ranges(a, kind)
		if err != nil {
			return err
		}
		for _, r := range ranges {
			*texts = append(*texts, fmt.Sprintf("%d-%d", r.SubID, r.SubID+r.Count-1))
		}
	}
	return nil
}

// mayCreate fails if a user of that name, with that home, would get what is somebody
// else's. With again the group may exist: an earlier call has made it.
func mayCreate(name, home string, again bool) error {
	if out, err := exec.Command("getent", "group", name).Output(); err == nil && !again {
		return fmt.Errorf("a group %q exists, whose rights the user would have (%s): name another user", name, printable.Clean(strings.TrimSpace(string(out))))
	}
	dir, err := openDirectory(filepath.Dir(home))
	if err != nil {
		return fmt.Errorf("home %s: %w", home, err)
	}
	unix.Close(dir)
	if _, err := os.Lstat(home); err == nil {
		return fmt.Errorf("home %s exists and would become the user's: name another directory with --home=DIR", home)
	}
	return nil
}

// isMissing reports whether a home is yet to be made: it is not there, or is root's and
// empty, because systemd-tmpfiles was killed before it changed the owner.
func isMissing(home string) bool {
	var st unix.Stat_t
	err := unix.Lstat(home, &st)
	if err == nil && st.Uid == 0 {
		entries, err := os.ReadDir(home)
		return err == nil && len(entries) == 0
	}
	return err == unix.ENOENT
}

func writeConfig(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return writeFile(path, []byte(text))
}

// runTool runs a program of the system's. The program holds the lock, too: it may go on
// after this process is killed.
func runTool(ctx context.Context, lock *os.File, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.ExtraFiles = []*os.File{lock}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, printable.Clean(strings.TrimSpace(string(out))))
	}
	return nil
}

// lockDir waits until no other oci-mainpid has locked a directory of root's, which it
// makes. The lock ends when the file is closed.
func lockDir(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return dir, nil
}
