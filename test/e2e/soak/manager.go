package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// manager is PID 1, asked without a bus between and without a new process, so
// that it answers whatever else goes wrong. daemon-reexec ends connections.
type manager struct{ conn *systemd.Conn }

// managerTimeout bounds one question: PID 1 may be executing itself, or
// running generators.
const managerTimeout = 30 * time.Second

// ask calls f until it succeeds.
func (m *manager) ask(f func(ctx context.Context, conn *systemd.Conn) error) error {
	deadline := time.Now().Add(managerTimeout)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := m.connect(ctx)
		if err == nil {
			err = f(ctx, m.conn)
		}
		cancel()
		if err == nil {
			return nil
		}
		if _, said := err.(dbus.Error); said {
			return err // systemd's own answer
		}
		if m.conn != nil {
			m.conn.Close()
			m.conn = nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("systemd does not answer: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (m *manager) connect(ctx context.Context) (err error) {
	if m.conn != nil && m.conn.Connected() {
		return nil
	}
	m.conn, err = systemd.NewConnection(func() (*dbus.Conn, error) {
		conn, err := dbus.Dial("unix:path=/run/systemd/private", dbus.WithContext(context.Background()))
		if err == nil {
			if err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(0))}); err != nil {
				conn.Close()
			}
		}
		return conn, err
	})
	return err
}

// state is what systemd says of a unit.
type state struct {
	active, sub, result, invocation string
	mainPID                         int
	job                             bool
}

// settled reports whether nothing is about to change.
func (s state) settled() bool {
	return !s.job && (s.active == "active" || s.active == "inactive" || s.active == "failed")
}

func (s state) String() string {
	return fmt.Sprintf("%s (%s, %s), main PID %d", s.active, s.sub, s.result, s.mainPID)
}

// states returns those of all units, by name, and whether all are settled.
func (m *manager) states(names []string) (map[string]state, bool, error) {
	all := map[string]state{}
	settled := true
	err := m.ask(func(ctx context.Context, conn *systemd.Conn) error {
		units, err := conn.ListUnitsByNamesContext(ctx, names)
		for _, u := range units {
			s := state{active: u.ActiveState, sub: u.SubState, job: u.JobId != 0}
			settled = settled && s.settled()
			all[u.Name] = s
		}
		return err
	})
	return all, settled, err
}

// details adds to the states what systemd says of services only.
func (m *manager) details(all map[string]state) error {
	for name, s := range all {
		err := m.ask(func(ctx context.Context, conn *systemd.Conn) error {
			p, err := conn.GetAllPropertiesContext(ctx, name)
			if err != nil {
				return err
			}
			pid, _ := p["MainPID"].(uint32)
			s.mainPID = int(pid)
			s.result, _ = p["Result"].(string)
			id, _ := p["InvocationID"].([]byte)
			s.invocation = fmt.Sprintf("%x", id)
			s.active, _ = p["ActiveState"].(string)
			s.sub, _ = p["SubState"].(string)
			return nil
		})
		if err != nil {
			return err
		}
		all[name] = s
	}
	return nil
}

// await waits until PID 1 answers.
func (m *manager) await() error {
	return m.ask(func(_ context.Context, conn *systemd.Conn) error {
		_, err := conn.GetManagerProperty("Version")
		return err
	})
}

func (m *manager) reload() error {
	return m.ask(func(ctx context.Context, conn *systemd.Conn) error { return conn.ReloadContext(ctx) })
}
