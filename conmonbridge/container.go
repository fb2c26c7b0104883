package conmonbridge

import (
	"strings"

	"oci-mainpid-hook/internal/proc"
)

// Container is a container by the names that podman has for it.
type Container struct {
	ID   string // 64 hexadecimal digits, "" if unknown
	Name string // "" if unknown
}

// ContainerOf returns the container of a conmon, by its command line. It is for
// messages: see CommandLine.
func ContainerOf(conmon int) Container {
	c, _, err := ReadCommandLine(conmon, proc.MaxStrings)
	if err != nil {
		return Container{}
	}
	return c.Container
}

// ShortID is the ID as podman prints it, "" if unknown.
func (c Container) ShortID() string { return c.ID[:min(len(c.ID), 12)] }

// String names the container as far as it is known.
func (c Container) String() string {
	switch {
	case c.ID == "" && c.Name == "":
		return "unknown container"
	case c.Name == "":
		return "container " + c.ShortID()
	case c.ID == "":
		return "container " + c.Name
	}
	return "container " + c.ShortID() + " (" + c.Name + ")"
}

func isContainerID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// isContainerName reports whether podman accepts s as a name, and s is short enough
// for a line.
func isContainerName(s string) bool {
	const characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	return s != "" && len(s) <= 200 && strings.Trim(s, characters) == ""
}

// FirstProcess takes hold of the first process of a conmon's container: the child of
// conmon that lives. The error is ErrNoContainer if there is none any more.
func FirstProcess(conmon *Claim) (*Claim, error) {
	pids, err := proc.Children(conmon.PID)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		claim, err := NewClaim(pid)
		if err != nil {
			continue
		}
		// The pidfd shows that it was one process all the time.
		p, err := proc.Read(pid)
		if err == nil && !p.Ended() && p.PPID == conmon.PID && claim.Alive() == nil {
			return claim, nil
		}
		claim.Close()
	}
	return nil, ErrNoContainer
}
