# shellcheck shell=bash
# A directory to build a root in; sourced by minbase.sh and by both build.sh.
#
# dpkg flushes every file it writes. In memory that costs nothing: 45 s instead of 3 to 4 minutes on
# a slow disk. With too little memory the directory stays on disk.

readonly SCRATCH_NEEDED_KIB=$((4 * 1024 * 1024))

scratch_open() { # DIR
    scratch_close "$1"
    mkdir -p "$1"
    local available
    available=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
    if [ "${available:-0}" -ge "$SCRATCH_NEEDED_KIB" ]; then
        mount -t tmpfs -o "size=${SCRATCH_SIZE:-3g},mode=0755" sandyard-build "$1" || true
    fi
}

# A root to install packages in: DIR/root, with what packages need while they are installed.
scratch_unpack() { # DIR MINBASE.tar
    local root=$1/root
    scratch_open "$1"
    mkdir "$root"
    tar -C "$root" --numeric-owner -xpf "$2"
    mount -t proc proc "$root/proc"
    mount --bind /dev "$root/dev"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    # Nothing that a package brings is started while the image is made.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 0755 "$root/usr/sbin/policy-rc.d"
}

# Also clears what an interrupted run left: mounts first, or they would be emptied with the rest.
scratch_close() { # DIR
    local mount
    while read -r mount; do umount -l "$mount"; done < <(
        awk -v dir="$(realpath -m "$1")" '$5 == dir || index($5, dir "/") == 1 { print $5 }' \
            /proc/self/mountinfo | sort -r
    )
    rm -rf --one-file-system "$1"
}
