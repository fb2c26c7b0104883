package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CacheVariable names the environment variable that says where root file
// systems and the disks of machines are kept.
const CacheVariable = "OCI_MAINPID_CACHE"

const defaultCache = "/var/cache/oci-mainpid-sandbox"

// cacheDir returns the cache directory, as an absolute path.
func cacheDir() (string, error) {
	dir := os.Getenv(CacheVariable)
	if dir == "" {
		return defaultCache, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("%s: %w", CacheVariable, err)
	}
	if strings.ContainsAny(abs, `:,\`) {
		return "", fmt.Errorf("%s: %s: overlayfs takes no path with a colon, a comma or a backslash", CacheVariable, abs)
	}
	return abs, nil
}

// lock makes the file at path and takes an exclusive lock on it. If another
// process holds the lock, lock calls waiting once and waits. unlock, or the end of
// this process, releases the lock.
func lock(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for first := true; ; first = false {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if first && waiting != nil {
			waiting()
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for the lock %s: %w", path, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
