// Command bench measures what the project costs: the wall time of its two small
// programs, from start to exit, against programs that do nothing, and that of
// "podman run -d" with and without the hook. It judges nothing: it prints the
// project's aims beside the figures, and exits 0 unless something failed to run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"oci-mainpid-hook/test/sandbox"
)

func main() {
	rounds := flag.Int("rounds", 1000, "how often each program runs")
	podmanRounds := flag.Int("podman-rounds", 150, "how often podman run -d runs with and without the hook, on each machine")
	suites := flag.String("suites", "trixie", "suites of the throw-away machines for that, separated by commas")
	noSandbox := flag.Bool("no-sandbox", false, "boot no machine: leave podman run -d out")
	bin := flag.String("bin", "bin", "directory of the programs")
	flag.Parse()
	if flag.NArg() > 0 || *rounds < 1 || *podmanRounds < 1 {
		flag.Usage()
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := benchPrograms(ctx, *bin, *rounds)
	if !*noSandbox {
		for suite := range strings.SplitSeq(*suites, ",") {
			if ctx.Err() == nil {
				err = errors.Join(err, benchPodman(ctx, sandbox.Suite(suite), *podmanRounds))
			}
		}
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
