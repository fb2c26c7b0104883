package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/asuser"
	"oci-mainpid-hook/internal/printable"
	"oci-mainpid-hook/internal/terminal"
	"oci-mainpid-hook/internal/unitfile"
	"oci-mainpid-hook/quadlet"
)

// A user's own service is one that the user's manager runs, made of Quadlet files in the
// user's home. adopt makes a service of the system of it. The data is the user's already,
// and stays where it is. Root reads and moves the files as the user.

const (
	// ownDir is where Quadlet looks for them, below the home, podman-systemd.unit(5).
	ownDir = "/.config/containers/systemd"
	// systemDir is where they go.
	systemDir = "/etc/containers/systemd"
	// adoptedSuffix is appended to the names of the user's files, so that Quadlet does
	// not read them any more.
	adoptedSuffix = ".adopted"
)

func isOwn(arg string) bool { return strings.Contains(arg, ownDir+"/") }

// adoptOwn makes a service of the system of the user's own.
func (a *adopter) adoptOwn(ctx context.Context, path string) error {
	if a.clean {
		return fmt.Errorf("is not the service's name: type: oci-mainpid adopt --clean %s", terminal.Quote(strings.TrimSuffix(filepath.Base(path), ".container")))
	}
	user, err := a.planner.Accounts.Lookup(ctx, a.user)
	switch {
	case err != nil:
		return fmt.Errorf("--user: %w", err)
	case filepath.Dir(path) != user.Home+ownDir:
		return fmt.Errorf("is not in %s: --user names the user whose file it is", user.Home+ownDir)
	}
	p, err := readOwnAdoption(path)
	switch {
	case err != nil:
		return err
	case p != nil && p.Done:
		return fmt.Errorf("is a service of the system already; to remove the user's copies of its files, type: oci-mainpid adopt --clean %s", terminal.Quote(strings.TrimSuffix(p.Unit, ".service")))
	case p != nil && a.dryRun:
		return errKilled
	case p != nil:
		a.log.Warnf("%s: an earlier adopt was killed: undoing it first", p.Unit)
		if err := a.undo(ctx, p); err != nil {
			return err
		}
	}
	if p, err = a.planOwn(ctx, user, path); err != nil {
		return err
	}
	return a.carryOut(ctx, p, a.handOverOwn)
}

// readOwnAdoption returns the journal of the service that was made of the user's file, nil
// if there is none.
func readOwnAdoption(path string) (*adoption, error) {
	units, err := os.ReadDir(adoptionDir(""))
	if err != nil {
		return nil, err
	}
	for _, u := range units {
		if p, err := readAdoption(u.Name()); err != nil || p != nil && p.Own == filepath.Dir(path) && filepath.Base(p.Files[0]) == filepath.Base(path) {
			return p, err
		}
	}
	return nil, nil
}

