#!/usr/bin/env bash
# Installs s3fs on this machine and checks that it can mount. Optional: sandboxes bring their own; this is
# for mounting a workspace's bucket on the host itself.
#
#   scripts/install_s3fs.sh
#
# Debian and Ubuntu by apt, macOS by Homebrew.
set -euo pipefail

die() {
    echo "error: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

install_debian() {
    echo "installing s3fs with apt"
    as_root apt-get -q -o DPkg::Lock::Timeout=300 update
    # fuse, not fuse3: s3fs is built with the older library, and images that carry both do not work.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 \
        install -y --no-install-recommends s3fs fuse
}

install_macos() {
    command -v brew >/dev/null || die "Homebrew is missing: install it, then run this again"
    echo "installing macFUSE and s3fs with Homebrew"
    brew install --cask macfuse
    brew install gromgit/fuse/s3fs-mac
    echo "macOS asks once to allow macFUSE's system extension, in the security settings, and for a restart"
}

install_s3fs() {
    case $(uname -s) in
        Darwin) install_macos ;;
        Linux)
            command -v apt-get >/dev/null ||
                die "only Debian, Ubuntu and macOS are known here: install the package 's3fs' or 's3fs-fuse' of your distribution"
            install_debian
            ;;
        *) die "s3fs runs on Linux and macOS, not on $(uname -s)" ;;
    esac
}

check_fuse() {
    [ "$(uname -s)" = Linux ] || return 0
    if [ ! -e /dev/fuse ]; then
        as_root modprobe fuse 2>/dev/null || true
    fi
    [ -c /dev/fuse ] || die "/dev/fuse is missing: load the kernel module 'fuse'; in a virtual machine or container, ask for the device"
    # Opening it is what a mount does first; a container may show the device and forbid it.
    as_root sh -c 'exec 3<>/dev/fuse' || die "/dev/fuse is there, but cannot be opened: the container or VM forbids the device"
    echo "ok: /dev/fuse can be opened"
}

if command -v s3fs >/dev/null; then
    echo "s3fs is installed already"
else
    install_s3fs
fi
version=$(s3fs --version 2>/dev/null | head -n 1) || true
[ -n "$version" ] || die "s3fs is installed, but does not start: run 's3fs --version' to see why"
echo "ok: $version"
check_fuse
