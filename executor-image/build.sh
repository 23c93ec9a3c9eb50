#!/usr/bin/env bash
# Makes the base image without an image registry: debootstrap, the packages of packages.txt,
# customize.sh, `docker import`. The result is the same as the Dockerfile's.
#
#   build.sh --tag NAME:TAG [--label K=V]... --work DIR --minbase FILE
#
#   --work     directory for the root being built; emptied first, removed at the end
#   --minbase  archive of a minimal Debian root; made by minbase.sh
#
# Needs root (chroot, mount).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=executor-image/scratch.sh
. "$here/scratch.sh"

tag='' work='' minbase=''
changes=()
while [ $# -gt 0 ]; do
    case $1 in
        --tag) tag=${2:?} ;;
        --label) changes+=(--change "LABEL ${2%%=*}=\"${2#*=}\"") ;;
        --work) work=${2:?} ;;
        --minbase) minbase=${2:?} ;;
        *) echo "build.sh: unknown argument $1" >&2; exit 2 ;;
    esac
    shift 2
done
: "${tag:?build.sh: --tag is missing}" "${work:?build.sh: --work is missing}"
: "${minbase:?build.sh: --minbase is missing}"
root=$work/root

in_root() {
    chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}

install_packages() {
    local packages
    mapfile -t packages < <(sed 's/#.*//' "$here/packages.txt" | xargs -n 1)
    in_root apt-get -q -o Acquire::Retries=5 update
    in_root apt-get -q -o Acquire::Retries=5 -o Dpkg::Options::=--force-unsafe-io \
        install -y --no-install-recommends "${packages[@]}"
}

customize() {
    cp "$here/customize.sh" "$root/customize.sh"
    in_root sh /customize.sh
    rm -f "$root/customize.sh" "$root/usr/sbin/policy-rc.d"
    umount "$root/dev" "$root/proc"
    # What belongs to the building machine; the engine provides these files in a container.
    : >"$root/etc/resolv.conf"
    echo localhost >"$root/etc/hostname"
    : >"$root/etc/machine-id"
}

trap 'scratch_close "$work"' EXIT
scratch_unpack "$work" "$minbase"
install_packages
customize
tar -C "$root" --numeric-owner --one-file-system -cf - . | docker import \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
    --change 'WORKDIR /home/user' --change 'USER user' --change 'CMD ["/bin/bash"]' \
    "${changes[@]}" - "$tag" >/dev/null
