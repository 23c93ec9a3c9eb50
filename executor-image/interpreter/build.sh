#!/usr/bin/env bash
# Makes the ground of a code interpreter's image without an image registry: a minimal Debian 13 root, install.sh,
# customize.sh of the base image, `docker import`. The result is the same as that of ground.Dockerfile.
#
#   build.sh --tag NAME:TAG [--label K=V]... --work DIR --minbase FILE PACKAGE-LIST...
#
#   --work     directory for the root being built; emptied first, removed at the end
#   --minbase  archive of a minimal Debian 13 root; made by ../minbase.sh
#
# Needs root (chroot, mount).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=executor-image/scratch.sh
. "$here/../scratch.sh"

tag='' work='' minbase=''
changes=() lists=()
while [ $# -gt 0 ]; do
    case $1 in
        --tag) tag=${2:?}; shift ;;
        --label) changes+=(--change "LABEL ${2%%=*}=\"${2#*=}\""); shift ;;
        --work) work=${2:?}; shift ;;
        --minbase) minbase=${2:?}; shift ;;
        -*) echo "build.sh: unknown argument $1" >&2; exit 2 ;;
        *) lists+=("$1") ;;
    esac
    shift
done
: "${tag:?build.sh: --tag is missing}" "${work:?build.sh: --work is missing}"
: "${minbase:?build.sh: --minbase is missing}" "${lists:?build.sh: no list of packages}"
root=$work/root

unpack() {
    scratch_unpack "$work" "$minbase"
    # This machine's own authorities, for its package mirrors. They do not go into the image.
    mkdir -p "$root/run/build"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/run/build/ca.crt"
    cp -r "$here/." "$here/../customize.sh" "$root/run/build/"
}

in_root() {
    chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        PIP_CERT=/run/build/ca.crt NODE_EXTRA_CA_CERTS=/run/build/ca.crt "$@"
}

customize() {
    # The base image has FUSE programs of its own to configure; here are none.
    : >"$root/etc/fuse.conf"
    in_root sh /run/build/customize.sh
    rm -rf "$root/etc/fuse.conf" "$root/run/build" "$root/usr/sbin/policy-rc.d" "$root/root/.npm"
    umount "$root/dev" "$root/proc"
    # What belongs to the building machine; the engine provides these files in a container.
    : >"$root/etc/resolv.conf"
    echo localhost >"$root/etc/hostname"
    : >"$root/etc/machine-id"
}

trap 'scratch_close "$work"' EXIT
unpack
in_root sh /run/build/install.sh /run/build "${lists[@]}"
customize
tar -C "$root" --numeric-owner --one-file-system -cf - . |
    docker import "${changes[@]}" - "$tag" >/dev/null
