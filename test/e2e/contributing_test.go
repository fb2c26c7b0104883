//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// typeOnHost types the commands of blocks in the checkout, in a shell that ends
// with the first that fails.
func typeOnHost(t *testing.T, blocks []block) {
	var script strings.Builder
	for _, b := range blocks {
		if b.language != "sh" {
			continue
		}
		for line := range strings.Lines(b.text) {
			if notRun[b.page][strings.TrimSuffix(line, "\n")] == "" {
				script.WriteString(line)
			}
		}
	}
	makeMutex.Lock()
	defer makeMutex.Unlock()
	ctx, cancel := context.WithTimeout(interrupted, onlineTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euvx", "-o", "pipefail", "-c", script.String())
	cmd.Dir = checkout
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
		// The machine of that page, which is this test's own.
		exec.Command(checkout+"/bin/sandbox", "poweroff", "m1").Run()
	}
}
