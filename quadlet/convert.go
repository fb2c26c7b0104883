package quadlet

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"oci-mainpid-hook/internal/unitfile"
)

// quadletPaths are the paths where Quadlet's generator may be: first where systemd
// looks for generators, then where distributions keep the program itself.
var quadletPaths = []string{
	"/run/systemd/system-generators/podman-system-generator",
	"/etc/systemd/system-generators/podman-system-generator",
	"/usr/local/lib/systemd/system-generators/podman-system-generator",
	"/usr/lib/systemd/system-generators/podman-system-generator",
	"/lib/systemd/system-generators/podman-system-generator",
	"/usr/libexec/podman/quadlet",
	"/usr/lib/podman/quadlet",
}

// ErrNoQuadlet says that Quadlet's generator is not installed.
var ErrNoQuadlet = errors.New("Quadlet's generator, podman-system-generator, is not installed")

// FindQuadlet returns the path of Quadlet's generator. masked says that the
// administrator turned it off by a link to /dev/null, systemd.generator(7). The error
// is ErrNoQuadlet.
func FindQuadlet() (path string, masked bool, err error) {
	for _, path := range quadletPaths {
		info, err := os.Stat(path)
		switch {
		case err != nil:
		case unitfile.IsNull(info) || info.Size() == 0:
			return "", true, nil
		case info.Mode().IsRegular() && info.Mode()&0o111 != 0:
			return path, false, nil
		}
	}
	return "", false, ErrNoQuadlet
}

// Converted is one service that Quadlet makes.
type Converted struct {
	// Name is the service's name, such as web.service.
	Name string
	// Source is the path of the Quadlet file.
	Source string
	Unit   *unitfile.File
	// Err says why systemd cannot read the service, or reads it otherwise than Quadlet.
	Err error
}

// File returns the Quadlet file's name, by which other files reference it.
func (c *Converted) File() string { return filepath.Base(c.Source) }

// Convert runs Quadlet's generator with --dryrun. It returns the services that the
// generator would write, and the lines that it logged. unitDirs, if not empty, are
// read instead of the system's directories. A complaint of Quadlet's about one file
// is no error. The error says that the generator could not be run, or did not end
// before ctx did.
//
// Each service has its Source and our section, even if an old Quadlet writes no
// SourcePath= or reads no drop-ins.
func Convert(ctx context.Context, quadlet string, unitDirs []string) (services []Converted, messages []string, err error) {
	cmd := exec.CommandContext(ctx, quadlet, "--dryrun")
	cmd.WaitDelay = time.Second
	if len(unitDirs) > 0 {
		cmd.Env = append(os.Environ(), "QUADLET_UNIT_DIRS="+strings.Join(unitDirs, ":"))
	}
	// Files rather than pipes: for a thousand units, reading a pipe would interrupt
	// Quadlet a thousand times.
	stdout, err := memoryFile("stdout")
	if err != nil {
		return nil, nil, err
	}
	defer stdout.Close()
	stderr, err := memoryFile("stderr")
	if err != nil {
		return nil, nil, err
	}
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	dirs := SearchDirs()
	if len(unitDirs) > 0 {
		dirs = searchBelow(unitDirs, "")
	}
	if err = cmd.Start(); err != nil {
		return nil, nil, err
	}
	var dropins []string
	for _, dir := range dirs {
		dropins = append(dropins, askingDropins(dir, readNames(dir))...)
	}
	err = cmd.Wait()
	// If a file is wrong, Quadlet prints the services of the others and exits 1.
	exit := (*exec.ExitError)(nil)
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		err = nil
	}
	text, readErr := readBack(stdout)
	if err = cmp.Or(ctx.Err(), err, readErr); err == nil {
		services, err = parseDryRun(text)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s --dryrun: %w", quadlet, err)
	}
	log, err := readBack(stderr)
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(log)) {
		line = strings.TrimSpace(line)
		if _, message, ok := strings.Cut(line, "]: "); ok && strings.HasPrefix(line, "quadlet-generator[") {
			line = message
		}
		if line != "" {
			messages = append(messages, line)
		}
	}
	supplement(services, dirs, dropins)
	return services, messages, nil
}

