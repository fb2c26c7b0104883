#!/bin/bash
# podman.sh ROUNDS: time "podman run -d" with the hook and without it, in turns.
# Prints "with" or "without" and microseconds for each run.
rounds=$1
hooks=/usr/share/containers/oci/hooks.d
none=$(mktemp -d) || exit
trap 'rmdir "$none"' EXIT

run() { # hooks_dir
	local start=${EPOCHREALTIME/./}
	podman --hooks-dir "$1" run -d --name bench localhost/busybox sleep infinity >/dev/null || exit
	took=$((${EPOCHREALTIME/./} - start))
}

# The runtime must have been told of the hook, or not. config.json is one line.
check() { # 1 or 0
	[ "$(grep -c oci-mainpid-hook "$(podman inspect -f '{{.OCIConfigPath}}' bench)")" = "$1" ] && return
	echo "podman did not do with the hook what was asked for" >&2
	exit 1
}

# What conmon starts when its container ends must not run beside the next one.
remove() {
	podman rm -f -t 0 bench >/dev/null || exit
	while pgrep -u "$UID" -x 'conmon|podman' >/dev/null; do sleep 0.01; done
}

podman import -q /usr/share/oci-mainpid-sandbox/busybox.tar localhost/busybox >/dev/null || exit
run "$hooks"; check 1; remove
run "$none"; check 0; remove

for ((i = 0; i < rounds; i++)); do
	order="with without"
	((RANDOM % 2)) && order="without with"
	for which in $order; do
		dir=$none
		[ $which = with ] && dir=$hooks
		run "$dir"
		echo "$which $took"
		remove
	done
done
