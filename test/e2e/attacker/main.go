// Command attacker does what the attacks on notify-mainpid need and a shell
// cannot, as root, as the unit's user or in a container:
//
//	attacker COMMAND [ARG...]
//
// By the name notify-mainpid it stands for the helper: it runs the real one and
// writes down what that took. By the name oci-mainpid-generator it stands for the
// generator: it runs the real one and kills it at one of its writes.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// commands are by name; arguments is how many each needs at least.
var commands = map[string]struct {
	arguments int
	run       func(args []string) error
}{
	"blank":    {2, blank},
	"fill":     {4, fill},
	"hoard":    {3, hoard},
	"inside":   {1, inside},
	"journal":  {3, sendJournal},
	"lease":    {1, lease},
	"measure":  {3, measure},
	"mute":     {1, mute},
	"put":      {3, put},
	"replace":  {4, replace},
	"rewrite":  {2, rewrite},
	"say":      {1, say},
	"scribble": {2, scribble},
	"seize":    {1, seize},
	"send":     {2, send},
	"signals":  {1, signals},
	"thread":   {0, thread},
}

func main() {
	switch filepath.Base(os.Args[0]) {
	case "notify-mainpid":
		os.Exit(supervise(os.Args[1:]))
	case "oci-mainpid-generator":
		os.Exit(generate(os.Args[1:]))
	}
	err := fmt.Errorf("no such command: %q", os.Args[1:])
	if len(os.Args) > 1 {
		if c, ok := commands[os.Args[1]]; ok && len(os.Args)-2 >= c.arguments {
			err = c.run(os.Args[2:])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacker:", err)
		os.Exit(1)
	}
}

// idle never returns.
func idle() {
	for {
		time.Sleep(time.Hour)
	}
}
