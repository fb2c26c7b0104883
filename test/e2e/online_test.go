//go:build e2e

package e2e

import (
	"context"
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
	m.debian("docker-registry", "caddy")
	m.shell(`
		systemctl disable --quiet --now caddy
		cat >/etc/docker/registry/config.yml <<-END
			version: 0.1
			storage: {filesystem: {rootdirectory: /var/lib/docker-registry}}
			http: {addr: "127.0.0.1:5000"}
		END
		systemctl restart docker-registry
		cat >/etc/containers/registries.conf.d/50-docker-hub.conf <<-END
			[[registry]]
			prefix = "docker.io"
			location = "localhost:5000"
			insecure = true
		END
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
		rm -rf $hub /run/docker-hub`, sandbox.BusyboxTar)
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
