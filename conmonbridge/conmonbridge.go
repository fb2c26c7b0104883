// Package conmonbridge is everything that is known here about conmon(8), the
// monitor that podman starts for each container: how to get from a container
// to its conmon and from conmon to its systemd unit, and how a PID that somebody
// claims to be that of a unit's conmon is verified, and kept from being reused.
//
// It has two users. The OCI hook runs as the unit's user and trusts what it reads.
// notify-mainpid runs as root and trusts nothing.
package conmonbridge
