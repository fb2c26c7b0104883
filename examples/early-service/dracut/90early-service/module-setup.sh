#!/bin/bash
# shellcheck disable=SC2154 # dracut sets these variables

# called by dracut
check() {
    require_binaries early-service || return 1
    return 0
}

# called by dracut
depends() {
    echo systemd-initrd
}

# called by dracut
install() {
    inst_multiple early-service "$systemdsystemunitdir/early-service-initrd.service"
    $SYSTEMCTL -q --root "$initdir" add-wants sysinit.target early-service-initrd.service
}
