package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
)

// A requirement is a program or another file that the host must have, and the
// Debian package that contains it.
type requirement struct{ file, pkg string }

var (
	toBoot  = []requirement{{"systemd-nspawn", "systemd-container"}, {"nsenter", "util-linux"}}
	toBuild = []requirement{{"mmdebstrap", "mmdebstrap"}, {"/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"}}
)

// ErrNotRoot says that the caller lacks the rights to build and boot.
var ErrNotRoot = errors.New("sandbox: must be run as root")

// hostMutex keeps two goroutines from calling apt-get at once.
var hostMutex sync.Mutex

// prepareHost installs the needed packages that the host lacks. Where it cannot,
// its error names them.
func prepareHost(ctx context.Context, needed []requirement, log *logrus.Entry) error {
	hostMutex.Lock()
	defer hostMutex.Unlock()
	missing := missingPackages(needed)
	if len(missing) == 0 {
		return nil
	}
	list := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("missing packages: %s (there is no apt-get to install them with)", list)
	}
	log.Infof("installing on this host: %s", list)
	for _, args := range [][]string{
		{"update"},
		append([]string{"-o", "DPkg::Lock::Timeout=120", "install", "--yes", "--no-install-recommends"}, missing...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("missing packages: %s: apt-get %s: %w\n%s", list, strings.Join(args, " "), err, out)
		}
	}
	if missing := missingPackages(needed); len(missing) > 0 {
		return fmt.Errorf("missing packages even though apt-get installed them: %s", strings.Join(missing, " "))
	}
	return nil
}

// missingPackages returns the packages of the requirements that the host lacks.
func missingPackages(needed []requirement) []string {
	var missing []string
	for _, r := range needed {
		// Searched for in PATH only if it has no slash.
		if _, err := exec.LookPath(r.file); errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, r.pkg)
		}
	}
	return missing
}

// bootedWithSystemd is sd_booted(3).
func bootedWithSystemd() bool {
	fi, err := os.Lstat("/run/systemd/system")
	return err == nil && fi.IsDir()
}
