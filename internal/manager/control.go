package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
)

// stopTimeout is more than a unit has, unless its TimeoutStopSec= is longer than
// systemd's default.
const stopTimeout = 2 * time.Minute

// Stop stops services at the same time, and waits until they have stopped. The name of a
// template stands for its instances that are loaded. A service that systemd does not know
// has stopped.
func (m *Manager) Stop(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	waiting := map[string]chan string{}
	for _, name := range names {
		units, err := m.conn.ListUnitsByPatternsContext(ctx, nil, []string{strings.Replace(name, "@.service", "@*.service", 1)})
		if err != nil {
			return fmt.Errorf("ask systemd for %s: %w", name, err)
		}
		for _, u := range units {
			done := make(chan string, 1)
			switch _, err := m.conn.StopUnitContext(ctx, u.Name, "replace", done); {
			case isNoSuchUnit(err): // it has gone since systemd listed it
			case err != nil:
				return fmt.Errorf("stop %s: %w", u.Name, err)
			default:
				waiting[u.Name] = done
			}
		}
	}
	var errs []error
	for name, done := range waiting {
		select {
		case result := <-done:
			if result != "done" && result != "skipped" {
				errs = append(errs, fmt.Errorf("stop %s: systemd says %s; see: systemctl status %[1]s", name, result))
			}
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("stop %s: %w", name, context.Cause(ctx)))
		}
	}
	return errors.Join(errs...)
}

// isNoSuchUnit reports whether an answer of systemd's says that it has no such unit.
func isNoSuchUnit(err error) bool {
	var answer dbus.Error
	return errors.As(err, &answer) && answer.Name == "org.freedesktop.systemd1.NoSuchUnit"
}

// jobTimeout is longer than almost every TimeoutStartSec=, which a user may extend.
const jobTimeout = 15 * time.Minute

// Restart restarts a service, or with inPlace has it do what its ExecReload= says, and
// waits for that. The error says what systemd says of it.
func (m *Manager) Restart(ctx context.Context, name string, inPlace bool) error {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	verb, call := "restart", m.conn.RestartUnitContext
	if inPlace {
		verb, call = "reload", m.conn.ReloadUnitContext
	} else {
		// What has failed too often would not be started.
		m.conn.ResetFailedUnitContext(ctx, name) // fails if it has not failed
	}
	done := make(chan string, 1)
	if _, err := call(ctx, name, "replace", done); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("%s: systemd says %s", verb, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", verb, context.Cause(ctx))
	}
}

// Reload has systemd read all unit files, and run the generators.
func (m *Manager) Reload(ctx context.Context) error {
	if err := m.conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("systemctl daemon-reload: %w", err)
	}
	return nil
}

// IsGone reports whether a service has no file, or only the one that the generator writes
// for a service that has lost its own, and is down.
func (m *Manager) IsGone(ctx context.Context, name string) (bool, error) {
	if unitfile.CheckServiceName(name) != nil || unitfile.IsTemplate(name) {
		return false, nil
	}
	p, err := m.properties(ctx, name)
	if err != nil {
		return false, err
	}
	gone := p.String("LoadState") == "not-found"
	if text, err := unitfile.Read(p.String("FragmentPath")); err == nil {
		origin, err := dropin.ParseOrigin(text)
		gone = err == nil && origin.IsGone()
	}
	state := p.String("ActiveState")
	return gone && (state == "inactive" || state == "failed"), nil
}

// NeedsManager reports whether anybody needs the manager of a user: the user lingers or
// has a session, or an active unit needs it.
func (m *Manager) NeedsManager(ctx context.Context, uid int, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := os.Lstat("/var/lib/systemd/linger/" + name); err == nil {
		return true, nil
	}
	p, err := m.properties(ctx, "user@"+strconv.Itoa(uid)+".service")
	if err != nil || p.Bool("RefuseManualStop") {
		return true, err
	}
	for _, key := range []string{"WantedBy", "RequiredBy", "BoundBy"} {
		for _, unit := range p.Strings(key) {
			if p, err := m.properties(ctx, unit); err != nil || p.String("ActiveState") != "inactive" && p.String("ActiveState") != "failed" && !strings.HasPrefix(unit, "user-runtime-dir@") && !strings.HasPrefix(unit, "oci-mainpid-pause@") {
				return true, err
			}
		}
	}
	return hasSession(ctx, uid)
}

// hasSession reports whether a user has a session of systemd-logind's, but that of the
// user's manager itself, org.freedesktop.login1(5).
func hasSession(ctx context.Context, uid int) (bool, error) {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return false, err
	}
	defer conn.Close()
	var sessions []struct {
		ID   string
		UID  uint32
		User string
		Seat string
		Path dbus.ObjectPath
	}
	const login1 = "org.freedesktop.login1"
	if err := conn.Object(login1, "/org/freedesktop/login1").CallWithContext(ctx, login1+".Manager.ListSessions", 0).Store(&sessions); err != nil {
		return false, err
	}
	for _, s := range sessions {
		var class string
		if int(s.UID) != uid || conn.Object(login1, s.Path).StoreProperty(login1+".Session.Class", &class) == nil && strings.HasPrefix(class, "manager") {
			continue
		}
		return true, nil
	}
	return false, nil
}