// planOwn reads what is to be done, and fails if it cannot be done. It changes nothing.
func (a *adopter) planOwn(ctx context.Context, user account.Account, path string) (*adoption, error) {
	p := &adoption{User: user.Name, PID: os.Getpid(), Own: filepath.Dir(path), texts: map[string][]byte{}, account: user}
	files, err := p.ownFiles(ctx)
	if err != nil {
		return nil, err
	}
	if _, ok := files[filepath.Base(path)]; !ok {
		return nil, &fs.PathError{Op: "read", Path: path, Err: unix.ENOENT}
	}
	copies, err := os.MkdirTemp("", "oci-mainpid-adopt-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(copies)
	for name, text := range files {
		if quadlet.IsQuadlet(name) {
			if err := os.WriteFile(filepath.Join(copies, name), text, 0o600); err != nil {
				return nil, err
			}
		}
	}
	family, others, err := a.family(ctx, filepath.Join(copies, filepath.Base(path)), []string{copies})
	if err != nil {
		return nil, err
	}
	if err := p.takeFamily(family, others); err != nil {
		return nil, err
	}
	p.Starts = []string{p.Unit}
	var names []string
	for i, c := range family {
		names = append(names, c.Name, c.File())
		p.Files[i] = filepath.Join(systemDir, c.File())
		p.texts[p.Files[i]] = files[c.File()]
		existing := quadlet.UnitFile(quadlet.AllUnitDirs, c.Name)
		if _, err := os.Lstat(p.Files[i]); err == nil {
			existing = p.Files[i]
		}
		_, hasDropins := files[c.File()+".d"]
		switch {
		case existing != "":
			return nil, fmt.Errorf("the system has %s already: rename the user's file first", existing)
		case hasDropins:
			return nil, fmt.Errorf("%s has drop-ins, in %s.d: move it by hand, see docs/user-to-system.md", c.File(), filepath.Join(p.Own, c.File()))
		case slices.ContainsFunc(c.Unit.Assignments, func(as unitfile.Assignment) bool {
			return as.Key != "SourcePath" && strings.Contains(as.Value, copies)
		}):
			return nil, fmt.Errorf("%s has a relative path: write it from / on", c.File())
		}
	}
	for _, path := range p.Files {
		if err := checkOwn(p.texts[path], names); err != nil {
			return nil, fmt.Errorf("%s: %w: move it by hand, see docs/user-to-system.md", filepath.Base(path), err)
		}
	}
	p.WasActive = a.ofUsersManager(ctx, p, "is-active", p.Unit) == nil
	return p, nil
}

// ownFiles returns the texts of the files in the user's directory, and the names of the
// directories there, as the user sees them.
func (p *adoption) ownFiles(ctx context.Context) (map[string][]byte, error) {
	out, _, err := asuser.Command{Account: p.account, Timeout: userTime, Args: []string{
		"sh", "-c", `cd "$0" && exec tar --dereference --no-recursion -cf - -- *`, p.Own,
	}}.Output(ctx, nil)
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(out)); err == nil; {
		var header *tar.Header
		if header, err = r.Next(); err == nil {
			files[strings.TrimSuffix(header.Name, "/")], err = io.ReadAll(r)
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return files, nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("more than 4 MiB")
	}
	return nil, fmt.Errorf("read %s as %s: %s", p.Own, p.account.Name, printable.Clean(err.Error()))
}

// ownKeys are the keys of systemd's with which a user's file gets no right of root's. Other
// keys open files, run commands, or act on units of the system.
var ownKeys = map[string][]string{
	"Unit":    {"Description", "Documentation", "StartLimitIntervalSec", "StartLimitBurst", "After", "Wants", "Requires"},
	"Service": {"Restart", "RestartSec", "RestartSteps", "RestartMaxDelaySec", "TimeoutStartSec", "TimeoutStopSec", "SuccessExitStatus", "RestartPreventExitStatus", "RestartForceExitStatus"},
	"Install": {"WantedBy"},
}

// ownUnits are the units that it may name, beside the services of the same user's files.
var ownUnits = []string{"default.target", "multi-user.target", "network.target", "network-online.target"}

// systemSpecifiers are those that mean another directory for a service of the system, with
// each of our options, systemd.unit(5).
var systemSpecifiers = regexp.MustCompile(`%[ECLSd]`)

// checkOwn fails if a user's file would do as a service of the system what its user may not,
// or something else than before. names are those of the services that move together, and of
// their files.
func checkOwn(text []byte, names []string) error {
	f, err := unitfile.Parse(text)
	if err != nil {
		return err
	}
	for _, as := range f.Assignments {
		keys, ofSystemd := ownKeys[as.Section]
		said := fmt.Errorf("%s=%s in [%s] would be for the system", as.Key, printable.Clean(unitfile.Clip(as.Value)), as.Section)
		switch {
		case !ofSystemd && systemSpecifiers.MatchString(as.Value):
			return said
		case !ofSystemd:
		case !slices.Contains(keys, as.Key):
			return said
		case slices.Contains([]string{"Description", "Documentation"}, as.Key):
		case strings.ContainsRune(as.Value, '%'):
			return said
		case slices.Contains([]string{"After", "Wants", "Requires", "WantedBy"}, as.Key):
			for _, unit := range strings.Fields(as.Value) {
				if !slices.Contains(ownUnits, unit) && !slices.Contains(names, unit) {
					return said
				}
			}
		}
	}
	return nil
}

// handOverOwn ends the user's service, and moves its files.
func (a *adopter) handOverOwn(ctx context.Context, p *adoption) error {
	if err := a.ofUsersManager(ctx, p, append([]string{"stop"}, p.Services...)...); err != nil {
		return err
	}
	if err := a.renameOwn(ctx, p, "", adoptedSuffix); err != nil {
		return err
	}
	return p.writeFiles()
}

// undoOwn takes back what handOverOwn did, wherever it stopped.
func (a *adopter) undoOwn(ctx context.Context, p *adoption) error {
	for _, path := range p.Files {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := a.manager.Reload(ctx); err != nil {
		return err
	}
	if err := a.renameOwn(ctx, p, adoptedSuffix, ""); err != nil {
		return err
	}
	if p.WasActive {
		return a.ofUsersManager(ctx, p, "start", p.Unit)
	}
	return nil
}

// renameOwn gives each of the user's files that is there another end of its name.
func (a *adopter) renameOwn(ctx context.Context, p *adoption, from, to string) error {
	const script = `cd "$0"; from=$1 to=$2; shift 2; for f; do if test -e "$f$from"; then mv -f -- "$f$from" "$f$to"; fi; done`
	args := []string{"sh", "-ec", script, p.Own, from, to}
	for _, path := range p.Files {
		args = append(args, filepath.Base(path))
	}
	if _, err := a.asUser(ctx, p, nil, args...); err != nil {
		return err
	}
	return a.ofUsersManager(ctx, p, "daemon-reload")
}

// cleanUpOwn removes the user's copies of the files.
func (a *adopter) cleanUpOwn(ctx context.Context, p *adoption) error {
	args := []string{"rm", "-f", "--"}
	for _, path := range p.Files {
		args = append(args, filepath.Join(p.Own, filepath.Base(path))+adoptedSuffix)
	}
	_, err := a.asUser(ctx, p, nil, args...)
	return err
}

// ofUsersManager runs systemctl --user as the user.
func (a *adopter) ofUsersManager(ctx context.Context, p *adoption, args ...string) error {
	_, err := a.asUser(ctx, p, nil, append([]string{"systemctl", "--user", "--quiet"}, args...)...)
	return err
}
