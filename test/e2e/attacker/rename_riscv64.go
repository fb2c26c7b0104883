package main

// renameat is no system call of RISC-V, which has renameat2(2) only.
const renameat = 1<<64 - 1
