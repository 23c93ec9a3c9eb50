#!/bin/sh
# Packs the bundle that carries the executor, the code interpreter and the FUSE programs into sandboxes.
#
#   bundle.sh EXECUTOR INTERPRETER PRELOAD.so FUSE.tar OUT.tar
#
# Same content, same archive: its hash names the engine's volume it is unpacked into. Needs GNU tar.
set -eu

executor=$1 interpreter=$2 preload=$3 fuse=$4 out=$5
tree=$out.tree
rm -rf "$tree"
mkdir -p "$tree/fuse" "$tree/run" "$tree/cache"
tar -C "$tree/fuse" -xf "$fuse"
install -m 0644 "$preload" "$tree/fuse/lib/sandyard-s3fs-guard.so"
install -m 0755 "$executor" "$tree/executor"
install -m 0755 "$interpreter" "$tree/interpreter"
find "$tree" -type d -exec chmod 0755 {} +
tar -C "$tree" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf "$out.new" .
mv "$out.new" "$out"
rm -rf "$tree"
