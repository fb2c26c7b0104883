package main

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// signals LOG is a victim: it writes each signal that it gets into a file, and
// ends with none but SIGKILL.
func signals(args []string) error {
	f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	c := make(chan os.Signal, 100)
	signal.Notify(c)
	for s := range c {
		if s == syscall.SIGURG {
			continue // the Go runtime's own
		}
		if _, err := fmt.Fprintln(f, s); err != nil {
			return err
		}
	}
	return nil
}

// thread prints the ID of a thread of its own that is not the first.
func thread([]string) error {
	runtime.LockOSThread() // so that what follows runs on another one
	id := make(chan int)
	go func() {
		runtime.LockOSThread()
		id <- unix.Gettid()
		idle()
	}()
	fmt.Println(<-id)
	os.Stdout.Close()
	idle()
	return nil
}

// seize PID traces a process and never lets it go: when it ends, its parent is
// not told.
func seize(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return fmt.Errorf("trace process %d: %w", pid, err)
	}
	fmt.Println("seized")
	idle()
	return nil
}

// blank environ|cmdline PID overwrites the environment or the arguments of a
// process with zeros: empty strings, as many as there were bytes.
func blank(args []string) error {
	return overwrite(args[0], args[1], func(text []byte) []byte { return make([]byte, len(text)) })
}

// replace environ|cmdline PID OLD NEW changes what is in them, to something as
// long.
func replace(args []string) error {
	if len(args[2]) != len(args[3]) {
		return fmt.Errorf("%q is not as long as %q", args[3], args[2])
	}
	return overwrite(args[0], args[1], func(text []byte) []byte {
		return bytes.ReplaceAll(text, []byte(args[2]), []byte(args[3]))
	})
}

// overwrite changes what others see as the environment or the arguments of a
// process: it is memory of the process.
func overwrite(what, pid string, change func([]byte) []byte) error {
	// The fields of proc_pid_stat(5): arg_start, arg_end, env_start, env_end.
	// The first field behind comm is number 3.
	first := map[string]int{"cmdline": 48, "environ": 50}[what] - 3
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if first < 0 || len(fields) < first+2 {
		return fmt.Errorf("no address of %s in %q", what, stat)
	}
	start, err := strconv.ParseInt(string(fields[first]), 10, 64)
	if err != nil {
		return err
	}
	end, err := strconv.ParseInt(string(fields[first+1]), 10, 64)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile("/proc/"+pid+"/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	text := make([]byte, end-start)
	if _, err := mem.ReadAt(text, start); err != nil {
		return err
	}
	_, err = mem.WriteAt(change(text), start)
	return err
}
