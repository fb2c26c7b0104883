// Package autoupdate has the units of users run newer images, as podman-auto-update(1)
// does for the units of a user's own manager.
//
// Root decides what is restarted. podman, as the unit's user, says for which containers
// there is a newer image, and pulls it.
package autoupdate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"oci-mainpid-hook/internal/account"
	"oci-mainpid-hook/internal/asuser"
	"oci-mainpid-hook/internal/census"
	"oci-mainpid-hook/internal/manager"
	"oci-mainpid-hook/internal/story"
)

// Update is what became of one container. Its texts may be a user's and need cleaning,
// see package printable.
type Update struct {
	Unit        string `json:"unit"`
	User        string `json:"user"`
	Container   string `json:"container"`
	ContainerID string `json:"container_id"`
	Image       string `json:"image"`
	// Policy is registry or local.
	Policy  string  `json:"policy"`
	Updated Outcome `json:"updated"`
	// Error says why Updated is Failed or RolledBack.
	Error string `json:"error,omitempty"`
}

// Outcome is what became of a container, in the words of podman-auto-update(1).
type Outcome string

// The outcomes.
const (
	Updated    Outcome = "true"
	UpToDate   Outcome = "false"
	Pending    Outcome = "pending"
	Failed     Outcome = "failed"
	RolledBack Outcome = "rolled back"
)

// Unit is an active unit and its containers.
type Unit struct {
	*manager.Unit
	Containers []census.Conmon
}

// Updater updates units.
type Updater struct {
	Manager  *manager.Manager
	Accounts *account.Accounts
	// DryRun: only look for newer images.
	DryRun bool
	// Rollback: what does not run with the newer image gets the image before.
	Rollback bool
	// Say is called with each step. The text may be a user's.
	Say func(unit, text string)
}

// Bounds of what a user's podman, and a unit, may take.
const (
	askTimeout    = 2 * time.Minute
	pullTimeout   = 30 * time.Minute
	healthTimeout = 5 * time.Minute
	// userTimeout is when no other unit of the user is begun.
	userTimeout = time.Hour
	// settle is how long a unit must stay active. A container whose command fails is
	// active for a moment.
	settle = 5 * time.Second
	// atOnce is how many users are served at the same time.
	atOnce = 4
)

// Run updates the units, those of each user in their order, and returns what became of
// their containers, sorted by unit. If ctx is done, it begins no other update.
func (u *Updater) Run(ctx context.Context, units []Unit) []Update {
	users := map[string][]Unit{}
	for _, unit := range units {
		key := fmt.Sprintf("%d %q", unit.UID, unit.PodmanEnvironment()) // has a storage of its own
		users[key] = append(users[key], unit)
	}
	all := []Update{}
	var mutex sync.Mutex
	var group sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, units := range users {
		group.Add(1)
		go func() {
			defer group.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			updates := u.user(ctx, units)
			mutex.Lock()
			defer mutex.Unlock()
			all = append(all, updates...)
		}()
	}
	group.Wait()
	slices.SortStableFunc(all, func(a, b Update) int { return cmp.Compare(a.Unit, b.Unit) })
	return all
}

// user updates the units of one user.
func (u *Updater) user(ctx context.Context, units []Unit) []Update {
	began := time.Now()
	updates, err := u.ask(ctx, units)
	if err != nil {
		for _, unit := range units {
			updates = append(updates, Update{Unit: unit.Name, User: unit.User, Updated: Failed, Error: "podman auto-update: " + err.Error()})
		}
		return updates
	}
	if u.DryRun {
		return updates
	}
	for _, unit := range units {
		var pending []*Update
		for i := range updates {
			if updates[i].Unit == unit.Name && updates[i].Updated == Pending {
				pending = append(pending, &updates[i])
			}
		}
		if len(pending) == 0 {
			continue
		}
		outcome, err := Failed, fmt.Errorf("not begun: updates of user %s took %v", unit.User, userTimeout)
		if time.Since(began) < userTimeout {
			outcome, err = u.unit(ctx, unit, pending)
		}
		for _, update := range pending {
			if update.Updated = outcome; err != nil {
				update.Error = err.Error()
			}
		}
	}
	return updates
}

