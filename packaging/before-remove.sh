#!/bin/sh
# Before the removal of the .deb (remove) and of the .rpm (0); nothing before an
# upgrade. Units cannot be stopped properly once their drop-ins and
# notify-mainpid are gone, so they are stopped here.
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac
files=$(grep -Rls --devices=skip '^\[X-MainPID\]' /etc/containers/systemd /run/containers/systemd /usr/share/containers/systemd || :)
if [ -n "$files" ]; then
	echo "oci-mainpid-hook: without this package Quadlet does not know [X-MainPID], and starts as root what these files describe; remove them, or mask their units:" >&2
	echo "$files" >&2
fi
[ -d /run/systemd/system ] || exit 0
for directory in /run/oci-mainpid/*.service/; do
	[ -d "$directory" ] || continue
	unit=${directory#/run/oci-mainpid/}
	systemctl stop -- "${unit%/}" || :
done
systemctl stop 'oci-mainpid-pause@*.service' || :
