// Package conmonbridge is everything that is known here about conmon(8), the
// monitor that podman starts for each container: how to get from a container
// to its conmon and from conmon to its systemd unit, how the PID travels from
// one to the other (the mainpid and result files), and how a PID that somebody
// claims to be a unit's conmon is verified.
//
// Its two users are the OCI hook, which runs as the unit's user and trusts
// what it sees, and notify-mainpid, which runs as root and trusts nothing.
package conmonbridge

const (
	// EnvMainPIDFile names the mainpid file in conmon's environment. A unit
	// sets it (Environment=, systemd.exec(5)) for its containers to be ours.
	EnvMainPIDFile = "OCI_MAINPID_FILE"

	// EnvResultFile names the result file in conmon's environment. A unit sets
	// it where podman has to be held until systemd has taken the main PID.
	EnvResultFile = "OCI_MAINPID_RESULT"

	// EnvVerbose has the hook and notify-mainpid log each of their steps. A unit
	// sets it to 1.
	EnvVerbose = "OCI_MAINPID_VERBOSE"

	// DescriptorName is the name under which a unit's OpenFile= passes the
	// mainpid file (systemd.service(5), LISTEN_FDNAMES in sd_listen_fds(3)).
	DescriptorName = "mainpidfile"

	// maxPID is the kernel's PID_MAX_LIMIT on 64-bit machines: PIDs are below
	// it, whatever /proc/sys/kernel/pid_max says (proc_sys_kernel(5)).
	maxPID = 4 * 1024 * 1024
)

// IsVerbose says what the value of EnvVerbose means.
func IsVerbose(value string) bool { return value != "" && value != "0" }
