package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/dropin"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/terminal"
	"oci-mainpid-hook/internal/unitfile"
	"oci-mainpid-hook/quadlet"
)

// adopter hands units of root's over to a user.
type adopter struct {
	planner *quadlet.Planner
	manager *manager.Manager
	log     *logrus.Logger
	stdout  io.Writer
	stderr  io.Writer

	user, format              string
	createUser, dryRun, clean bool
}

func adoptCommand(log *logrus.Logger) *cobra.Command {
	a := adopter{planner: quadlet.NewPlanner(dropin.Generate), log: log}
	cmd := &cobra.Command{
		Use:   "adopt --user=NAME [flags] UNIT|FILE...",
		Short: "Hand a Quadlet of root's over to a user, with its data",
		Long: `Shows what is to be done, then copies the image, the volumes and the secrets of
each Quadlet FILE of a container to the user, writes User= into FILE and into the
files that it references, and starts the service again. If the service does not run
then, all of that is undone. Root's copies stay until adopt --clean.

A FILE of the user's own, in ~/.config/containers/systemd, becomes a service of the
system, with the same data.`,
		Example: "  oci-mainpid adopt --user=web --create-user web\n  oci-mainpid adopt --clean web\n" +
			"  oci-mainpid adopt --user=web /home/web/.config/containers/systemd/site.container",
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(errors.New("no UNIT and no FILE given"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			a.stdout, a.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			switch {
			case a.format != "table" && a.format != "json":
				return usageError(fmt.Errorf("--format=%s is neither table nor json", a.format))
			case a.clean && (a.user != "" || a.createUser || a.dryRun):
				return usageError(errors.New("--clean goes with no other option: the user is known"))
			case !a.clean && a.user == "":
				return usageError(errors.New("--user is missing"))
			}
			ctx := cmd.Context()
			m, stop, err := connect(&ctx, log)
			if err != nil {
				return err
			}
			defer stop()
			a.manager = m
			for _, arg := range args {
				if err := a.adopt(ctx, arg); err != nil {
					return fmt.Errorf("%s: %w", filepath.Base(arg), err)
				}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&a.user, "user", "", "the `NAME` of the user who gets the container")
	flags.BoolVar(&a.createUser, "create-user", false, "make the user if there is none, as oci-mainpid user add does")
	flags.BoolVar(&a.dryRun, "dry-run", false, "show what is to be done, do nothing")
	flags.BoolVar(&a.clean, "clean", false, "remove what root still has of an adopted unit")
	flags.StringVar(&a.format, "format", "table", "`FORMAT` of what is to be done is table or json")
	mustRegister(cmd, "format", "table", "json")
	mustRegisterFunc(cmd, "user", func() []string { return a.planner.Accounts.Names() })
	return cmd
}

// adoption is what is done with one unit. It is written to the journal before the first
// change, so that a second call knows what a killed one has left.
type adoption struct {
	Unit string `json:"unit"`
	User string `json:"user"`
	// PID is the process that does it.
	PID int `json:"pid"`
	// Done says that the user's service ran.
	Done bool `json:"done"`
	// Own is the directory of the user's own files, "" if root's service is adopted.
	// WasActive says that the user's manager ran the service.
	Own       string `json:"own,omitempty"`
	WasActive bool   `json:"was_active,omitempty"`
	// Starts are the unit and the active units that stop with it.
	Starts []string `json:"starts"`
	// Files are the paths of the unit's Quadlet file and of those that it references,
	// Services the names of their services.
	Files    []string `json:"files"`
	Services []string `json:"services"`
	// Image is the image's ID, ImageName its name in the file. HasImage and HasName say
	// that the user had them already.
	Image     string   `json:"image"`
	ImageName string   `json:"image_name"`
	HasImage  bool     `json:"has_image"`
	HasName   bool     `json:"has_name"`
	Volumes   []string `json:"volumes"`
	Secrets   []string `json:"secrets"`
	Networks  []string `json:"networks"`

	account account.Account
	items   []adoptItem
	// texts are the files as they were, by the paths in Files.
	texts map[string][]byte
}

// adoptItem is a line of what is to be done.
type adoptItem struct {
	What  string `json:"what"`
	Name  string `json:"name"`
	Bytes int64  `json:"bytes,omitempty"`
	How   string `json:"how"`
}

func (p *adoption) item(what, name string, bytes int64, how string) {
	p.items = append(p.items, adoptItem{what, name, bytes, how})
}

func (p *adoption) write(w io.Writer, format string) error {
	if format == "json" {
		return terminal.WriteJSON(w, struct {
			Unit  string      `json:"unit"`
			User  string      `json:"user"`
			Items []adoptItem `json:"items"`
		}{p.Unit, p.User, p.items})
	}
	t := terminal.Table{Columns: []terminal.Column{{Title: "WHAT"}, {Title: "NAME", Least: 12}, {Title: "SIZE", Right: true}, {Title: "HOW", Least: 12}}}
	for _, i := range p.items {
		size := ""
		if i.Bytes > 0 {
			size = terminal.Bytes(i.Bytes)
		}
		t.Add(terminal.Cell{Text: i.What}, terminal.Cell{Text: terminal.Clean(i.Name)}, terminal.Cell{Text: size}, terminal.Cell{Text: terminal.Clean(i.How)})
	}
	t.Write(terminal.New(w))
	return nil
}

// rootsContainer is what podman knows of a container of root's.
type rootsContainer struct {
	Image, ImageName string
	Mounts           []struct{ Type, Name, Source, Driver string }
	Config           struct{ Secrets []struct{ Name string } }
	HostConfig       struct {
		UsernsMode   string
		PortBindings map[string][]struct{ HostPort string }
	}
	NetworkSettings struct{ Networks map[string]struct{} }
}

// family returns the Quadlet services of a file: its own, then those of the files that it
// references. others are all other services that Quadlet makes, of what is in dirs or else
// in the system's directories.
func (a *adopter) family(ctx context.Context, path string, dirs []string) (family, others []quadlet.Converted, err error) {
	if filepath.Ext(path) != ".container" {
		return nil, nil, errors.New("is no Quadlet file of a container, NAME.container: move others by hand, see docs/rootful-to-rootless.md")
	}
	if _, err := os.Stat(path); err != nil {
		return nil, nil, err
	}
	program, _, err := quadlet.FindQuadlet()
	if err != nil {
		return nil, nil, err
	}
	all, messages, err := quadlet.Convert(ctx, program, dirs)
	if err != nil {
		return nil, nil, err
	}
	take := func(file string) bool {
		i := slices.IndexFunc(all, func(c quadlet.Converted) bool { return c.Source == file || c.File() == file })
		if i < 0 {
			return false
		}
		family, all = append(family, all[i]), slices.Delete(all, i, i+1)
		return true
	}
	if !take(path) {
		return nil, nil, fmt.Errorf("Quadlet makes no service of it: %s", cmp.Or(strings.Join(messages, "; "), "it is in none of Quadlet's directories, such as /etc/containers/systemd"))
	}
	for i := 0; i < len(family); i++ {
		for _, file := range family[i].References() {
			take(file)
		}
	}
	return family, all, nil
}

// plan reads what is to be done, and fails if it cannot be done. It changes nothing.
func (a *adopter) plan(ctx context.Context, family, others []quadlet.Converted) (*adoption, error) {
	p := &adoption{PID: os.Getpid(), User: a.user, texts: map[string][]byte{}}
	var err error
	p.account, err = a.planner.Accounts.Lookup(ctx, a.user)
	exists := true
	if errors.Is(err, account.ErrUnknown) {
		if !a.createUser {
			return nil, fmt.Errorf("--user: %w; to have the user made, add --create-user", err)
		}
		exists, err = false, nil
		p.item("user", a.user, 0, "is made")
	}
	if err != nil {
		return nil, fmt.Errorf("--user: %w", err)
	}
	p.User = cmp.Or(p.account.Name, p.User)
	if err := p.takeFamily(family, others); err != nil {
		return nil, err
	}
	for _, path := range p.Files {
		text, err := os.ReadFile(path)
		if err == nil {
			_, err = withUser(string(text), p.User)
		}
		if err == nil {
			err = writable(path)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		p.texts[path] = text
	}
	container, err := a.container(ctx, p)
	if err != nil {
		return nil, err
	}
	return p, a.planData(ctx, p, container, family, exists)
}

// takeFamily takes the services and their files along, or says why they cannot be.
func (p *adoption) takeFamily(family, others []quadlet.Converted) error {
	p.Unit = family[0].Name
	for _, c := range family {
		ext := filepath.Ext(c.Source)
		switch user := c.Unit.Get("Service", "User"); {
		case c.Err != nil:
			return fmt.Errorf("%s: %w", c.File(), c.Err)
		case user != "":
			return fmt.Errorf("%s has User=%s already", c.File(), user)
		case unitfile.IsTemplate(c.Name):
			return fmt.Errorf("%s is a template: move its instances by hand, see docs/rootful-to-rootless.md", c.File())
		case ext == ".container" && c.Name != p.Unit, !slices.Contains([]string{".container", ".volume", ".network", ".image"}, ext):
			return fmt.Errorf("references %s, and adopt takes only .volume, .network and .image files along: move it by hand, see docs/rootful-to-rootless.md", c.File())
		}
		for _, other := range others {
			if slices.Contains(other.References(), c.File()) {
				return fmt.Errorf("%s references %s, too: give it a copy of its own first", other.File(), c.File())
			}
		}
		p.Files, p.Services = append(p.Files, c.Source), append(p.Services, c.Name)
		p.item("file", c.File(), 0, "gets User="+p.User)
	}
	return nil
}

// container returns the container of root's that the unit runs.
func (a *adopter) container(ctx context.Context, p *adoption) (c rootsContainer, err error) {
	u, err := a.manager.Unit(ctx, p.Unit)
	switch {
	case err != nil:
		return c, err
	case !strings.HasPrefix(u.Fragment, "/run/systemd/generator"):
		return c, fmt.Errorf("%s is not Quadlet's but that of %s: see oci-mainpid generate", p.Unit, u.Fragment)
	case u.User != "" || u.NeedReload:
		return c, errors.New("the file has changed: type: systemctl daemon-reload")
	case u.ActiveState != "active":
		return c, fmt.Errorf("%s is %s, and what is to be copied is read from its container: type: systemctl start %[1]s", p.Unit, u.ActiveState)
	}
	p.Starts = []string{p.Unit}
	for _, name := range slices.Concat(u.Properties.Strings("RequiredBy"), u.Properties.Strings("BoundBy"), u.Properties.Strings("ConsistsOf")) {
		if other, err := a.manager.Unit(ctx, name); err == nil && other.ActiveState == "active" {
			p.Starts = append(p.Starts, name)
			p.item("unit", name, 0, "stops and starts with it")
		}
	}
	id, err := podmanOfRoot(ctx, "ps", "--quiet", "--no-trunc", "--filter=label=PODMAN_SYSTEMD_UNIT="+p.Unit)
	if err != nil {
		return c, err
	}
	if len(strings.Fields(id)) != 1 {
		return c, fmt.Errorf("%s has %d containers of root's, not one: see podman ps", p.Unit, len(strings.Fields(id)))
	}
	text, err := podmanOfRoot(ctx, "container", "inspect", id)
	if err != nil {
		return c, err
	}
	var all []rootsContainer
	if err := json.Unmarshal([]byte(text), &all); err != nil || len(all) != 1 {
		return c, fmt.Errorf("podman container inspect %s: not understood: %v", id, err)
	}
	return all[0], nil
}

// planData plans what is copied of the container.
func (a *adopter) planData(ctx context.Context, p *adoption, c rootsContainer, family []quadlet.Converted, exists bool) error {
	if c.HostConfig.UsernsMode != "" && c.HostConfig.UsernsMode != "host" {
		return fmt.Errorf("the container has a user namespace of its own (UserNS=%s), so its files have other owners: remove UserNS= first", c.HostConfig.UsernsMode)
	}
	least, _ := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	lowest, _ := strconv.Atoi(strings.TrimSpace(string(least)))
	for _, bindings := range c.HostConfig.PortBindings {
		for _, b := range bindings {
			if port, _ := strconv.Atoi(b.HostPort); port > 0 && port < lowest {
				return fmt.Errorf("publishes port %d, which only root may bind: type: sysctl -w net.ipv4.ip_unprivileged_port_start=%[1]d", port)
			}
		}
	}
	// has reports whether the user has such a thing already.
	has := func(what, name string) (bool, error) {
		if !exists {
			return false, nil
		}
		return a.has(ctx, p, what, name)
	}
	size, err := podmanOfRoot(ctx, "image", "inspect", "--format={{.Size}}", c.Image)
	if err != nil {
		return err
	}
	bytes, _ := strconv.ParseInt(size, 10, 64)
	p.Image, p.ImageName = c.Image, c.ImageName
	if p.HasImage, err = has("image", c.Image); err != nil {
		return err
	}
	if p.HasName, err = has("image", c.ImageName); err != nil {
		return err
	}
	if p.HasName {
		id, err := a.asUser(ctx, p, nil, "podman", "image", "inspect", "--format={{.Id}}", c.ImageName)
		if err != nil {
			return err
		}
		if id != c.Image {
			return fmt.Errorf("%s has another image %s: type: oci-mainpid podman --user=%[1]s untag %s", p.User, c.ImageName, terminal.Quote(c.ImageName))
		}
	}
	if p.HasImage {
		p.item("image", p.ImageName, bytes, "is there")
	} else {
		p.item("image", p.ImageName, bytes, "is copied")
	}
	for _, m := range c.Mounts {
		switch {
		case m.Type == "bind" && strings.HasPrefix(m.Source, "/run/credentials/"):
		case m.Type == "bind":
			if !exists {
				// The start will tell.
			} else if _, err := a.asUser(ctx, p, nil, "test", "-r", m.Source); err != nil {
				return fmt.Errorf("%s may not read %s, which the container mounts: give it to the user first: chown -R --from=0:0 %[1]s: %s", p.User, m.Source, terminal.Quote(m.Source))
			}
			p.item("mount", m.Source, 0, "keeps its owners")
		case m.Type == "volume" && isAnonymous(m.Name):
			p.item("volume", m.Name[:12], 0, "has no name: ends with the container")
		case m.Type == "volume":
			if err := a.planVolume(ctx, p, m.Name, m.Source, has); err != nil {
				return err
			}
		}
	}
	var secrets []string
	for _, s := range c.Config.Secrets {
		secrets = append(secrets, s.Name)
	}
	for _, s := range family[0].Unit.List("X-Container", "Secret") {
		name, _, _ := strings.Cut(s, ",") // with type=env only the file says so
		secrets = append(secrets, name)
	}
	slices.Sort(secrets)
	for _, name := range slices.Compact(secrets) {
		if taken, err := has("secret", name); err != nil {
			return err
		} else if taken {
			return fmt.Errorf("%s has a secret %s already: remove it, type: oci-mainpid podman --user=%[1]s secret rm %s", p.User, name, terminal.Quote(name))
		}
		p.Secrets = append(p.Secrets, name)
		p.item("secret", name, 0, "is copied")
	}
	for _, name := range slices.Sorted(maps.Keys(c.NetworkSettings.Networks)) {
		taken, err := has("network", name)
		if err != nil {
			return err
		}
		made := slices.ContainsFunc(family, func(c quadlet.Converted) bool {
			return filepath.Ext(c.Source) == ".network" && slices.Contains([]string{c.Unit.Get("X-Network", "NetworkName"), "systemd-" + strings.TrimSuffix(c.File(), ".network")}, name)
		})
		switch {
		case made && taken:
			return fmt.Errorf("%s has a network %s already: type: oci-mainpid podman --user=%[1]s network rm %s", p.User, name, terminal.Quote(name))
		case made:
			p.Networks = append(p.Networks, name)
			p.item("network", name, 0, "is made by its file")
		case name != "podman":
			return fmt.Errorf("the network %s was made by hand: write a .network file for it first", name)
		}
	}
	return nil
}

func (a *adopter) planVolume(ctx context.Context, p *adoption, name, dir string, has func(what, name string) (bool, error)) error {
	options, err := podmanOfRoot(ctx, "volume", "inspect", "--format={{.Driver}} {{len .Options}}", name)
	if err != nil {
		return err
	}
	if options != "local 0" {
		return fmt.Errorf("the volume %s has a driver or options, such as Device=: move it by hand, see docs/rootful-to-rootless.md", name)
	}
	users, err := podmanOfRoot(ctx, "ps", "--all", "--quiet", "--filter=volume="+name)
	if err != nil {
		return err
	}
	if len(strings.Fields(users)) > 1 {
		return fmt.Errorf("other containers of root's use the volume %s, too: see podman ps --all --filter=volume=%[1]s", name)
	}
	if taken, err := has("volume", name); err != nil {
		return err
	} else if taken {
		return fmt.Errorf("%s has a volume %s already: look into it, then type: oci-mainpid podman --user=%[1]s volume rm %s", p.User, name, terminal.Quote(name))
	}
	p.Volumes = append(p.Volumes, name)
	p.item("volume", name, diskUsage(ctx, dir), "is copied")
	return nil
}

// isAnonymous reports whether podman has made up the name of a volume.
func isAnonymous(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// withUser returns the text of a Quadlet file with User= in [Service].
func withUser(text, user string) (string, error) {
	line := "User=" + user + "\n"
	if before, after, ok := strings.Cut("\n"+text, "\n[Service]\n"); ok {
		text = strings.TrimPrefix(before+"\n[Service]\n"+line+after, "\n")
	} else {
		text = strings.TrimSuffix(text, "\n") + "\n\n[Service]\n" + line
	}
	f, err := unitfile.Parse([]byte(text))
	if err == nil && f.Get("Service", "User") != user {
		err = fmt.Errorf("write %s below [Service] by hand: the file is unusual", strings.TrimSpace(line))
	}
	return text, err
}
