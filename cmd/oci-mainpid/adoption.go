package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/asuser"
	"oci-mainpid-hook/internal/printable"
	"oci-mainpid-hook/internal/status"
	"oci-mainpid-hook/internal/terminal"
	"oci-mainpid-hook/quadlet"
)

// settleTime is how long the user's service must run before it counts.
const settleTime = 3 * time.Second

// userTime is how long a command of the user's may take, such as podman volume create.
const userTime = 2 * time.Minute

// adopt hands one unit over, or cleans up after that.
func (a *adopter) adopt(ctx context.Context, arg string) error {
	path, err := filepath.Abs(a.planner.File(arg))
	if err != nil {
		return err
	}
	lock, err := lockDir(adoptionDir(""))
	if err != nil {
		return err
	}
	defer lock.Close()
	if isOwn(path) {
		return a.adoptOwn(ctx, path)
	}
	family, others, err := a.family(ctx, path, nil)
	if err != nil {
		return err
	}
	unit := family[0].Name
	p, err := readAdoption(unit)
	switch {
	case err != nil:
		return err
	case a.clean && (p == nil || !p.Done):
		return errors.New("no adopt of it has ended well, so nothing is root's copy")
	case a.clean:
		return a.cleanUp(ctx, p)
	case p != nil && p.Done && family[0].Unit.Get("Service", "User") != "":
		return fmt.Errorf("is %s's already; to remove root's copies, type: oci-mainpid adopt --clean %s", p.User, terminal.Quote(arg))
	case p != nil && p.Done:
		return fmt.Errorf("was adopted by %s, and is root's again: if root's data is right, type: rm -r %s", p.User, adoptionDir(unit))
	case p != nil && a.dryRun:
		return errKilled
	case p != nil && !slices.ContainsFunc(family, func(c quadlet.Converted) bool { return c.Unit.Get("Service", "User") != p.User }):
		// The user has all data, and maybe writes to it since.
		a.log.Warnf("%s: an earlier adopt was killed: going on with it", unit)
		return a.finish(ctx, p, nil)
	case p != nil:
		a.log.Warnf("%s: an earlier adopt was killed: undoing it first", unit)
		if err := a.undo(ctx, p); err != nil {
			return err
		}
		if family, others, err = a.family(ctx, path, nil); err != nil {
			return err
		}
	}
	if p, err = a.plan(ctx, family, others); err != nil {
		return err
	}
	return a.carryOut(ctx, p, a.handOver)
}

var errKilled = errors.New("an earlier adopt was killed: type the same without --dry-run, which goes on or undoes it")

// carryOut shows what is planned. Without --dry-run it does so: first what handOver does.
func (a *adopter) carryOut(ctx context.Context, p *adoption, handOver func(context.Context, *adoption) error) error {
	if err := p.write(a.stdout, a.format); err != nil || a.dryRun {
		return err
	}
	if p.account.Name == "" {
		_, err := addUser(ctx, p.User, "")
		if err == nil {
			p.account, err = lookup(ctx, p.User)
		}
		if err != nil {
			return err
		}
	}
	if err := p.save(); err != nil {
		return err
	}
	return a.finish(ctx, p, handOver(ctx, p))
}

// finish starts what handOver has handed over. If the service does not run, or handOver
// has failed with err, it undoes all.
func (a *adopter) finish(ctx context.Context, p *adoption, err error) error {
	if err == nil {
		err = a.systemctl(ctx, "daemon-reload")
	}
	if err == nil {
		startErr := a.systemctl(ctx, append([]string{"start"}, p.Starts...)...)
		err = cmp.Or(a.verify(ctx, p), startErr) // verify says more
	}
	if err == nil {
		p.Done = true
		err = p.save()
	}
	if err != nil {
		a.log.Warnf("%s: undoing it, because: %v", p.Unit, err)
		if undoErr := a.undo(context.WithoutCancel(ctx), p); undoErr != nil {
			return errors.Join(err, fmt.Errorf("undo: %w; to try again, type the same again", undoErr))
		}
		return fmt.Errorf("was not handed over; %s service is as before: %w", p.owner(), err)
	}
	a.log.Infof("%s runs as %s; when %s copies are no longer needed, type: oci-mainpid adopt --clean %s", p.Unit, p.User, p.owner(), terminal.Quote(strings.TrimSuffix(p.Unit, ".service")))
	return nil
}

