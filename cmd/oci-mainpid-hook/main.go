// Command oci-mainpid-hook is the OCI poststart hook of oci-mainpid-hook(8):
// it takes no arguments and reads the container's state from standard input.
package main

import (
	"fmt"
	"os"

	"oci-mainpid-hook/hook"
)

// Exit statuses, as in oci-mainpid-hook(8).
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "oci-mainpid-hook: takes no arguments: an OCI runtime runs it as a poststart hook, with the container's state on standard input (see oci-mainpid-hook(8))")
		os.Exit(exitUsage)
	}
	if err := hook.Run(os.Stdin); err != nil {
		fmt.Fprintf(os.Stderr, "oci-mainpid-hook: %v\n", err)
		os.Exit(exitFailure)
	}
}
