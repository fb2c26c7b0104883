package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openHandover(t *testing.T) (h *Handover, mainPID, result string) {
	t.Helper()
	mainPID, result = prepared(t)
	h, err := OpenHandover(mainPID, result)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h, mainPID, result
}

// written is what MainPID is told of writes by.
func written(t *testing.T) <-chan os.Signal {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGIO)
	t.Cleanup(func() { signal.Stop(signals) })
	return signals
}

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// appendTo adds to the file, in one write(2).
func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(text)
		f.Close()
	}
	if err != nil {
		t.Error(err)
	}
}

func TestHandoverMainPID(t *testing.T) {
	t.Run("there already", func(t *testing.T) {
		h, mainPID, _ := openHandover(t)
		appendTo(t, mainPID, "1234\n")
		if pid, err := h.MainPID(deadline(t, 10*time.Second), -1, written(t)); pid != 1234 || err != nil {
			t.Errorf("got %d, %v", pid, err)
		}
	})
	t.Run("comes in two parts", func(t *testing.T) {
		h, mainPID, _ := openHandover(t)
		go func() {
			for _, part := range []string{"12", "34\n"} {
				time.Sleep(20 * time.Millisecond)
				appendTo(t, mainPID, part)
			}
		}()
		if pid, err := h.MainPID(deadline(t, 10*time.Second), -1, written(t)); pid != 1234 || err != nil {
			t.Errorf("got %d, %v", pid, err)
		}
	})
	t.Run("nothing within the time", func(t *testing.T) {
		h, mainPID, _ := openHandover(t)
		start := time.Now()
		_, err := h.MainPID(deadline(t, 50*time.Millisecond), -1, written(t))
		if !errors.Is(err, ErrNoMainPID) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), mainPID) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
	t.Run("a writer that never stops and never ends a line", func(t *testing.T) {
		h, mainPID, _ := openHandover(t)
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
					f, err := os.OpenFile(mainPID, os.O_WRONLY, 0)
					if err != nil {
						return
					}
					f.WriteString("1")
					f.Close()
				}
			}
		}()
		if _, err := h.MainPID(deadline(t, 100*time.Millisecond), -1, written(t)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	for name, contents := range map[string]string{
		"negative": "-5\n", "binary": "\xff\xfe\xfd", "a megabyte": strings.Repeat("1", 1<<20), "larger than any PID": "99999999\n",
	} {
		t.Run(name, func(t *testing.T) {
			h, mainPID, _ := openHandover(t)
			appendTo(t, mainPID, contents)
			pid, err := h.MainPID(deadline(t, 10*time.Second), -1, written(t))
			if err == nil || errors.Is(err, ErrNoMainPID) || !strings.Contains(err.Error(), mainPID) || len(err.Error()) > 300 {
				t.Errorf("got %d, %v", pid, err)
			}
		})
	}
}

// TestHandoverPodmanEnds has podman, a process that is real, end with and
// without having written.
func TestHandoverPodmanEnds(t *testing.T) {
	for _, c := range []struct {
		name, script string
		want         int
	}{
		{"having written", `sleep 0.1; printf '77\n' > "$1"`, 77},
		{"without a word", `sleep 0.1`, 0},
		{"in the middle of the word", `sleep 0.1; printf 77 > "$1"`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, mainPID, _ := openHandover(t)
			podman := exec.Command("sh", "-c", c.script, "podman", mainPID)
			if err := podman.Start(); err != nil {
				t.Fatal(err)
			}
			defer podman.Wait()
			pidfd, err := unix.PidfdOpen(podman.Process.Pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pidfd)
			pid, err := h.MainPID(deadline(t, 20*time.Second), pidfd, written(t))
			if pid != c.want || (c.want == 0) != errors.Is(err, ErrPodmanEnded) {
				t.Errorf("got %d, %v", pid, err)
			}
		})
	}
}