// supplement adds to the services what Quadlet left out. Before podman 5, Quadlet
// writes SourcePath= for containers and kube units only, and reads no drop-ins.
// dropins are the names of drop-in directories with a drop-in that asks for a user.
func supplement(services []Converted, dirs, dropins []string) {
	var sources map[string]string // by service
	asked := func(name string) bool { return slices.Contains(dropins, name) }
	for i := range services {
		s := &services[i]
		if s.Source == "" {
			if sources == nil {
				sources = servicesOf(dirs)
			}
			if s.Source = sources[s.Name]; s.Source == "" {
				continue
			}
		}
		if len(dropins) == 0 || !slices.ContainsFunc(dropinNames(s.File()), asked) || asks(s.Unit) {
			continue
		}
		u, err := loadQuadlet(s.Source, dirs)
		if err != nil {
			continue
		}
		for _, name := range u.Sections {
			if sectionAsks(name) {
				s.Unit.AddSection(name)
			}
		}
		for _, a := range u.Assignments {
			if sectionAsks(a.Section) || keyAsks(a.Section, a.Key) {
				s.Unit.Assignments = append(s.Unit.Assignments, a)
			}
		}
	}
}

// servicesOf returns the paths of the Quadlet files in the directories. The keys are
// the names of the services that Quadlet makes of them.
func servicesOf(dirs []string) map[string]string {
	sources := map[string]string{}
	for name, path := range quadletFiles(dirs) {
		u, err := loadQuadlet(path, dirs)
		if err != nil {
			u = &unitfile.File{}
		}
		sources[serviceName(name, u)] = path
	}
	return sources
}

// memoryFile returns a file in memory, memfd_create(2).
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readBack(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, info.Size())
	_, err = f.ReadAt(data, 0)
	return data, err
}

// parseDryRun reads the output of Quadlet's --dryrun: lines ---NAME.service---, each
// followed by the text of that service.
func parseDryRun(out []byte) ([]Converted, error) {
	var services []Converted
	var texts [][]byte
	start := 0 // of the present service's text
	for at := 0; at < len(out); {
		line := out[at:]
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			line = line[:end+1]
		}
		if name, ok := dryRunHeader(line); ok {
			if len(services) > 0 {
				texts = append(texts, out[start:at])
			}
			services = append(services, Converted{Name: name})
			start = at + len(line)
		} else if len(services) == 0 {
			return nil, fmt.Errorf("unexpected line %q", unitfile.Clip(string(line)))
		}
		at += len(line)
	}
	if len(services) == 0 {
		return nil, nil
	}
	texts = append(texts, out[start:])
	Parallel(len(services), func(i int) {
		s := &services[i]
		if s.Unit, s.Err = unitfile.Parse(texts[i]); s.Err != nil {
			s.Unit = &unitfile.File{}
		}
		s.Source = s.Unit.Get("Unit", "SourcePath")
		if s.Err == nil && hasStrayReturn(texts[i]) {
			s.Err = errStrayReturn
		}
	})
	return services, nil
}

func dryRunHeader(line []byte) (name string, ok bool) {
	if !bytes.HasPrefix(line, []byte("---")) {
		return "", false
	}
	name, ok = strings.CutSuffix(strings.TrimSuffix(string(line[3:]), "\n"), ".service---")
	return name + ".service", ok && name != ""
}

// errStrayReturn says that systemd and Quadlet read different lines in a file.
var errStrayReturn = errors.New("a carriage return inside of a line: for systemd it ends the line, for Quadlet it does not; remove it")

// hasStrayReturn reports whether a carriage return ends a line without a newline
// behind it.
func hasStrayReturn(text []byte) bool {
	return bytes.Count(text, []byte("\r")) > bytes.Count(text, []byte("\r\n"))
}
