package sdnotify

import (
	"fmt"
	"strconv"
	"strings"
)

// An Address is where a manager listens: a value of NOTIFY_SOCKET.
type Address struct {
	// Network is "unix", or one of systemd's four names for AF_VSOCK: "vsock",
	// "vsock-dgram", "vsock-stream" and "vsock-seqpacket". "vsock" means datagrams, and
	// sequenced packets where the kernel has no datagrams.
	Network string

	// Name is the absolute path of a Unix socket, or "@" and an abstract name.
	Name string

	// CID and Port are those of vsock(7). AnyCID is for listening only.
	CID, Port uint32
}

// AnyCID stands for each of a machine's own CIDs, VMADDR_CID_ANY in vsock(7).
const AnyCID = 1<<32 - 1

// maxName is how many bytes sockaddr_un has room for, unix(7), less its last NUL.
const maxName = 107

// ParseAddress parses a value of NOTIFY_SOCKET, or systemd's vmm.notify_socket: an
// absolute path, "@" and an abstract name, or vsock:CID:PORT and its kin. Without a CID,
// as in vsock::PORT, it is AnyCID. An empty text is ErrNoSocket, any other that is no
// address ErrAddress.
func ParseAddress(text string) (Address, error) {
	fail := func(why string) (Address, error) {
		return Address{}, fmt.Errorf("NOTIFY_SOCKET=%s: %w%s", text, ErrAddress, why)
	}
	switch network, rest, _ := strings.Cut(text, ":"); network {
	case "vsock", "vsock-dgram", "vsock-stream", "vsock-seqpacket":
		cid, port, found := strings.Cut(rest, ":")
		if !found {
			return fail(": no CID and port, as in " + network + ":2:1234")
		}
		a := Address{Network: network, CID: AnyCID}
		n, err := strconv.ParseUint(port, 10, 32)
		if err != nil || n == AnyCID {
			return fail(": the port is no number below 4294967295")
		}
		a.Port = uint32(n)
		if cid != "" {
			if n, err = strconv.ParseUint(cid, 10, 32); err != nil {
				return fail(": the CID is no number of 32 bits")
			}
			a.CID = uint32(n)
		}
		return a, nil
	}
	switch {
	case text == "":
		return Address{}, ErrNoSocket
	case text[0] != '/' && text[0] != '@', text == "@", strings.IndexByte(text, 0) >= 0:
		return fail("")
	case len(text) > maxName:
		return fail(fmt.Sprintf(": %d bytes, sockaddr_un has room for %d", len(text), maxName))
	}
	return Address{Network: "unix", Name: text}, nil
}

// IsVsock reports whether the address is one of AF_VSOCK.
func (a Address) IsVsock() bool { return a.Network != "unix" }

// String returns the address as a value of NOTIFY_SOCKET.
func (a Address) String() string {
	switch {
	case !a.IsVsock():
		return a.Name
	case a.CID == AnyCID:
		return fmt.Sprintf("%s::%d", a.Network, a.Port)
	}
	return fmt.Sprintf("%s:%d:%d", a.Network, a.CID, a.Port)
}
