package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// benchPrograms measures the programs of the builds alone.
func benchPrograms(ctx context.Context, builds []build, rounds int) error {
	if os.Geteuid() != 0 {
		return errors.New("must be run as root, as notify-mainpid is")
	}
	s, err := newStage()
	if err != nil {
		return err
	}
	defer s.close()
	programs, noC, err := s.programs(ctx, builds)
	if err != nil {
		return err
	}
	empty := slices.IndexFunc(programs, func(p program) bool { return p.build != "" })
	before := load()
	times, err := measure(ctx, programs, rounds)
	if err != nil {
		return err
	}

	fmt.Printf("Whole processes, from start to exit, %d of each in random order; processor: the\n"+
		"part of it on a processor, which others' load lengthens least; × Go and × C:\n"+
		"times the median of the empty program. %d CPUs, load %s before and %s after.\n\n",
		rounds, runtime.NumCPU(), before, load())
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "median\tp95\tprocessor\t× Go\taim\t")
	if noC == nil {
		fmt.Fprint(t, "× C\t")
	}
	fmt.Fprintln(t, "  program")
	for i, p := range programs {
		aim := ""
		if p.aim > 0 {
			aim = fmt.Sprintf("≤ %.1f", p.aim)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.2f\t%s\t", milliseconds(median(times[i].wall)), milliseconds(quantile(times[i].wall, 0.95)),
			milliseconds(median(times[i].processor)), ratio(times[i].wall, times[0].wall), aim)
		if noC == nil {
			fmt.Fprintf(t, "%.2f\t", ratio(times[i].wall, times[1].wall))
		}
		name := p.name
		if len(builds) > 1 && p.build != "" {
			name += ", " + p.build
		}
		fmt.Fprintln(t, "  "+name)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(builds) > 1 {
		per := (len(programs) - empty) / len(builds)
		var comparisons []comparison
		for i := empty; i < empty+per; i++ {
			comparisons = append(comparisons, comparison{programs[i].name, times[i], times[i+per]})
		}
		if err := printComparisons("program", comparisons); err != nil {
			return err
		}
	}
	if noC != nil {
		fmt.Printf("\nThere is no empty C program: %v\n", noC)
	}
	fmt.Println()
	return nil
}

// containerState is what crun gives a poststart hook on standard input, but for
// the container's PID.
//
//go:embed state.json
var containerState string

// hookEnvironment is the environment that crun gives it.
var hookEnvironment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
	"XDG_RUNTIME_DIR=/run/user/1000",
	"PWD=/home/web/.local/share/containers/storage/overlay-containers/56179a152fda36965b8e2c04f98070206d92c42d49a92bb3c82a1c867130a17f/userdata",
}

// programs returns the programs to measure: an empty Go program, an empty C
// program or why there is none, then those of each build, in the same order.
func (s *stage) programs(ctx context.Context, builds []build) (programs []program, noC, err error) {
	stranger, err := s.startConmon()
	if err != nil {
		return nil, nil, err
	}
	strangerState, err := s.write("stranger.json", fmt.Sprintf(containerState, stranger.container))
	if err != nil {
		return nil, nil, err
	}

	// Only a descriptor leads to the mainpid file of this container, as with
	// OpenFile=. It is in this process, where podman's would be in crun.
	fd, err := unix.MemfdCreate("mainpid", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd_create: %w", err)
	}
	mainPID := os.NewFile(uintptr(fd), "mainpid file")
	s.onClose(func() { mainPID.Close() })
	mainPIDName, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, nil, err
	}
	ours, err := s.startConmon("PODMAN_SYSTEMD_UNIT=web.service", "INVOCATION_ID="+invocation, "OCI_MAINPID_FILE="+mainPIDName)
	if err != nil {
		return nil, nil, err
	}
	oursState, err := s.write("ours.json", fmt.Sprintf(containerState, ours.container))
	if err != nil {
		return nil, nil, err
	}

	// notify-mainpid gets the same PID by a file with a name.
	manager, err := s.listen()
	if err != nil {
		return nil, nil, err
	}
	line := strconv.Itoa(ours.pid) + "\n"
	given, err := s.write("mainpid", line)
	if err != nil {
		return nil, nil, err
	}
	result := filepath.Join(s.dir, "result")

	emptyGo, err := s.buildEmptyGo(ctx)
	if err != nil {
		return nil, nil, err
	}
	programs = []program{{name: "empty Go program", path: emptyGo, env: hookEnvironment, stdin: strangerState}}
	emptyC, noC := s.buildEmptyC(ctx)
	if noC == nil {
		programs = append(programs, program{name: "empty C program", path: emptyC, env: hookEnvironment, stdin: strangerState})
	}
	// What the hook's JSON sets; an empty Go program gains nothing by it.
	hookEnvironment := append(slices.Clone(hookEnvironment), "GOMAXPROCS=1")
	for _, b := range builds {
		hook, err := s.copyProgram(b, "oci-mainpid-hook")
		if err != nil {
			return nil, nil, err
		}
		notify, err := s.copyProgram(b, "notify-mainpid")
		if err != nil {
			return nil, nil, err
		}
		programs = append(programs,
			program{
				name: "oci-mainpid-hook, container not ours", build: b.name, aim: 1.3,
				path: hook, env: hookEnvironment, stdin: strangerState,
			},
			program{
				name: "oci-mainpid-hook, container ours", build: b.name, aim: 2,
				path: hook, env: hookEnvironment, stdin: oursState,
				before: func() error { return mainPID.Truncate(0) },
				after: func() error {
					got := make([]byte, len(line)+1)
					n, _ := mainPID.ReadAt(got, 0)
					return expect("the mainpid file", string(got[:n]), line)
				},
			},
			program{
				name: "notify-mainpid, PID in the file", build: b.name,
				path: notify,
				// No --unit=: what that adds, a readlink(2), is for systemd's socket only.
				args: []string{"--user=" + strconv.Itoa(nobody), "--conmon=" + s.conmon, given, result},
				env: []string{
					"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG=C.UTF-8",
					"NOTIFY_SOCKET=" + manager.address, "INVOCATION_ID=" + invocation,
					"MAINPID=" + strconv.Itoa(os.Getpid()), "SYSTEMD_EXEC_PID=" + strconv.Itoa(os.Getpid()),
				},
				stdin: os.DevNull,
				before: func() error {
					manager.forget()
					if err := os.Remove(result); err != nil && !errors.Is(err, os.ErrNotExist) {
						return err
					}
					return nil
				},
				after: func() error {
					got, err := os.ReadFile(result)
					if err != nil {
						return err
					}
					return errors.Join(expect("the result file", string(got), "ok\n"), manager.check(ours.pid))
				},
			})
	}
	return programs, noC, nil
}

func expect(what, got, want string) error {
	if got != want {
		return fmt.Errorf("%s holds %q, not %q", what, got, want)
	}
	return nil
}
