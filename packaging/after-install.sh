#!/bin/sh
# After an installation and after an upgrade, of the .deb and of the .rpm. Units
# that run go on running.
set -e
if command -v systemd-tmpfiles >/dev/null; then
	systemd-tmpfiles --create oci-mainpid.conf || :
fi
if command -v journalctl >/dev/null; then
	journalctl --update-catalog || :
fi
if command -v selinuxenabled >/dev/null && selinuxenabled && command -v semodule >/dev/null; then
	if semodule --install=/usr/share/selinux/packages/oci_mainpid.cil; then
		restorecon -R /run/oci-mainpid 2>/dev/null || :
	else
		echo "oci-mainpid-hook: SELinux may keep units from starting: type: semodule --install=/usr/share/selinux/packages/oci_mainpid.cil" >&2
	fi
fi
# Runs the new generator.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
fi
