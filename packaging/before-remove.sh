#!/bin/sh
# Before the removal of the .deb (remove) and of the .rpm (0); nothing before an
# upgrade. Units cannot be stopped properly once their drop-ins and
# notify-mainpid are gone, so they are stopped here.
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac
say() { echo "oci-mainpid-hook: $*" >&2; }

files=$(grep -Rls --devices=skip '^\[X-MainPID\]' /etc/containers/systemd /run/containers/systemd /usr/share/containers/systemd || :)
if [ -n "$files" ]; then
	say "without this package Quadlet does not know [X-MainPID], and starts as root what these files describe; remove them, or mask their units:"
	echo "$files" >&2
fi
# Drop-ins of oci-mainpid generate. They stay: without its drop-in, a unit that
# has no User= of its own would run as root.
files=
for file in /etc/systemd/system/*.service.d/50-oci-mainpid.conf; do
	case $file in */user@* | */user-runtime-dir@*) continue ;; esac # after-remove.sh
	! grep -qs '^# Made by oci-mainpid' "$file" || files="$files$file
"
done
if [ -n "$files" ]; then
	say "the units of these drop-ins fail without this package. A unit whose drop-in you delete runs as the User= of its own, or else as root:"
	printf %s "$files" >&2
fi

[ -d /run/systemd/system ] || exit 0
set --
for directory in /run/oci-mainpid/*.service/; do
	[ -d "$directory" ] || continue
	directory=${directory%/}
	set -- "$@" "${directory##*/}"
done
if [ $# -gt 0 ]; then
	# All at the same time. systemd gives each of them 90 s, unless it has a
	# TimeoutStopSec= of its own, and goes on stopping them after the two minutes.
	timeout 120 systemctl stop -- "$@" || :
	left=$(systemctl list-units --plain --no-legend --no-pager --state=active,activating,deactivating,reloading -- "$@" | cut -d ' ' -f 1 || :)
	[ -z "$left" ] || say "still running: end them with systemctl kill --signal=KILL" $left
fi
systemctl stop 'oci-mainpid-pause@*.service' || :
