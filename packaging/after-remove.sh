#!/bin/sh
# After the removal of the .deb (remove) and of the .rpm (0).
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac
if [ -d /run/systemd/system ]; then
	for directory in /run/oci-mainpid/users/*/; do
		umount "$directory" 2>/dev/null || :
		rmdir "$directory" 2>/dev/null || :
	done
	rmdir /run/oci-mainpid/users 2>/dev/null || :
	# Not as long as a unit that could not be stopped has its files there. rpm runs
	# this in a mount namespace of its own, where it stays mounted.
	if [ -z "$(ls -A /run/oci-mainpid 2>/dev/null)" ] && systemctl stop 'run-oci\x2dmainpid.mount' 2>/dev/null; then
		umount /run/oci-mainpid 2>/dev/null || :
	fi
	systemctl daemon-reload || :
fi
rmdir /run/oci-mainpid 2>/dev/null || :
if command -v journalctl >/dev/null; then
	journalctl --update-catalog || :
fi
