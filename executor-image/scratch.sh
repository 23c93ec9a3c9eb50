# shellcheck shell=bash
# A directory to build a root in; sourced by minbase.sh and build.sh.
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

# Also clears what an interrupted run left: mounts first, or they would be emptied with the rest.
scratch_close() { # DIR
    local mount
    while read -r mount; do umount -l "$mount"; done < <(
        awk -v dir="$(realpath -m "$1")" '$5 == dir || index($5, dir "/") == 1 { print $5 }' \
            /proc/self/mountinfo | sort -r
    )
    rm -rf --one-file-system "$1"
}
