#!/bin/bash
# start.sh ROUNDS BUILD...: time "systemctl start" of one container in several
# units, with the programs of each BUILD, a directory, installed in turn. Prints
# for each start the unit, the number of the build, microseconds, and microseconds
# that all of the machine was on processors meanwhile.
set -eu
rounds=$1
shift
builds=("$@")
units=(own root mixed user service)
uid=$(id -u bench)

# Of both managers' systemctl the same programs run before it, so that they add
# the same to each time.
control() { # UNIT ARGUMENT...
	local who=root manager=--system
	[ "$1" != own ] || { who=bench && manager=--user; }
	setpriv --reuid=$who --regid=$who --init-groups \
		env XDG_RUNTIME_DIR="/run/user/$uid" systemctl $manager "${@:2}"
}

fail() { # UNIT WHAT
	echo "bench-$1.service: $2" >&2
	control "$1" --no-pager --full status "bench-$1" >&2 || :
	exit 1
}

# The main process is conmon, and of the user that was asked for. With
# Cgroup=user it becomes that a moment after the start.
check() { # UNIT
	local pid comm owner want=$uid try
	[ "$1" != root ] || want=0
	for ((try = 0; try < 500; try++)); do
		pid=$(control "$1" show --value --property=MainPID "bench-$1")
		read -r comm 2>/dev/null <"/proc/$pid/comm" || comm=none
		[ "$comm" != conmon ] || break
		sleep 0.02
	done
	[ "$comm" = conmon ] || fail "$1" "the main process is $comm, not conmon"
	owner=$(stat -c %u "/proc/$pid")
	[ "$owner" = "$want" ] || fail "$1" "the main process belongs to UID $owner, not $want"
}

# What conmon starts when its container ends must not run beside the next start.
stop() { # UNIT
	control "$1" stop "bench-$1"
	local try
	for ((try = 0; try < 500; try++)); do
		pgrep -x 'conmon|podman' >/dev/null || return 0
		sleep 0.02
	done
	fail "$1" "it is stopped, and conmon or podman still runs after 10 s"
}

install_build() { # DIRECTORY
	install -t /usr/bin "$1/oci-mainpid"
	install -t /usr/libexec/oci-mainpid "$1/notify-mainpid" "$1/podman-pause"
	install -t /usr/libexec/oci/hooks.d "$1/oci-mainpid-hook"
	systemctl daemon-reload
	systemctl try-restart 'oci-mainpid-pause@*.service'
}

processor() { # sets used
	read -r _ used </sys/fs/cgroup/cpu.stat
}

measure() { # UNIT
	local begin before
	processor && before=$used
	begin=${EPOCHREALTIME/./}
	control "$1" start "bench-$1" || fail "$1" "it does not start"
	took=$((${EPOCHREALTIME/./} - begin))
	processor && used=$((used - before))
	check "$1"
	stop "$1"
}

system=/etc/containers/systemd own=/home/bench/.config/containers/systemd
mkdir -p $system
runuser -u bench -- mkdir -p $own
for unit in "${units[@]}"; do
	dir=$system
	[ "$unit" != own ] || dir=$own
	# Killed at once, because sleep as PID 1 takes no SIGTERM.
	printf '[Container]\nImage=localhost/busybox\nExec=sleep infinity\nPodmanArgs=--stop-signal=KILL\n' >"$dir/bench-$unit.container"
	case $unit in own | root) continue ;; esac
	printf '\n[Service]\nUser=bench\n' >>"$dir/bench-$unit.container"
	[ "$unit" = mixed ] || printf '\n[X-MainPID]\nCgroup=%s\n' "$unit" >>"$dir/bench-$unit.container"
done
loginctl enable-linger bench
image=/usr/share/oci-mainpid-sandbox/busybox.tar
podman import -q $image localhost/busybox >/dev/null
systemd-run --quiet --pipe --wait --property=User=bench --property=PAMName=login podman import -q $image localhost/busybox >/dev/null
control own daemon-reload

# The first round does not count.
for ((round = 0; round <= rounds; round++)); do
	for build in $(shuf -e "${!builds[@]}"); do
		install_build "${builds[build]}"
		for unit in $(shuf -e "${units[@]}"); do
			measure "$unit"
			[ $round = 0 ] || echo "$unit $build $took $used"
		done
	done
done
