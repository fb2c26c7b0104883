package main

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// rewrite PID HOOK runs the hook under ptrace(2), and has it write another PID
// than it means to.
func rewrite(args []string) error {
	cmd := exec.Command(args[1])
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	end, err := trace(cmd, func(call systemCall) (bool, error) {
		if call.number != unix.SYS_PWRITE64 {
			return false, nil
		}
		// As long as the text that is there: what the call returns must be right.
		text := fmt.Sprintf("%0*s\n", call.args[2]-1, args[0])
		_, err := unix.PtracePokeData(call.thread, uintptr(call.args[1]), []byte(text))
		return true, err
	})
	if err == nil && end.status != 0 {
		err = fmt.Errorf("%s: exit status %d", args[1], end.status)
	}
	return err
}
