package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/quadlet"
)

// remove takes away the drop-ins of the units that the arguments mean, after it has
// stopped the units: their own commands know how. The drop-ins of a user's manager go
// with the last unit of that user.
func (g *generation) remove(ctx context.Context, args []string) error {
	all, err := dropin.WrittenBelow(g.outputDir)
	if err != nil {
		return err
	}
	var chosen []dropin.Written
	var refused []error
	for _, arg := range args {
		w, err := g.find(all, arg)
		if err != nil {
			refused = append(refused, err)
		} else if !slices.Contains(chosen, w) {
			chosen = append(chosen, w)
		}
	}
	if len(refused) > 0 {
		return errors.Join(refused...)
	}
	kept := slices.DeleteFunc(slices.Clone(all), func(w dropin.Written) bool { return slices.Contains(chosen, w) || manager.IsUserManager(w.Unit) })
	needs := func(uid int) bool {
		return slices.ContainsFunc(kept, func(w dropin.Written) bool { return w.Origin.UID == uid })
	}
	gone, users := slices.Clone(chosen), map[int]string{}
	for _, w := range all {
		if manager.IsUserManager(w.Unit) && !needs(w.Origin.UID) && slices.ContainsFunc(chosen, func(c dropin.Written) bool { return c.Origin.UID == w.Origin.UID }) {
			gone = append(gone, w)
			users[w.Origin.UID] = w.Origin.User
		}
	}
	if g.dryRun {
		for _, w := range gone {
			fmt.Fprintln(g.stdout, "would remove", w.Path)
		}
		return nil
	}
	return g.removeAll(ctx, chosen, gone, users)
}

// removeAll stops the chosen units, removes the files, has systemd read that, and stops
// the managers of the users that nothing needs any more.
func (g *generation) removeAll(ctx context.Context, chosen, gone []dropin.Written, users map[int]string) error {
	var m *manager.Manager
	if g.connect != nil && slices.Contains(quadlet.UnitDirs, g.outputDir) {
		var stop func()
		var err error
		if m, stop, err = g.connect(&ctx); err != nil {
			return err
		}
		defer stop()
		names := make([]string, len(chosen))
		for i, w := range chosen {
			names[i] = w.Unit
		}
		if err := m.Stop(ctx, names...); err != nil {
			return err
		}
	}
	for _, w := range gone {
		if err := os.Remove(w.Path); err != nil {
			return err
		}
		os.Remove(filepath.Dir(w.Path)) // unless there is more in it
		fmt.Fprintln(g.stdout, "removed", w.Path)
	}
	for _, w := range chosen {
		about(g.log, w.Unit).Info(without(w))
	}
	if m == nil {
		fmt.Fprintln(g.stdout, "run: systemctl daemon-reload")
		return nil
	}
	if err := m.Reload(ctx); err != nil {
		return err
	}
	for uid, name := range users {
		if needed, err := m.NeedsManager(ctx, uid, name); err != nil || needed {
			continue // systemd-logind stops it in its time
		}
		if err := m.Stop(ctx, fmt.Sprintf("user@%d.service", uid)); err != nil {
			return err
		}
	}
	return nil
}

// find returns the drop-in that an argument means: by the unit's name, or by the file
// that it was made of.
func (g *generation) find(all []dropin.Written, arg string) (dropin.Written, error) {
	absolute, err := filepath.Abs(arg)
	if err != nil {
		return dropin.Written{}, err
	}
	name := serviceName(filepath.Base(arg))
	for _, w := range all {
		if !manager.IsUserManager(w.Unit) && (w.Unit == name || w.Origin.Source == absolute) {
			return w, nil
		}
	}
	path := filepath.Join(g.outputDir, name+".d", dropin.Name)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return dropin.Written{}, fmt.Errorf("%s: %s was not made by oci-mainpid generate", name, path)
	}
	return dropin.Written{}, fmt.Errorf("%s: oci-mainpid generate has written nothing for it: there is no %s", name, path)
}

// without says what becomes of a unit without its drop-in.
func without(w dropin.Written) string {
	disable := "to keep it from being started, type: systemctl disable " + w.Unit
	if quadlet.IsQuadlet(w.Origin.Source) {
		return "from now on the generator serves " + w.Origin.Source
	}
	unit, err := quadlet.LoadService(w.Origin.Source, quadlet.UnitDirs)
	switch {
	case err != nil:
		return disable
	case unit.Get("Service", "User") == "":
		return w.Origin.Source + " has no User=, so from now on the unit runs as root; " + disable
	}
	return "without its drop-in the unit fails to start; " + disable
}
