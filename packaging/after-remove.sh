#!/bin/sh
# After the removal of the .deb (remove) and of the .rpm (0).
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac
if [ -d /run/systemd/system ]; then
	# In use, it cannot be unmounted. Where there is no such unit, there is
	# nothing to stop.
	[ -n "$(ls -A /run/oci-mainpid 2>/dev/null)" ] || systemctl stop 'run-oci\x2dmainpid.mount' 2>/dev/null || :
	systemctl daemon-reload || :
fi
# What a unit that could not be stopped has in there stays.
[ ! -d /run/oci-mainpid ] || rmdir --ignore-fail-on-non-empty /run/oci-mainpid
