#!/bin/sh
# Writes the FUSE programs' own root to standard output, as a tar archive: s3fs, rclone, fusermount,
# the loader and every library they load, certificates, and the empty directories that the executor
# mounts on. Runs as root inside the base image:
#
#   docker run --rm -i --network none --user root IMAGE sh -s < fuse-tree.sh > fuse.tar
#
# Every sandbox's FUSE program is executed from this tree and never from the image the sandbox was
# started from: root inside could replace it there. The archive depends on the image's content only.
set -eu

tree=/tmp/fuse
programs='s3fs rclone fusermount'

# One file, under the path the loader will ask for, whatever links lead to it here.
take() {
    mkdir -p "$tree$(dirname "$1")"
    cp -L "$1" "$tree$1"
}

# Paths of all libraries of a program, the loader included. A missing one is an error: ldd would
# only print it.
libraries() {
    ldd "$1" >/tmp/ldd
    if grep 'not found' /tmp/ldd >&2; then
        echo "fuse-tree.sh: $1 lacks libraries" >&2
        exit 1
    fi
    sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' /tmp/ldd
}

mkdir -p "$tree/bin"
for program in $programs; do
    cp -L "$(command -v "$program")" "$tree/bin/$program"
    chmod 0755 "$tree/bin/$program" # no set-user-id bit: it is root's already
    libraries "$tree/bin/$program"
done | sort -u >/tmp/libraries
# The name service of libc, which it loads by itself.
for library in /lib/*/libnss_dns.so.2 /lib/*/libnss_files.so.2; do
    if [ -e "$library" ]; then echo "$library"; fi
done >>/tmp/libraries
while read -r library; do take "$library"; done </tmp/libraries

mkdir -p "$tree/etc/ssl/certs"
cp /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"
cp /etc/mime.types "$tree/etc/" 2>/dev/null || : >"$tree/etc/mime.types"
echo 'root:x:0:0:root:/:/bin/false' >"$tree/etc/passwd"
echo 'root:x:0:' >"$tree/etc/group"
echo 'hosts: files dns' >"$tree/etc/nsswitch.conf"
echo 'user_allow_other' >"$tree/etc/fuse.conf"
# Empty, to be covered by the container's own, so that names resolve.
: >"$tree/etc/hosts"
: >"$tree/etc/resolv.conf"
for directory in dev proc tmp mnt; do mkdir "$tree/$directory"; done

# The tree must stand on its own. (rclone opens /dev/null when it starts; in a sandbox the executor
# provides it.)
mknod -m 0666 "$tree/dev/null" c 1 3
chroot "$tree" /bin/s3fs --version >&2
chroot "$tree" /bin/rclone version >&2
rm -rf "$tree/dev/null" "$tree/root"

tar -C "$tree" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf - .
