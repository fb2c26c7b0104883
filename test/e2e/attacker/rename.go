//go:build !riscv64

package main

import "golang.org/x/sys/unix"

const renameat = unix.SYS_RENAMEAT
