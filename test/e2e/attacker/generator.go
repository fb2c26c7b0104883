package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const generatorProgram = "/usr/lib/systemd/system-generators/oci-mainpid-generator"

// generate runs the generator for systemd, systemd.generator(7), and kills it as
// it is about to change the file system for the time whose number is in
// generator.kill; if that is 0 it only counts. What happened is in attack.report
// in the directory for late units: systemd has the others read-only.
func generate(args []string) int {
	text, err := os.ReadFile(filepath.Join(reports, "generator.kill"))
	if err == nil && len(args) != 3 {
		err = errors.New("not three directories")
	}
	var at int
	if err == nil {
		at, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	cmd := exec.Command(generatorProgram, args...)
	cmd.Args[0] = generatorProgram
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	changes := 0
	var end ended
	if err == nil {
		end, err = trace(cmd, func(call systemCall) (bool, error) {
			if !changesFiles(call) {
				return false, nil
			}
			if changes++; changes != at {
				return false, nil
			}
			return true, cmd.Process.Kill()
		})
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(args[2], "attack.report"), fmt.Appendf(nil, "%d %d\n", changes, end.status), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacker:", err)
		return 1
	}
	return end.status
}

// changesFiles reports whether a system call makes, writes, renames or removes
// something. The Go runtime's own writes are as long as one number.
func changesFiles(call systemCall) bool {
	switch call.number {
	case unix.SYS_OPENAT:
		return call.args[2]&unix.O_CREAT != 0
	case unix.SYS_WRITE:
		return call.args[0] > 2 && call.args[2] > 8
	case unix.SYS_PWRITE64, renameat, unix.SYS_RENAMEAT2, unix.SYS_MKDIRAT, unix.SYS_SYMLINKAT,
		unix.SYS_LINKAT, unix.SYS_UNLINKAT, unix.SYS_FTRUNCATE, unix.SYS_FCHMOD:
		return true
	}
	return false
}
