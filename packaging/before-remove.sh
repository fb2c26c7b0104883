#!/bin/sh
# Before the removal of the .deb (remove) and of the .rpm (0); nothing before an
# upgrade. Units cannot be stopped properly once their drop-ins and
# notify-mainpid are gone, so they are stopped here.
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac
[ -d /run/systemd/system ] || exit 0
for directory in /run/oci-mainpid/*/; do
	[ -d "$directory" ] || continue
	unit=${directory#/run/oci-mainpid/}
	systemctl stop -- "${unit%/}" || :
done
systemctl stop 'oci-mainpid-pause@*.service' || :
