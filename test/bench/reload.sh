#!/bin/bash
# reload.sh ROUNDS: time "systemctl reload" and "systemctl restart" of one container with
# Reload=beside and one with Reload=swap, in turn. Prints for each the unit, what was done,
# microseconds that it took, and microseconds for which nobody answered at the published
# port, 0 without one. At the end it prints how much memory there is besides in the middle
# of a reload: "memory", the unit, and KiB (Pss).
set -eu
rounds=$1
system=/etc/containers/systemd
mkdir -p $system
for how in beside swap; do
	publish=
	[ $how = beside ] || publish=PublishPort=127.0.0.1:8099:80
	cat >$system/reload-$how.container <<END
[Container]
Image=localhost/busybox
ContainerName=reload-$how
Exec=sh -c 'trap "exit 0" TERM; echo served >/tmp/index.html; busybox httpd -f -p 80 -h /tmp & wait'
$publish
[Service]
User=bench
[X-MainPID]
Reload=$how
END
done
image=/usr/share/oci-mainpid-sandbox/busybox.tar
systemd-run --quiet --pipe --wait --property=User=bench --property=PAMName=login sh -c "podman image exists localhost/busybox || podman import -q $image localhost/busybox" >/dev/null
systemctl daemon-reload
systemctl start reload-beside reload-swap

answers() { # whether the container with the port does
	local line=
	{ exec 3<>/dev/tcp/127.0.0.1/8099 && printf 'GET /index.html HTTP/1.0\r\n\r\n' >&3 &&
		read -r -t 1 line <&3; } 2>/dev/null || :
	exec 3>&- || :
	[[ $line = HTTP* ]]
}

# Writes the time of each answer.
ask() { # FILE
	trap '' PIPE # of who ends in the middle of a question
	while :; do
		! answers || echo "${EPOCHREALTIME/./}"
	done >>"$1"
}

# The longest time between two answers, in microseconds.
longest() { # FILE
	awk 'NR > 1 && $1 - last > most { most = $1 - last } { last = $1 } END { print most + 0 }' "$1"
}

measure() { # HOW WHAT
	local times asker= begin took gap=0
	times=$(mktemp)
	if [ "$1" = swap ]; then
		until answers; do sleep 0.1; done
		ask "$times" &
		asker=$!
		until [ -s "$times" ]; do sleep 0.1; done
	fi
	begin=${EPOCHREALTIME/./}
	systemctl "$2" "reload-$1"
	took=$((${EPOCHREALTIME/./} - begin))
	if [ -n "$asker" ]; then
		until answers; do sleep 0.01; done
		echo "${EPOCHREALTIME/./}" >>"$times"
		kill $asker
		wait $asker || :
		gap=$(longest "$times")
	fi
	rm "$times"
	echo "$1 $2 $took $gap"
}

# The memory of what is there besides while the unit reloads.
memory() { # HOW
	local before most=0 now
	pss() {
		local pid sum=0 kib
		for pid in $(pgrep -U bench 'conmon|busybox|sh|notify-mainpid'); do
			kib=$(awk '/^Pss:/ { print $2 }' "/proc/$pid/smaps_rollup" 2>/dev/null) || continue
			sum=$((sum + ${kib:-0}))
		done
		echo $sum
	}
	before=$(pss)
	systemctl reload "reload-$1" &
	while kill -0 $! 2>/dev/null; do
		now=$(pss)
		[ "$now" -le "$most" ] || most=$now
	done
	echo "memory $1 $((most > before ? most - before : 0)) 0"
}

# The first round does not count.
for ((round = 0; round <= rounds; round++)); do
	for what in $(shuf -e beside:reload beside:restart swap:reload swap:restart); do
		line=$(measure "${what%:*}" "${what#*:}")
		[ $round = 0 ] || echo "$line"
	done
done
memory beside
memory swap
systemctl stop reload-beside reload-swap
