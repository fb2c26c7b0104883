//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"oci-mainpid-hook/sdnotify"
)

// notifySocket is where the server of TestNotifiers listens, for the machine.
const notifySocket = "/var/tmp/notify"

// TestNotifiers: sdnotify.Server hears the senders that people use, and its client is
// heard by systemd-notify. What a sender that has ended leaves behind is its message, and
// not where it came from; with the barrier it is still there.
func TestNotifiers(t *testing.T) {
	onStacks(t, func(m machine) {
		u := m.userWithoutImage()
		server, err := sdnotify.Listen(filepath.Join(m.box.Root(), notifySocket))
		if err != nil {
			m.t.Fatal(err)
		}
		defer server.Close()
		m.run("chmod", "666", notifySocket)
		receive := func(m machine) *sdnotify.Notification {
			m.t.Helper()
			ctx, cancel := context.WithTimeout(interrupted, soon)
			defer cancel()
			n, err := server.Receive(ctx)
			if err != nil {
				m.t.Fatal(err)
			}
			m.t.Cleanup(n.Close)
			return n
		}
		// idle lets a sender at a barrier go: Receive answers it.
		idle := func(m machine) {
			m.t.Helper()
			ctx, cancel := context.WithTimeout(interrupted, 500*time.Millisecond)
			defer cancel()
			if n, err := server.Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
				m.t.Errorf("one more message: %v, %v", n, err)
			}
		}
		// notify runs systemd-notify as the user, and tells when it has ended.
		notify := func(m machine, args ...string) (ended chan error) {
			m.t.Helper()
			args = append([]string{"env", "NOTIFY_SOCKET=" + notifySocket}, args...)
			args = u.as(args...)
			cmd := m.box.Command(interrupted, args[0], args[1:]...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				m.t.Fatal(err)
			}
			ended = make(chan error, 1)
			go func() {
				if err := cmd.Wait(); err != nil {
					ended <- fmt.Errorf("%q: %w\n%s", args, err, &out)
				}
				close(ended)
			}()
			return ended
		}
		assert := func(m machine, n *sdnotify.Notification, want ...sdnotify.Assignment) {
			m.t.Helper()
			if !slices.Equal(n.Message, sdnotify.Message(want)) {
				m.t.Errorf("got %q, want %q", n.Message, want)
			}
			if uid := fmt.Sprint(n.Sender.UID); uid != u.uid {
				m.t.Errorf("from UID %s, want %s", uid, u.uid)
			}
		}
		// whence returns the control group of a sender, as a manager looks for the unit.
		whence := func(n *sdnotify.Notification) (string, error) {
			group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", n.Sender.PID))
			return string(group), err
		}

		m.share("a short-lived notifier without the barrier is gone", func(m machine) {
			ended := notify(m, "systemd-notify", "--no-block", "--ready", "--status=brief")
			if err := <-ended; err != nil {
				m.t.Fatal(err)
			}
			n := receive(m)
			assert(m, n, sdnotify.Ready(), sdnotify.Status("brief"))
			if group, err := whence(n); !errors.Is(err, os.ErrNotExist) {
				m.t.Errorf("the sender is still there, in %q, %v", group, err)
			}
		})
		m.share("a short-lived notifier with the barrier is there", func(m machine) {
			ended := notify(m, "systemd-notify", "--ready", "--status=brief")
			n := receive(m)
			time.Sleep(300 * time.Millisecond) // a manager that has much to do
			select {
			case err := <-ended:
				m.t.Errorf("has ended before the manager was done: %v", err)
			default:
			}
			if group, err := whence(n); err != nil {
				m.t.Errorf("control group %q, %v", group, err)
			}
			assert(m, n, sdnotify.Ready(), sdnotify.Status("brief"))
			idle(m)
			if err := <-ended; err != nil {
				m.t.Error(err)
			}
		})
		m.share("what systemd-notify can say", func(m machine) {
			for _, c := range []struct {
				args []string
				want sdnotify.Message
			}{
				{[]string{"--stopping"}, sdnotify.Message{sdnotify.Stopping()}},
				{[]string{"WATCHDOG=1", `STATUS=back\\slash`, "EXTEND_TIMEOUT_USEC=1000000", "ERRNO=2"}, sdnotify.Message{
					sdnotify.Watchdog(), sdnotify.Status(`back\slash`), sdnotify.ExtendTimeout(time.Second), {Name: "ERRNO", Value: "2"},
				}},
			} {
				ended := notify(m, append([]string{"systemd-notify"}, c.args...)...)
				assert(m, receive(m), c.want...)
				idle(m)
				if err := <-ended; err != nil {
					m.t.Error(err)
				}
			}
			ended := notify(m, "systemd-notify", "--reloading")
			n := receive(m)
			if reloading, _ := n.Message.Get("RELOADING"); reloading != "1" {
				m.t.Errorf("got %q", n.Message)
			}
			if _, ok := n.Message.Get("MONOTONIC_USEC"); !ok {
				m.t.Errorf("no time in %q", n.Message)
			}
			idle(m)
			if err := <-ended; err != nil {
				m.t.Error(err)
			}
		})
		m.share("descriptors of systemd-notify", func(m machine) {
			const script = `echo kept >/tmp/$$; exec 3</tmp/$$; rm /tmp/$$; exec systemd-notify --fd=3 --fdname=file FDSTORE=1`
			for files, want := range map[int]string{0: "", 1: "kept\n"} {
				server.Files = files
				ended := notify(m, "sh", "-ec", script)
				n := receive(m)
				assert(m, n, sdnotify.FDStore("file")...)
				var got string
				for _, f := range n.Files {
					text, err := io.ReadAll(f)
					if err != nil {
						m.t.Error(err)
					}
					got += string(text)
				}
				if len(n.Files) != files || got != want {
					m.t.Errorf("%d descriptors, with %q, want %d with %q", len(n.Files), got, files, want)
				}
				idle(m)
				if err := <-ended; err != nil {
					m.t.Error(err)
				}
			}
			server.Files = 0
		})
		m.share("systemd-notify --fork hears the client", func(m machine) {
			if help := m.run("systemd-notify", "--help"); !strings.Contains(help, "--fork") {
				// systemd 257 has none.
				if r := m.try("systemd-notify", "--fork", "--", "true"); r.status == 0 {
					m.t.Errorf("--fork is not in the help, and is taken: %v", r)
				}
				return
			}
			// It prints the PID of what it leaves running, which must not keep the pipe open.
			pid := m.run("systemd-notify", "--fork", "--", "sh", "-c", "exec "+guestPath+" >/dev/null 2>&1")
			m.t.Cleanup(func() { m.try("kill", pid) })
			if exe := m.run("readlink", "/proc/"+pid+"/exe"); path.Base(exe) != path.Base(guestPath) {
				m.t.Errorf("PID %s executes %s", pid, exe)
			}
		})
	})
}
