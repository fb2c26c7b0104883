// Command oci-mainpid-hook is the OCI poststart hook of oci-mainpid-hook(8):
// it takes no arguments and reads the container's state from standard input.
package main

import (
	"fmt"
	"os"

	"oci-mainpid-hook/hook"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "oci-mainpid-hook: takes no arguments: an OCI runtime runs it as a poststart hook, with the container's state on standard input (see oci-mainpid-hook(8))")
		os.Exit(2)
	}
	os.Exit(hook.Main())
}
