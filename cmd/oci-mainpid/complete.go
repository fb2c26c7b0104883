package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/quadlet"
)

// serviceName appends .service to a name without it, as systemctl(1) does.
func serviceName(arg string) string {
	if strings.HasSuffix(arg, ".service") {
		return arg
	}
	return arg + ".service"
}

func serviceNames(args []string) []string {
	names := make([]string, 0, len(args))
	for _, a := range args {
		if name := serviceName(a); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// completionTimeout bounds a completion, for which a person waits.
const completionTimeout = 2 * time.Second

// completeUnits completes the names of our services. It needs no privileges.
func completeUnits(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
	defer cancel()
	m, err := manager.Connect(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer m.Close()
	names, err := m.Ours(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	named := serviceNames(args)
	return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(named, n) }), cobra.ShellCompDirectiveNoFileComp
}

func completeOneUnit(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeUnits(cmd, args, prefix)
}

// completeUnitFiles completes the names of services with a unit file of the
// administrator's that runs podman, and if there is none, files.
func completeUnitFiles(_ *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if strings.Contains(prefix, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return slices.DeleteFunc(quadlet.PodmanServices(quadlet.UnitDirs[:1]), func(n string) bool { return slices.Contains(args, n) }), cobra.ShellCompDirectiveDefault
}

// mustRegister has the words complete the values of a flag.
func mustRegister(cmd *cobra.Command, flag string, words ...string) {
	mustRegisterFunc(cmd, flag, func() []string { return words })
}

// mustRegisterFunc has the words that a function returns complete the values of a flag.
func mustRegisterFunc(cmd *cobra.Command, flag string, words func() []string) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words(), cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // there is no such flag
	}
}
