// Package manager asks systemd, PID 1, about units that run their containers as a
// user. It does so over D-Bus, org.freedesktop.systemd1(5).
package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/unitfile"
	"oci-mainpid-hook/quadlet"
)

// callTimeout bounds one question. PID 1 answers within milliseconds, unless it is
// reloading.
const callTimeout = 25 * time.Second

// Manager is a connection to PID 1.
type Manager struct {
	conn     *systemd.Conn
	accounts account.Accounts
	// lost are closed when one of the connections in conn ends.
	lost []<-chan struct{}
}

// privateSocket is the socket on which PID 1 itself listens. Only root may use it.
const privateSocket = "unix:path=/run/systemd/private"

// Connect connects to PID 1 by the system bus, which outlives systemctl
// daemon-reexec. Without a bus, root connects by PID 1's own socket.
func Connect(ctx context.Context) (*Manager, error) {
	m := &Manager{}
	var err error
	m.conn, err = systemd.NewConnection(func() (*dbus.Conn, error) { return m.dial(ctx, true) })
	if err != nil && os.Geteuid() == 0 {
		m.lost = nil
		m.conn, err = systemd.NewConnection(func() (*dbus.Conn, error) { return m.dial(ctx, false) })
	}
	if err != nil {
		return nil, fmt.Errorf("connect to systemd over D-Bus: %w; is systemd PID 1 here?", err)
	}
	return m, nil
}

func (m *Manager) dial(ctx context.Context, bus bool) (*dbus.Conn, error) {
	var conn *dbus.Conn
	var err error
	if bus {
		conn, err = dbus.SystemBusPrivate(dbus.WithContext(ctx))
	} else {
		conn, err = dbus.Dial(privateSocket, dbus.WithContext(ctx))
	}
	if err != nil {
		return nil, err
	}
	err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))})
	if err == nil && bus {
		err = conn.Hello()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	m.lost = append(m.lost, conn.Context().Done())
	return conn, nil
}

// Close closes the connection.
func (m *Manager) Close() { m.conn.Close() }

// Version returns systemd's version in systemd's words, such as "257.13-1~deb13u1".
func (m *Manager) Version() (string, error) {
	text, err := m.conn.GetManagerProperty("Version")
	if err != nil {
		return "", fmt.Errorf("ask systemd for its version: %w", err)
	}
	return strings.Trim(text, `"`), nil
}

// DefaultTasksMax returns the TasksMax= of units that do not set it.
func (m *Manager) DefaultTasksMax() (uint64, error) {
	text, err := m.conn.GetManagerProperty("DefaultTasksMax")
	if err != nil {
		return 0, fmt.Errorf("ask systemd for DefaultTasksMax: %w", err)
	}
	return strconv.ParseUint(strings.TrimPrefix(text, "@t "), 0, 64) // GVariant text
}

// RemovesIPC reports whether systemd-logind removes the shared memory of a user who
// has logged out, RemoveIPC= in logind.conf(5). It is false without systemd-logind.
func RemovesIPC(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return false
	}
	defer conn.Close()
	var removes bool
	err = conn.Object("org.freedesktop.login1", "/org/freedesktop/login1").StoreProperty("org.freedesktop.login1.Manager.RemoveIPC", &removes)
	return err == nil && removes
}

// ErrNoUnit says that systemd knows no unit of that name.
var ErrNoUnit = errors.New("systemd knows no such unit; is the name right, or has it yet to read the file (systemctl daemon-reload)?")

// Unit returns what systemd knows of a service. systemd loads the service if it has
// not yet. The error is ErrNoUnit if there is no such service.
func (m *Manager) Unit(ctx context.Context, name string) (*Unit, error) {
	if err := unitfile.CheckServiceName(name); err != nil {
		return nil, err
	}
	if unitfile.IsTemplate(name) {
		return nil, fmt.Errorf("%s is a template, name one of its instances", name)
	}
	p, err := m.properties(ctx, name)
	if err != nil {
		return nil, err
	}
	u := newUnit(name, p, &m.accounts)
	if u.LoadState == "not-found" {
		return nil, fmt.Errorf("%s: %w", name, ErrNoUnit)
	}
	return u, nil
}

func (m *Manager) properties(ctx context.Context, name string) (Properties, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p, err := m.conn.GetAllPropertiesContext(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("ask systemd for %s: %w", name, err)
	}
	return p, nil
}

