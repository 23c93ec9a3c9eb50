#!/usr/bin/env bash
# Makes the images of compose.yaml without an image registry: the server's from the local build, and one
# of MinIO. Prints what to export, so that compose takes them.
#
#   eval "$(compose/build-offline.sh)"
# shellcheck source=scripts/lib/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib/setup.sh"

readonly SERVER_IMAGE=sandyard/server:local MINIO_LOCAL_IMAGE=sandyard/minio:local
readonly GROUND=sandyard/debian:local

ensure_ground() {
    local inputs
    is_root || die "making images without a registry needs root: run this with sudo"
    ensure_minbase
    inputs=$(cat "$STATE/stamps/minbase")
    if image_has_inputs "$GROUND" "$inputs"; then return; fi
    step ground-image "import the minimal Debian root" docker import \
        --change "LABEL $INPUTS_LABEL=$inputs" "$STATE/cache/minbase.tar" "$GROUND"
}

# build_image IMAGE DOCKERFILE FILE...: the Dockerfile copies the files, which lie beside it.
build_image() {
    local image=$1 dockerfile=$2 inputs old context=$STATE/cache/context
    shift 2
    inputs=$(hash_text "$dockerfile" "$(sha256sum "$@")" "$(docker image inspect --format '{{.Id}}' "$GROUND")")
    if image_has_inputs "$image" "$inputs"; then return; fi
    old=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null || true)
    rm -rf "$context"
    mkdir -p "$context"
    cp -l "$@" "$context" 2>/dev/null || cp "$@" "$context"
    printf '%s\n' "$dockerfile" >"$context/Dockerfile"
    step "image-${image//[^a-z]/-}" "make $image" \
        docker build --label "$INPUTS_LABEL=$inputs" --tag "$image" "$context"
    rm -rf "$context"
    # Still there only if a container uses it.
    if [ -n "$old" ]; then docker rmi "$old" >/dev/null 2>&1 || true; fi
}

build_server_image() {
    tar -xf "$STATE/cache/fuse.tar" -C "$STATE/cache" --strip-components 4 ./etc/ssl/certs/ca-certificates.crt
    build_image "$SERVER_IMAGE" "FROM $GROUND
COPY ca-certificates.crt /etc/ssl/certs/
COPY sandyard sandyard-bundle.tar entrypoint.sh /usr/local/bin/
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV SANDYARD_DATA_DIR=/data SANDYARD_API__KEY_FILE=/data/api.key
VOLUME /data
ENTRYPOINT [\"/usr/local/bin/entrypoint.sh\"]
CMD [\"up\"]" \
        "$STATE/cache/ca-certificates.crt" "$BIN/sandyard" "$BIN/sandyard-bundle.tar" "$ROOT/compose/entrypoint.sh"
    # The program was linked on this machine; its libc may be newer than the image's.
    docker run --rm --network none --entrypoint /usr/local/bin/sandyard "$SERVER_IMAGE" --version >/dev/null ||
        die "the server built here does not run on Debian 12; build it on such a machine, or use compose/Dockerfile"
}

build_minio_image() {
    build_image "$MINIO_LOCAL_IMAGE" "FROM $GROUND
COPY minio /usr/local/bin/
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT [\"/usr/local/bin/minio\"]" "$MINIO"
}

if [ -z "${SANDYARD_SETUP_DONE:-}" ]; then lock_setup; fi
setup_server
ensure_minio
ensure_ground
build_server_image
build_minio_image
echo "export SANDYARD_SERVER_IMAGE=$SERVER_IMAGE"
echo "export SANDYARD_MINIO_IMAGE=$MINIO_LOCAL_IMAGE"
