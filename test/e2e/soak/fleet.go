package main

import (
	"encoding/json"
	"os"
	"slices"
)

// fleet is what the driver works on, as the test has set it up.
type fleet struct {
	Units []*unit
	Users []*account
}

// account is a user with units.
type account struct {
	Name string
	UID  int
	Home string
}

// unit is a service that runs a container as a user.
type unit struct {
	Name string
	User string
	// Container is how conmon's name for the main container ends.
	Container string
	// Restart is Restart= of the unit.
	Restart string
	// Reload says that a reload replaces the container.
	Reload bool
	// Family is what starts, stops and fails together: a pod and its containers.
	Family string

	user *account
}

func readFleet(path string) (*fleet, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &fleet{}
	if err := json.Unmarshal(data, f); err != nil {
		return nil, err
	}
	for _, u := range f.Units {
		u.user = f.Users[slices.IndexFunc(f.Users, func(a *account) bool { return a.Name == u.User })]
	}
	return f, nil
}

// names returns the names of all units.
func (f *fleet) names() []string {
	var names []string
	for _, u := range f.Units {
		names = append(names, u.Name)
	}
	return names
}
