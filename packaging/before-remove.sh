#!/bin/sh
# Before the removal of the .deb (remove) and of the .rpm (0); nothing before an
# upgrade. Units cannot be stopped properly once their drop-ins and
# notify-mainpid are gone, so they are stopped here.
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac
say() { echo "oci-mainpid-hook: $*" >&2; }

# The user stands in the Quadlet file itself, so none of these units becomes root's.
files=$(oci-mainpid quadlet-files || :)
if [ -n "$files" ]; then
	say "without this package, the units of these Quadlet files fail to start, and none runs as root:"
	printf '%s\n' "$files" | while IFS= read -r file; do
		echo "  $file: to remove its unit, type: rm '$file'" >&2
	done
	say "to run such a unit as root instead, delete User= in [Service] of its file"
fi
# The drop-ins that oci-mainpid generate made for services. They stay: without its
# drop-in, a unit file that has no User= of its own would be root's.
found=
for dropin in /etc/systemd/system/*.service.d/50-oci-mainpid.conf; do
	case $dropin in */user@* | */user-runtime-dir@*) continue ;; esac # after-remove.sh
	[ -f "$dropin" ] && read -r origin <"$dropin" || continue
	unit=${dropin%.d/*}
	unit=${unit##*/}
	case $origin in
	"# Made by oci-mainpid generate"*.service | "# Made by oci-mainpid generate"*.service\") advice="to keep $unit from being started, type: systemctl disable '$unit'" ;;
	"# Made by oci-mainpid generate"*) advice="its Quadlet file has the user, so type: rm '$dropin'" ;;
	*) continue ;;
	esac
	[ -n "$found" ] || say "without this package, the units of these drop-ins fail to start, and none runs as root:"
	found=yes
	echo "  $dropin: $advice" >&2
done
[ -z "$found" ] || say "write User= into a unit file before you delete its drop-in: a unit file without User= is root's"

if command -v systemctl >/dev/null; then
	systemctl disable --quiet --now oci-mainpid-auto-update.timer oci-mainpid-metrics.timer || :
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