// handOver gives the user what the unit needs, and then the files. Of root's it changes
// nothing but the files.
func (a *adopter) handOver(ctx context.Context, p *adoption) error {
	if !p.HasImage {
		err := a.pipe(ctx, p, "image "+p.ImageName, p.sizeOf("image", p.ImageName), []string{"podman", "save", p.Image}, []string{"podman", "load", "--quiet"})
		if err != nil {
			return err
		}
	}
	if !p.HasName && p.ImageName != p.Image && !strings.ContainsRune(p.ImageName, '@') {
		if _, err := a.asUser(ctx, p, nil, "podman", "tag", p.Image, p.ImageName); err != nil {
			return err
		}
	}
	for _, name := range p.Secrets {
		data, err := exec.CommandContext(ctx, "podman", "secret", "inspect", "--showsecret", "--format={{.SecretData}}", name).Output()
		if err != nil {
			return fmt.Errorf("podman secret inspect %s: %w", name, err)
		}
		data = bytes.TrimSuffix(data, []byte("\n")) // the format's
		if _, err := a.asUser(ctx, p, bytes.NewReader(data), "podman", "secret", "create", name, "-"); err != nil {
			return err
		}
	}
	// What a reload would not start again must stop now, such as that of a network.
	if err := a.systemctl(ctx, append([]string{"stop"}, p.Services...)...); err != nil {
		return err
	}
	for _, name := range p.Volumes {
		from, err := podmanOfRoot(ctx, "volume", "inspect", "--format={{.Mountpoint}}", name)
		if err != nil {
			return err
		}
		if _, err := a.asUser(ctx, p, nil, "podman", "volume", "create", name); err != nil {
			return err
		}
		to, err := a.asUser(ctx, p, nil, "podman", "volume", "inspect", "--format={{.Mountpoint}}", name)
		if err != nil {
			return err
		}
		tar := func(dir string, more ...string) []string {
			return append([]string{"tar", "-C", dir, "--numeric-owner", "--acls", "--xattrs"}, more...)
		}
		err = a.pipe(ctx, p, "volume "+name, p.sizeOf("volume", name), tar(from, "-cf", "-", "."), append([]string{"podman", "unshare"}, tar(to, "-xpf", "-")...))
		if err != nil {
			return err
		}
	}
	// The files say that the data is there, also after a power cut.
	unix.Sync()
	return p.writeFiles()
}

// writeFiles writes the files with User=.
func (p *adoption) writeFiles() error {
	for _, path := range p.Files {
		text, err := os.ReadFile(p.backup(path))
		if err != nil {
			return err
		}
		changed, err := withUser(string(text), p.User)
		if err != nil {
			return err
		}
		if err := writeFile(path, []byte(changed)); err != nil {
			return err
		}
	}
	return nil
}

// verify fails unless the unit runs, with a conmon of the user's as its main process, and
// goes on doing so for settleTime.
func (a *adopter) verify(ctx context.Context, p *adoption) error {
	main := 0
	for deadline := time.Now().Add(settleTime); ; {
		var s status.Service
		_, err := status.Read(ctx, a.manager, []string{p.Unit}, func(string) {}, func(all ...status.Service) { s = all[0] })
		switch {
		case err != nil:
			return err
		case s.User != p.User || s.ActiveState != "active" || s.Agrees == nil || !*s.Agrees || main != 0 && s.MainPID != main:
			return fmt.Errorf("%s does not run as %s (%s); see: oci-mainpid explain %[1]s", p.Unit, p.User, strings.TrimSpace(s.ActiveState+" "+printable.Clean(s.Problem+" "+s.LastError)))
		case time.Now().After(deadline):
			return nil
		}
		main = s.MainPID
		select {
		case <-ctx.Done():
			return errInterrupted
		case <-time.After(settleTime / 6):
		}
	}
}

