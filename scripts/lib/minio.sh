# shellcheck shell=bash
# MinIO, for tests and for `demo --store minio`. Sets MINIO to its program.
#
# A program on PATH is taken as it is. Else it is copied out of the container image, where a registry
# answers or the image is there already. Else it is built from its Go module, which is one of the
# ways its authors document; about 3 minutes, once.
set -euo pipefail

readonly MINIO_IMAGE=${SANDYARD_MINIO_IMAGE:-minio/minio}
# Release tags of MinIO are not Go versions; this is the commit of the newest state of its module.
readonly MINIO_MODULE=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c

ensure_minio() {
    if have minio; then
        MINIO=$(command -v minio)
        return
    fi
    MINIO=$BIN/minio
    if [ -x "$MINIO" ] && is_current minio "$MINIO_MODULE"; then return; fi
    make_minio
    set_current minio "$MINIO_MODULE"
}

make_minio() {
    if minio_image_is_there; then
        step minio "copy MinIO out of its image" copy_minio
    else
        have go || die "no 'minio' on PATH, no image $MINIO_IMAGE, and no Go to build it with: install one of them (Go 1.24 or later)"
        step minio "build MinIO from its Go module (once, about 3 minutes)" build_minio
    fi
}

minio_image_is_there() {
    docker image inspect "$MINIO_IMAGE" >/dev/null 2>&1 && return
    [ -z "${SANDYARD_OFFLINE:-}" ] && timeout 120 docker pull -q "$MINIO_IMAGE" >/dev/null 2>&1
}

copy_minio() {
    local container path
    container=$(docker create "$MINIO_IMAGE")
    for path in /usr/bin/minio /opt/bin/minio; do
        if docker cp -L "$container:$path" "$BIN/minio.new"; then break; fi
    done
    docker rm "$container" >/dev/null
    finish_minio
}

build_minio() {
    rm -rf "$BIN/minio.build"
    GOBIN=$BIN/minio.build CGO_ENABLED=0 retry 2 \
        go install -trimpath -ldflags '-s -w' "$MINIO_MODULE"
    mv "$BIN/minio.build/minio" "$BIN/minio.new"
    rm -rf "$BIN/minio.build"
    finish_minio
}

finish_minio() {
    chmod 0755 "$BIN/minio.new"
    "$BIN/minio.new" --version
    mv "$BIN/minio.new" "$BIN/minio"
}