// podman runs podman as the user of a unit.
func (u *Updater) podman(ctx context.Context, unit Unit, timeout time.Duration, each func(line string), args ...string) (stdout, stderr []byte, err error) {
	a, err := u.Accounts.Lookup(ctx, unit.User)
	if err != nil && !errors.As(err, new(*account.NoIDsError)) {
		return nil, nil, err
	}
	c := asuser.Command{Account: a, Env: unit.PodmanEnvironment(), Timeout: timeout, Args: append([]string{"podman"}, args...)}
	return c.Output(ctx, each)
}

// ask asks the podman of a user which of the units' containers have a newer image.
//
// podman looks at the digests in the registry for each running container with the label
// io.containers.autoupdate. It takes the unit's name from a label, for a unit of the
// user's manager: that name does not count here.
func (u *Updater) ask(ctx context.Context, units []Unit) ([]Update, error) {
	u.Say(units[0].Name, "looking for newer images of user "+units[0].User)
	stdout, stderr, err := u.podman(ctx, units[0], askTimeout, nil, "auto-update", "--dry-run", "--format=json")
	var said []struct{ ContainerName, ContainerID, Image, Policy, Updated string }
	if jsonErr := json.Unmarshal(stdout, &said); len(stdout) > 0 && jsonErr != nil {
		return nil, cmp.Or(err, jsonErr)
	}
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	lines := strings.Split(string(stderr), "\n")
	known := false
	var updates []Update
	for _, unit := range units {
		for _, c := range unit.Containers {
			update := Update{Unit: unit.Name, User: unit.User, Container: c.Container, ContainerID: c.ContainerID}
			for _, s := range said {
				if s.ContainerID == c.ContainerID && (s.Policy == "registry" || s.Policy == "local") {
					update.Image, update.Policy, update.Updated = s.Image, s.Policy, Outcome(s.Updated)
				}
			}
			for _, line := range lines {
				if strings.Contains(line, c.ContainerID) && update.Updated != Pending && update.Updated != UpToDate {
					_, reason, _ := strings.Cut(line, c.ContainerID)
					update.Updated, update.Error = Failed, strings.TrimLeft(reason, `": `)
					known = true
				}
			}
			switch update.Updated {
			case Pending, UpToDate, Failed:
				updates = append(updates, update)
			}
		}
	}
	if err != nil && len(said) == 0 && !known {
		return nil, err
	}
	return updates, nil
}

// container is what podman says of a container.
type container struct {
	Image     string // the ID
	ImageName string
	Config    struct{ Labels map[string]string }
	State     struct{ Health *struct{ Status string } }
}

func (c container) healthy() bool { return c.State.Health != nil && c.State.Health.Status == "healthy" }

// inspect asks podman for a container.
func (u *Updater) inspect(ctx context.Context, unit Unit, name string) (container, error) {
	stdout, _, err := u.podman(ctx, unit, askTimeout, nil, "container", "inspect", name)
	var containers []container
	if err == nil {
		err = json.Unmarshal(stdout, &containers)
	}
	if err != nil || len(containers) != 1 {
		return container{}, fmt.Errorf("podman container inspect %s: %w", name, cmp.Or(err, errors.New("no container")))
	}
	return containers[0], nil
}

