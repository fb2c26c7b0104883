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
# Runs the new generator.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
fi