// Ours returns the names of our services, sorted. A service is ours if it has our
// drop-in, or runs notify-mainpid after its start. systemd need not have loaded the
// service if its drop-in is on the disk.
func (m *Manager) Ours(ctx context.Context) ([]string, error) {
	loaded, err := m.Loaded(ctx)
	if err != nil {
		return nil, err
	}
	names := onDisk(quadlet.AllUnitDirs)
	for _, name := range loaded {
		if slices.Contains(names, name) {
			continue
		}
		ours, err := m.IsOurs(ctx, name)
		if err != nil {
			return nil, err
		}
		if ours {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Loaded returns the names of all services that systemd has loaded.
func (m *Manager) Loaded(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	units, err := m.conn.ListUnitsByPatternsContext(ctx, nil, []string{"*.service"})
	if err != nil {
		return nil, fmt.Errorf("ask systemd for its units: %w", err)
	}
	var names []string
	for _, u := range units {
		if u.LoadState == "loaded" && u.Followed == "" {
			names = append(names, u.Name)
		}
	}
	return names, nil
}

// IsUserManager reports whether a service is user@UID.service or
// user-runtime-dir@UID.service. Such a service may have our drop-in, but it runs no
// container.
func IsUserManager(name string) bool {
	return strings.HasPrefix(name, "user@") || strings.HasPrefix(name, "user-runtime-dir@")
}

// IsOurs reports whether the service is ours, see Ours.
func (m *Manager) IsOurs(ctx context.Context, name string) (bool, error) {
	if IsUserManager(name) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// There may be many units, so only two of hundreds of properties are read.
	dropins, err := m.conn.GetUnitPropertyContext(ctx, name, "DropInPaths")
	if err != nil {
		return false, fmt.Errorf("ask systemd for the drop-ins of %s: %w", name, err)
	}
	post, err := m.conn.GetServicePropertyContext(ctx, name, "ExecStartPost")
	if err != nil {
		return false, fmt.Errorf("ask systemd for the commands of %s: %w", name, err)
	}
	p := Properties{"DropInPaths": dropins.Value.Value(), "ExecStartPost": post.Value.Value()}
	return ours(p.Strings("DropInPaths"), p.Commands("ExecStartPost")), nil
}

func ours(dropins []string, post []Command) bool {
	return ourDropin(dropins) != "" || slices.ContainsFunc(post, Command.IsNotifyMainPID)
}

// ourDropin returns the path of our drop-in among a unit's drop-ins, or "".
func ourDropin(paths []string) string {
	for _, path := range paths {
		if filepath.Base(path) == dropin.Name {
			return path
		}
	}
	return ""
}

// onDisk returns the services that have our drop-in in one of the directories.
// Templates are left out: their drop-ins serve instances, which cannot be listed.
func onDisk(dirs []string) []string {
	var names []string
	for _, dir := range dirs {
		paths, err := filepath.Glob(filepath.Join(dir, "*.service.d", dropin.Name))
		if err != nil {
			continue
		}
		for _, path := range paths {
			name := strings.TrimSuffix(filepath.Base(filepath.Dir(path)), ".d")
			if unitfile.CheckServiceName(name) == nil && !unitfile.IsTemplate(name) && !IsUserManager(name) && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// Watch sends the name of each service that changes. An empty name says that some
// changes were missed. Watch closes the channel when ctx ends or the connection is
// lost. It does not poll: systemd sends PropertiesChanged,
// org.freedesktop.systemd1(5).
func (m *Manager) Watch(ctx context.Context) (<-chan string, error) {
	updates := make(chan *systemd.PropertiesUpdate, 256)
	missed := make(chan error, 1)
	m.conn.SetPropertiesSubscriber(updates, missed)
	if err := m.conn.Subscribe(); err != nil {
		return nil, fmt.Errorf("subscribe to the changes of units: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	for _, lost := range m.lost {
		go func() {
			select {
			case <-lost:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	names := make(chan string)
	go func() {
		defer cancel()
		defer close(names)
		for {
			name := ""
			select {
			case <-ctx.Done():
				return
			case <-missed:
			case u := <-updates:
				if name = u.UnitName; !strings.HasSuffix(name, ".service") {
					continue
				}
			}
			select {
			case <-ctx.Done():
				return
			case names <- name:
			}
		}
	}()
	return names, nil
}
