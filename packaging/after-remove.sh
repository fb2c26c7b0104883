#!/bin/sh
# After the removal of the .deb (remove) and of the .rpm (0).
set -e
case $1 in remove | 0) ;; *) exit 0 ;; esac

# managers prints the users' managers that drop-ins of this package keep, see
# KeepManager in the source. systemd remembers the drop-ins until it is reloaded.
managers() {
	for manager in $(systemctl list-units --plain --no-legend --no-pager --state=active 'user@*.service' | cut -d ' ' -f 1); do
		case $(systemctl show --property=DropInPaths --value -- "$manager") in
		*/50-oci-mainpid.conf*) echo "$manager" ;;
		esac
	done
}

# needed reports whether the user lingers or has a session, or an active unit
# needs the user's manager.
needed() { # user@UID.service
	uid=${1#user@}
	uid=${uid%.service}
	[ "$(loginctl show-user --property=Linger --value "$uid" 2>/dev/null)" != yes ] || return 0
	for session in $(loginctl show-user --property=Sessions --value "$uid" 2>/dev/null); do
		case $(loginctl show-session --property=Class --value "$session" 2>/dev/null) in
		manager*) ;; # that of the manager itself
		*) return 0 ;;
		esac
	done
	for unit in $(systemctl show --property=WantedBy --property=RequiredBy --property=BoundBy --value -- "$1"); do
		! systemctl is-active --quiet -- "$unit" || return 0
	done
	return 1
}

kept=
if [ -d /run/systemd/system ]; then
	kept=$(managers || :)
fi
# Of oci-mainpid generate. No unit runs that they are for.
for file in /etc/systemd/system/user@*.service.d/50-oci-mainpid.conf /etc/systemd/system/user-runtime-dir@*.service.d/50-oci-mainpid.conf; do
	if grep -qs '^# Made by oci-mainpid' "$file"; then
		rm -f -- "$file"
		rmdir --ignore-fail-on-non-empty -- "${file%/*}"
	fi
done
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
	set --
	for manager in $kept; do
		needed "$manager" || set -- "$@" "$manager"
	done
	[ $# -eq 0 ] || timeout 60 systemctl stop -- "$@" || :
fi
rmdir /run/oci-mainpid 2>/dev/null || :
if command -v journalctl >/dev/null; then
	journalctl --update-catalog || :
fi
if command -v selinuxenabled >/dev/null && selinuxenabled && command -v semodule >/dev/null; then
	semodule --remove=oci_mainpid || :
fi
