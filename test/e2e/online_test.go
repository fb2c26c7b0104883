//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"oci-mainpid-hook/test/sandbox"
)

// onlineTimeout bounds what fetches and compiles, on a machine that is busy.
const onlineTimeout = 10 * time.Minute

// online runs a command as root with the host's network.
func (m machine) online(stdin string, args ...string) result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(interrupted, onlineTimeout)
	defer cancel()
	return m.finish(ctx, m.box.CommandOnline(ctx, args[0], args[1:]...), stdin, args)
}

// debian installs packages of Debian's.
func (m machine) debian(packages ...string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(interrupted, onlineTimeout)
	defer cancel()
	if err := m.box.Install(ctx, packages...); err != nil {
		m.t.Fatal(err)
	}
}

// dockerHub gives the machine a mirror of docker.io that has two images:
// library/caddy, with Debian's caddy set up as in the real one, and
// library/busybox. Who runs podman pulls them as from docker.io.
func (m machine) dockerHub() {
	m.t.Helper()
	hubs.Lock()
	made := hubs.of[m.box.Suite]
	if made == nil {
		made = sync.OnceValues(func() ([]byte, error) { return makeHub(m.box.Suite) })
		hubs.of[m.box.Suite] = made
	}
	hubs.Unlock()
	hub, err := made()
	if err != nil {
		m.t.Fatal(err)
	}
	m.must(m.feed(string(hub), "sh", "-ec", `
		tar -x -C /
		systemctl enable --quiet --now docker-hub
		until curl -s http://localhost:5000/v2/; do sleep 0.1; done`))
}

// hubs are archives of the files of a mirror, each made once.
var hubs = struct {
	sync.Mutex
	of map[sandbox.Suite]func() ([]byte, error)
}{of: map[sandbox.Suite]func() ([]byte, error){}}

func makeHub(suite sandbox.Suite) (archive []byte, err error) {
	ctx, cancel := context.WithTimeout(interrupted, onlineTimeout)
	defer cancel()
	box, err := sandbox.Boot(ctx, sandbox.Config{Suite: suite})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, box.PowerOff(context.Background())) }()
	if err := box.Install(ctx, "docker-registry", "caddy"); err != nil {
		return nil, err
	}
	const script = `
		exec 3>&1 >&2
		cat >/etc/docker/registry/config.yml <<-END
			version: 0.1
			storage: {filesystem: {rootdirectory: /var/lib/docker-registry}}
			http: {addr: "127.0.0.1:5000"}
		END
		cat >/etc/systemd/system/docker-hub.service <<-END
			[Service]
			ExecStart=/usr/bin/docker-registry serve /etc/docker/registry/config.yml
			[Install]
			WantedBy=multi-user.target
		END
		cat >/etc/containers/registries.conf.d/50-docker-hub.conf <<-END
			[[registry]]
			prefix = "docker.io"
			location = "localhost:5000"
			insecure = true
		END
		systemctl restart docker-registry
		# Nobody's own store has the images beforehand.
		hub=/var/tmp/docker-hub
		podman() { command podman --root $hub/storage --runroot /run/docker-hub "$@"; }
		mkdir -p $hub/caddy
		podman import --quiet "$1" docker.io/library/busybox
		tar -x -C $hub/caddy -f "$1"
		cp /usr/bin/caddy $hub/caddy/bin
		cp --dereference --parents $(ldd /usr/bin/caddy | grep -o '/[^ ]*') \
			/etc/caddy/Caddyfile /usr/share/caddy/index.html $hub/caddy
		tar -c -C $hub/caddy . | podman import --quiet --change 'CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile"]' \
			--change 'EXPOSE 80' - docker.io/library/caddy
		until curl -s http://localhost:5000/v2/; do sleep 0.1; done
		for image in library/caddy library/busybox; do
			podman push --quiet --tls-verify=false docker.io/$image localhost:5000/$image
		done
		tar -c -C / usr/bin/docker-registry etc/docker/registry/config.yml etc/systemd/system/docker-hub.service \
			etc/containers/registries.conf.d/50-docker-hub.conf var/lib/docker-registry >&3`
	var stderr bytes.Buffer
	cmd := box.Command(ctx, "sh", "-ec", script, "sh", sandbox.BusyboxTar)
	cmd.Stderr = &stderr
	if archive, err = cmd.Output(); err != nil {
		return nil, fmt.Errorf("make a mirror of docker.io: %w\n%s", err, &stderr)
	}
	return archive, nil
}

// nginx puts library/nginx into the mirror of docker.io, with Debian's nginx.
func (m machine) nginx() {
	m.t.Helper()
	m.debian("nginx-light")
	m.shell(`
		systemctl disable --quiet --now nginx
		image=/var/tmp/nginx-image
		mkdir -p $image/var/lib/nginx $image/var/log/nginx $image/run
		tar -x -C $image -f "$1"
		cp --dereference --parents /usr/sbin/nginx $(ldd /usr/sbin/nginx | grep -o '/[^ ]*') /etc/passwd /etc/group $image
		podman() { command podman --root $image.storage --runroot /run/nginx-image "$@"; }
		tar -c -C $image . | podman import --quiet --change 'CMD ["/usr/sbin/nginx", "-g", "daemon off; error_log stderr;"]' - docker.io/library/nginx
		podman push --quiet --tls-verify=false docker.io/library/nginx localhost:5000/library/nginx
		rm -rf $image $image.storage /run/nginx-image`, sandbox.BusyboxTar)
}