func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		name         string
		answer       error
		want, waiter string
	}{
		{"ok", nil, "ok\n", ""},
		{"error", errors.New("process 5: is a thread"), "error: process 5: is a thread\n", "notify-mainpid: process 5: is a thread"},
		{"error of two lines", errors.New("a\nb"), "error: a; b\n", "notify-mainpid: a; b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, _, result := openHandover(t)
			waiter := make(chan error)
			go func() { waiter <- WaitResult(result, 10*time.Second) }()
			time.Sleep(20 * time.Millisecond)

			inotify, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(inotify)
			if _, err := unix.InotifyAddWatch(inotify, result, unix.IN_CLOSE_WRITE); err != nil {
				t.Fatal(err)
			}
			if err := h.Answer(c.answer); err != nil {
				t.Fatal(err)
			}
			events := make([]byte, 4096)
			if n, err := unix.Read(inotify, events); n != unix.SizeofInotifyEvent || err != nil {
				t.Errorf("a watcher sees %d bytes of events, %v; want one event of %d", n, err, unix.SizeofInotifyEvent)
			}
			if b, err := os.ReadFile(result); string(b) != c.want {
				t.Errorf("the file holds %q, %v", b, err)
			}
			for who, got := range map[string]error{"who waited": <-waiter, "who comes later": WaitResult(result, time.Second)} {
				if (got == nil) != (c.waiter == "") || got != nil && got.Error() != c.waiter {
					t.Errorf("%s got %v, want %q", who, got, c.waiter)
				}
			}
		})
	}
}

func TestWaitResultWithoutAnswer(t *testing.T) {
	t.Run("notify-mainpid is killed", func(t *testing.T) {
		h, _, result := openHandover(t)
		go func() {
			time.Sleep(50 * time.Millisecond)
			h.Close() // what the kernel does for it
		}()
		if err := WaitResult(result, 10*time.Second); err == nil || !strings.Contains(err.Error(), "without an answer") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("notify-mainpid was killed before", func(t *testing.T) {
		h, _, result := openHandover(t)
		h.Close()
		start := time.Now()
		if err := WaitResult(result, 10*time.Second); err == nil || !strings.Contains(err.Error(), "without an answer") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
	t.Run("a lock of somebody else's", func(t *testing.T) {
		mainPID, result := prepared(t)
		other, err := os.Open(result)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := unix.Flock(int(other.Fd()), unix.LOCK_SH); err != nil {
			t.Fatal(err)
		}
		h, err := OpenHandover(mainPID, result)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		go func() {
			time.Sleep(50 * time.Millisecond)
			other.Close() // notify-mainpid has no lock, and is alive
			time.Sleep(50 * time.Millisecond)
			h.Answer(nil)
		}()
		if err := WaitResult(result, 10*time.Second); err != nil {
			t.Error(err)
		}
	})
	t.Run("the unit gives up", func(t *testing.T) {
		mainPID, result := prepared(t)
		forgotten := make(chan error)
		go func() {
			time.Sleep(50 * time.Millisecond)
			forgotten <- Forget(mainPID, result)
		}()
		if err := WaitResult(result, 10*time.Second); err == nil || !strings.Contains(err.Error(), result) {
			t.Errorf("got %v", err)
		}
		if err := <-forgotten; err != nil {
			t.Error(err)
		}
	})
	t.Run("nothing within the time", func(t *testing.T) {
		_, result := prepared(t)
		if err := WaitResult(result, 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "within 50ms") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no result file", func(t *testing.T) {
		_, result := unitFiles(t)
		if err := WaitResult(result, time.Second); err == nil || !strings.Contains(err.Error(), result) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("something else in it", func(t *testing.T) {
		h, _, result := openHandover(t)
		go func() {
			time.Sleep(50 * time.Millisecond)
			h.result.WriteString("okay\n")
			h.Close()
		}()
		if err := WaitResult(result, 10*time.Second); err == nil || !strings.Contains(err.Error(), "without an answer") {
			t.Errorf("got %v", err)
		}
	})
}

// TestManyWait: any number of units may wait for a PID at once. All of root's
// processes have 128 instances of inotify by default.
func TestManyWait(t *testing.T) {
	const units = 300
	var waiting sync.WaitGroup
	for i := range units {
		h, mainPID, _ := openHandover(t)
		ctx := deadline(t, time.Minute)
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			if pid, err := h.MainPID(ctx, -1, written(t)); pid != 1000+i || err != nil {
				t.Errorf("unit %d: got %d, %v", i, pid, err)
			}
		}()
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			time.Sleep(500 * time.Millisecond)
			appendTo(t, mainPID, fmt.Sprintf("%d\n", 1000+i))
		}()
	}
	time.Sleep(300 * time.Millisecond)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, _ := os.Readlink("/proc/self/fd/" + fd.Name()); link == "anon_inode:inotify" {
			t.Error("the wait takes an instance of inotify")
		}
	}
	waiting.Wait()
}
