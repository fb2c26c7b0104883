package conmonbridge

import "strings"

// Container is a container by the names that podman has for it.
type Container struct {
	ID   string // 64 hexadecimal digits, "" if unknown
	Name string // "" if unknown
}

// ContainerOf returns the container of a conmon, by what podman gave conmon(8) on
// its command line. It is for messages: its user can make it say anything that a
// container's ID and name may be.
func ContainerOf(conmon int) Container {
	var c Container
	if id, err := argumentAfter(conmon, "-c"); err == nil && isContainerID(id) {
		c.ID = id
	}
	if name, err := argumentAfter(conmon, "-n"); err == nil && isContainerName(name) {
		c.Name = name
	}
	return c
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

// isContainerName tells what podman accepts for a name, within a length that
// leaves room in a line.
func isContainerName(s string) bool {
	const characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	return s != "" && len(s) <= 200 && strings.Trim(s, characters) == ""
}
