package conmonbridge

import (
	"errors"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/conmontest"
	"oci-mainpid-hook/internal/proc"
)

func TestHold(t *testing.T) {
	// start returns the child of a shell that reaps it, and frees its PID, as soon
	// as the kernel lets it.
	start := func(t *testing.T) (pid int, claim *Claim) {
		conmontest.NotEmulated(t, "PTRACE_SEIZE")
		cmd := exec.Command("sh", "-c", "sleep 1000 & echo $!; wait")
		stdout, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscan(stdout, &pid); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Kill(pid, unix.SIGKILL); cmd.Process.Kill(); cmd.Wait() })
		if claim, err = NewClaim(pid); err != nil {
			t.Fatal(err)
		}
		return pid, claim
	}
	state := func(pid int) byte {
		p, err := proc.Read(pid)
		if err != nil {
			return 0
		}
		return p.State
	}
	await := func(t *testing.T, what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within 10 s: %s", what)
			}
		}
	}

	t.Run("the PID of a process that ends is kept until the claim is closed", func(t *testing.T) {
		pid, claim := start(t)
		if err := claim.Hold(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "it has ended", func() bool { return claim.Alive() != nil })
		time.Sleep(50 * time.Millisecond)
		if got := state(pid); got != 'Z' {
			t.Errorf("its state is %q, so its parent could reap it", got)
		}
		claim.Close()
		await(t, "its parent reaps it after Close", func() bool { return state(pid) == 0 })
	})
	t.Run("the process runs on, and takes signals when the claim is closed", func(t *testing.T) {
		pid, claim := start(t)
		if err := claim.Hold(); err != nil {
			t.Fatal(err)
		}
		await(t, "it sleeps", func() bool { return state(pid) == 'S' })
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := claim.Alive(); err != nil {
			t.Errorf("the signal has arrived: %v", err)
		}
		claim.Close()
		await(t, "the signal has arrived after Close", func() bool { return state(pid) == 0 })
	})
	t.Run("on the first thread, which never ends", func(t *testing.T) {
		tids := make(chan int)
		for range 100 {
			go onThread(func() { tids <- unix.Gettid() })
			if <-tids == unix.Getpid() {
				t.Fatal("f ran on it")
			}
		}
	})
	t.Run("a process that somebody traces", func(t *testing.T) {
		_, claim := start(t)
		defer claim.Close()
		if err := claim.Hold(); err != nil {
			t.Fatal(err)
		}
		other, err := NewClaim(claim.PID)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := other.Hold(); err == nil {
			t.Error("no error")
		}
	})
	t.Run("a process that has gone", func(t *testing.T) {
		pid, claim := start(t)
		defer claim.Close()
		unix.Kill(pid, unix.SIGKILL)
		await(t, "it has gone", func() bool { return state(pid) == 0 })
		if err := claim.Hold(); !errors.Is(err, proc.ErrNoProcess) {
			t.Errorf("%v", err)
		}
	})
}