// unit pulls the images of a unit's containers and has it run them. The error says what
// went wrong; the outcome whether the images before are back.
func (u *Updater) unit(ctx context.Context, unit Unit, pending []*Update) (Outcome, error) {
	before := make([]container, len(pending))
	for i, update := range pending {
		var err error
		if before[i], err = u.inspect(ctx, unit, update.ContainerID); err != nil {
			return Failed, err
		}
		if update.Policy != "registry" {
			continue
		}
		u.Say(unit.Name, "pulling "+update.Image)
		args := []string{"pull"}
		if file := before[i].Config.Labels["io.containers.autoupdate.authfile"]; file != "" {
			args = append(args, "--authfile="+file)
		}
		if _, _, err := u.podman(ctx, unit, pullTimeout, func(line string) {
			u.Say(unit.Name, "pulling "+update.Image+": "+line)
		}, append(args, "--", update.Image)...); err != nil {
			return Failed, fmt.Errorf("pull %s: %w", update.Image, err)
		}
	}
	if ctx.Err() != nil {
		return Failed, errors.New("interrupted")
	}
	ctx = context.WithoutCancel(ctx) // a unit is not left half done
	inPlace := unit.Origin.Options.Reloads()
	verb := "restarting"
	if inPlace {
		verb = "reloading"
	}
	u.Say(unit.Name, verb)
	err := u.restart(ctx, unit, pending, before, inPlace)
	if err == nil {
		u.Say(unit.Name, "updated")
		for _, c := range before {
			names, _, err := u.podman(ctx, unit, askTimeout, nil, "image", "inspect", "--format={{len .RepoTags}}", "--", c.Image)
			if err == nil && strings.TrimSpace(string(names)) == "0" {
				// Fails if another container uses the image.
				u.podman(ctx, unit, askTimeout, nil, "image", "rm", "--", c.Image)
			}
		}
		return Updated, nil
	}
	if !u.Rollback {
		return Failed, err
	}
	u.Say(unit.Name, "going back to the image before")
	for i, update := range pending {
		if _, _, tagErr := u.podman(ctx, unit, askTimeout, nil, "tag", "--", before[i].Image, update.Image); tagErr != nil {
			return Failed, fmt.Errorf("%w; not rolled back: podman tag %.12s %s: %w", err, before[i].Image, update.Image, tagErr)
		}
	}
	if u.runs(ctx, unit, pending, before) {
		return RolledBack, err // the reload failed
	}
	if backErr := u.restart(ctx, unit, pending, before, false); backErr != nil {
		return Failed, fmt.Errorf("%w; with the image before: %w", err, backErr)
	}
	return RolledBack, err
}

// runs reports whether the unit is active with the images before. A swap that has failed
// may have started such an image by its ID: podman finds no newer one for that.
func (u *Updater) runs(ctx context.Context, unit Unit, pending []*Update, before []container) bool {
	now, err := u.Manager.Unit(ctx, unit.Name)
	if err != nil || now.ActiveState != "active" || now.InvocationID != unit.InvocationID {
		return false
	}
	for i, update := range pending {
		c, err := u.inspect(ctx, unit, update.Container)
		if err != nil || c.Image != before[i].Image || c.ImageName != before[i].ImageName {
			return false
		}
	}
	return true
}

// restart has the unit run the images of now, and returns an error unless it stays
// active, and its containers become as healthy as they were.
func (u *Updater) restart(ctx context.Context, unit Unit, pending []*Update, before []container, inPlace bool) error {
	if err := u.Manager.Restart(ctx, unit.Name, inPlace); err != nil {
		now, stateErr := u.Manager.Unit(ctx, unit.Name)
		if text := ""; stateErr == nil && inPlace {
			if text = now.Properties.String("StatusText"); text != "" {
				return fmt.Errorf("%w: %s", err, text)
			}
		}
		return u.why(ctx, unit, err)
	}
	first, err := u.Manager.Unit(ctx, unit.Name)
	if err != nil {
		return err
	}
	time.Sleep(settle)
	now, err := u.Manager.Unit(ctx, unit.Name)
	if err != nil {
		return err
	}
	if now.ActiveState != "active" || now.InvocationID != first.InvocationID {
		err := errors.New("the unit does not stay active")
		if now.MainExitStatus != 0 {
			err = fmt.Errorf("%w, its container ended with status %d", err, now.MainExitStatus)
		}
		return u.why(ctx, unit, err)
	}
	for i, update := range pending {
		if !before[i].healthy() {
			continue
		}
		u.Say(unit.Name, "waiting until it is healthy")
		u.podman(ctx, unit, healthTimeout, nil, "wait", "--condition=healthy", "--condition=unhealthy", "--condition=exited", "--", update.Container)
		c, err := u.inspect(ctx, unit, update.Container)
		if err != nil {
			return err
		}
		if !c.healthy() {
			return fmt.Errorf("container %s does not become healthy", update.Container)
		}
	}
	return nil
}

// why adds the journal's reason to an error.
func (u *Updater) why(ctx context.Context, unit Unit, err error) error {
	now, stateErr := u.Manager.Unit(ctx, unit.Name)
	if stateErr != nil {
		return err
	}
	if reason, storyErr := story.LastReason(ctx, now); storyErr == nil && reason != "" {
		return fmt.Errorf("%w: %s", err, reason)
	}
	return err
}
