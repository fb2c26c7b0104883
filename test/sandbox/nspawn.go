package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// nspawnName is what systemd-nspawn calls the machine: on a host with systemd,
// there is a scope of this name among the host's own.
func nspawnName(name string) string { return "sandbox-" + name }

// nspawnArgs returns the command line of systemd-nspawn(1) for a machine.
// keepUnit is for hosts without systemd, where nobody else makes a cgroup.
func nspawnArgs(name, root string, keepUnit bool) []string {
	args := []string{
		"systemd-nspawn", "--quiet", "--boot",
		"--directory=" + root, "--machine=" + nspawnName(name), "--hostname=" + name,
		"--register=no",
		"--console=read-only",
		"--private-network", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
		"--capability=all",
		// crun makes keyrings, pidfd_getfd(2) is among @debug, containers mount.
		"--system-call-filter=@keyring @debug bpf @mount",
	}
	if keepUnit {
		return append(args, "--keep-unit")
	}
	return append(args, "--property=DeviceAllow=/dev/fuse rwm", "--property=DeviceAllow=/dev/net/tun rwm")
}

// searchPath is the PATH of Debian's root.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// supervise is a shell script. Its first argument is a cgroup, or empty; the rest
// is the command that it runs. It runs the command again as long as the command
// exits with 133: with --keep-unit, systemd-nspawn does so when the machine
// reboots, see RestartForceExitStatus= in systemd.service(5). Each boot gets a new
// cgroup below the first argument, because the kernel lets no process into a
// cgroup whose controllers were delegated to the boot before.
const supervise = `
cgroup=$1; shift
boot=0
while
	boot=$((boot + 1))
	(
		if [ -n "$cgroup" ]; then
			mkdir "$cgroup/boot$boot" && echo 0 >"$cgroup/boot$boot/cgroup.procs" || exit 1
		fi
		exec "$@"
	)
	[ $? -eq 133 ]
do :; done
`

// start mounts the machine's root file system and starts systemd-nspawn on it.
func (m *Machine) start(lower string) error {
	var parent string
	if !bootedWithSystemd() {
		var err error
		if parent, err = cgroup2Mount(); err != nil {
			return err
		}
		m.Cgroup = filepath.Join(parent, "oci-mainpid-sandbox-"+m.Name)
	}
	if err := m.save(); err != nil {
		return err
	}
	// Left by a machine whose state was lost, as after a crash of the host.
	if err := removeTree(m.Disk); err != nil {
		return fmt.Errorf("remove an old disk: %w", err)
	}
	if err := mountRoot(lower, m.Disk, m.root()); err != nil {
		return err
	}
	if err := personalise(m.root(), m.Name); err != nil {
		return err
	}
	if m.Cgroup != "" {
		if err := makeCgroup(parent, m.Cgroup); err != nil {
			return err
		}
	}
	console, err := os.Create(m.Console())
	if err != nil {
		return err
	}
	defer console.Close()
	nspawn := nspawnArgs(m.Name, m.root(), m.Cgroup != "")
	cmd := exec.Command("/bin/sh", append([]string{"-c", supervise, "sandbox-" + m.Name, m.Cgroup}, nspawn...)...)
	cmd.Env = []string{
		searchPath,
		// The host may have cgroup version 1 beside 2.
		"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
		// Else /proc is covered in part, and no container in the machine may
		// mount one of its own.
		"SYSTEMD_NSPAWN_API_VFS_WRITABLE=1",
	}
	return m.supervise(cmd, console)
}

// supervise starts the program that runs the machine, in a session of its own.
func (m *Machine) supervise(cmd *exec.Cmd, console *os.File) error {
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err := cmd.Start()
	if err != nil {
		return err
	}
	m.Supervisor, err = identify(cmd.Process.Pid)
	go cmd.Wait() // leave no zombie
	if err != nil {
		return err
	}
	return m.save()
}

// personalise writes the machine's ID, host name and name resolution into its
// root file system.
func personalise(root, name string) error {
	var id [16]byte
	rand.Read(id[:])
	files := map[string]string{
		"etc/machine-id": hex.EncodeToString(id[:]) + "\n",
		"etc/hostname":   name + "\n",
		"etc/hosts":      "127.0.0.1 localhost\n127.0.1.1 " + name + "\n::1 localhost ip6-localhost ip6-loopback\n",
		// sandbox-network.service has this address; nobody listens there.
		"etc/resolv.conf": "nameserver 192.0.2.1\n",
	}
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
