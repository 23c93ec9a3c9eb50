#!/usr/bin/env bash
# Makes an archive of a minimal Debian root, the ground of all images that are built without an image
# registry. The suite is Debian 12 (bookworm) if none is named.
#
#   minbase.sh FILE [SUITE]       (SANDYARD_DEBIAN_MIRROR: package mirror, default debootstrap's own)
#
# Needs root and debootstrap.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=executor-image/scratch.sh
. "$here/scratch.sh"

file=${1:?usage: minbase.sh FILE [SUITE]}
suite=${2:-bookworm}
work=$file.work
trap 'scratch_close "$work"' EXIT
scratch_open "$work"

mirror=()
if [ -n "${SANDYARD_DEBIAN_MIRROR:-}" ]; then mirror=("$SANDYARD_DEBIAN_MIRROR"); fi
debootstrap --variant=minbase "$suite" "$work" "${mirror[@]}"

# Security updates lie beside the main archive on every full mirror; a mirror without them is used
# as it is.
list=$work/etc/apt/sources.list
archive=$(awk '$1 == "deb" { print $2; exit }' "$list")
archive=${archive%/}
cp "$list" "$list.plain"
{
    echo "deb $archive $suite-updates main"
    echo "deb $archive-security $suite-security main"
} >>"$list"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
if chroot "$work" apt-get -q -o Acquire::Retries=3 -o APT::Update::Error-Mode=any update; then
    chroot "$work" apt-get -q -y -o Acquire::Retries=3 dist-upgrade
else
    echo "minbase.sh: $archive has no security archive beside it; going on without" >&2
    mv "$list.plain" "$list"
fi
rm -f "$list.plain"
chroot "$work" apt-get clean
rm -rf "${work:?}"/var/lib/apt/lists/* "$work"/var/cache/apt/*.bin "${work:?}"/dev/*

tar -C "$work" --numeric-owner -cf "$file.new" .
mv "$file.new" "$file"