// undo takes back what an adoption did, wherever it stopped, and starts root's service.
// It can be killed and called again.
func (a *adopter) undo(ctx context.Context, p *adoption) error {
	var err error
	if p.account, err = lookup(ctx, p.User); err != nil {
		return err
	}
	if err := a.manager.Stop(ctx, append([]string{asuser.Units(p.PID)}, p.Services...)...); err != nil {
		return err
	}
	if p.Own != "" {
		err = a.undoOwn(ctx, p)
	} else {
		err = a.undoRoots(ctx, p)
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(adoptionDir(p.Unit))
}

// undoRoots takes back what handOver did, wherever it stopped.
func (a *adopter) undoRoots(ctx context.Context, p *adoption) error {
	for _, path := range p.Files {
		text, err := os.ReadFile(p.backup(path))
		if errors.Is(err, os.ErrNotExist) {
			continue // killed before the first change
		}
		if err == nil {
			err = writeFile(path, text)
		}
		if err != nil {
			return err
		}
	}
	if err := a.systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	remove := func(what string, names ...string) error {
		for _, name := range names {
			has, err := a.has(ctx, p, what, name)
			if err == nil && has {
				_, err = a.asUser(ctx, p, nil, "podman", what, "rm", name)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	err := errors.Join(remove("volume", p.Volumes...), remove("secret", p.Secrets...), remove("network", p.Networks...))
	switch {
	case err == nil && !p.HasImage:
		err = remove("image", p.Image)
	case err == nil && !p.HasName:
		err = a.untag(ctx, p)
	}
	if err != nil {
		return err
	}
	return a.systemctl(ctx, append([]string{"start"}, p.Starts...)...)
}

// untag takes the name of root's image from an image that the user had.
func (a *adopter) untag(ctx context.Context, p *adoption) error {
	has, err := a.has(ctx, p, "image", p.ImageName)
	if err == nil && has && p.ImageName != p.Image {
		_, err = a.asUser(ctx, p, nil, "podman", "untag", p.Image, p.ImageName)
	}
	return err
}

// cleanUp removes what root still has. The user's service must run.
func (a *adopter) cleanUp(ctx context.Context, p *adoption) error {
	if err := a.verify(ctx, p); err != nil {
		return err
	}
	if p.Own != "" {
		if err := a.cleanUpOwn(ctx, p); err != nil {
			return err
		}
		return os.RemoveAll(adoptionDir(p.Unit))
	}
	remove := func(what string, names ...string) error {
		for _, name := range names {
			if _, err := podmanOfRoot(ctx, what, "exists", name); err != nil {
				continue
			}
			if _, err := podmanOfRoot(ctx, what, "rm", name); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "removed root's %s %s\n", what, printable.Clean(name))
		}
		return nil
	}
	if err := errors.Join(remove("volume", p.Volumes...), remove("secret", p.Secrets...), remove("network", p.Networks...)); err != nil {
		return err
	}
	if err := remove("image", p.Image); err != nil {
		a.log.Warnf("root keeps the image: %v", err) // others need it
	}
	return os.RemoveAll(adoptionDir(p.Unit))
}

// The journal of an adoption is root's alone, and outside of Quadlet's directories.

func adoptionDir(unit string) string { return stateDir + "/adopt/" + unit }

// owner says whose service is adopted.
func (p *adoption) owner() string {
	if p.Own != "" {
		return p.User + "'s own"
	}
	return "root's"
}

func (p *adoption) backup(path string) string {
	return adoptionDir(p.Unit) + "/" + filepath.Base(path)
}

func (p *adoption) sizeOf(what, name string) int64 {
	for _, i := range p.items {
		if i.What == what && i.Name == name {
			return i.Bytes
		}
	}
	return 0
}

// save writes the journal, and before that copies of the files.
func (p *adoption) save() error {
	if err := os.MkdirAll(adoptionDir(p.Unit), 0o700); err != nil {
		return err
	}
	for _, path := range p.Files {
		if _, err := os.Stat(p.backup(path)); err == nil {
			continue
		}
		if err := writeFile(p.backup(path), p.texts[path]); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(adoptionDir(p.Unit)+"/journal.json", append(text, '\n'))
}

// readAdoption returns the journal of a unit, nil if there is none.
func readAdoption(unit string) (*adoption, error) {
	path := adoptionDir(unit) + "/journal.json"
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, os.RemoveAll(adoptionDir(unit)) // copies of files, at most
	}
	if err != nil {
		return nil, err
	}
	p := &adoption{}
	if err := json.Unmarshal(text, p); err != nil || p.Unit != unit {
		return nil, fmt.Errorf("%s is damaged (%v): look into it, and remove it", path, err)
	}
	return p, nil
}

// asUser runs a command as the user, and returns what it wrote. A command that is not
// fed by root has userTime.
func (a *adopter) asUser(ctx context.Context, p *adoption, stdin io.Reader, args ...string) (string, error) {
	var stdout, stderr asuser.Buffer
	c := asuser.Command{Account: p.account, Args: args, Stdin: stdin, Stdout: &stdout, Stderr: &stderr}
	if stdin == nil {
		c.Timeout = userTime
	}
	status, err := c.Run(ctx)
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d: %s", status, lastLine(stderr.String()))
	}
	if err != nil {
		return "", fmt.Errorf("as %s: %s: %w", p.account.Name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(stdout.String()), nil
}

// has reports whether the user's podman has a thing of that name.
func (a *adopter) has(ctx context.Context, p *adoption, what, name string) (bool, error) {
	var stderr asuser.Buffer
	status, err := asuser.Command{Account: p.account, Args: []string{"podman", what, "exists", name}, Stderr: &stderr, Timeout: userTime}.Run(ctx)
	if err == nil && status > 1 {
		err = fmt.Errorf("as %s: podman %s exists %s: exit status %d: %s", p.User, what, name, status, lastLine(stderr.String()))
	}
	return status == 0, err
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return printable.Clean(lines[len(lines)-1])
}

// pipe copies what root's command writes to a command of the user's.
func (a *adopter) pipe(ctx context.Context, p *adoption, title string, size int64, from, to []string) error {
	cmd := exec.CommandContext(ctx, from[0], from[1:]...)
	var message asuser.Buffer
	cmd.Stderr = &message
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	progress := terminal.NewProgress(a.stderr, title, out, size)
	_, toErr := a.asUser(ctx, p, progress, to...)
	progress.Clear()
	out.Close() // if the user's command has not read all
	if err = cmd.Wait(); err != nil && toErr == nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(from, " "), err, lastLine(message.String()))
	}
	return toErr
}

func (a *adopter) systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, lastLine(string(out)))
	}
	return nil
}

// podmanOfRoot runs podman as root.
func podmanOfRoot(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "podman", args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, lastLine(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// diskUsage returns how many bytes the files below a directory have, 0 if that is not known.
func diskUsage(ctx context.Context, dir string) int64 {
	out, err := exec.CommandContext(ctx, "du", "--bytes", "--summarize", dir).Output()
	if err != nil {
		return 0
	}
	size, _, _ := strings.Cut(string(out), "\t")
	n, _ := strconv.ParseInt(size, 10, 64)
	return n
}
