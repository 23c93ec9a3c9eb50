# shellcheck shell=bash
# The base image and the archives made from it.
set -euo pipefail

readonly BASE_IMAGE=sandyard/base
readonly INPUTS_LABEL=dev.sandyard.inputs

# The label is this image's stamp: it goes with the image, so an image that was removed or replaced
# by hand is made again.
image_has_inputs() { # IMAGE HASH
    [ "$(docker image inspect --format "{{index .Config.Labels \"$INPUTS_LABEL\"}}" "$1" 2>/dev/null)" = "$2" ]
}

ensure_base_image() {
    local inputs
    inputs=$(hash_of executor-image/packages.txt executor-image/customize.sh \
        executor-image/Dockerfile executor-image/build.sh)
    if image_has_inputs "$BASE_IMAGE:latest" "$inputs"; then return; fi
    if image_has_inputs "$BASE_IMAGE:$inputs" "$inputs"; then
        docker tag "$BASE_IMAGE:$inputs" "$BASE_IMAGE:latest"
        return
    fi
    if base_is_reachable; then
        step base-image "build the base image from its Dockerfile" \
            docker build --tag "$BASE_IMAGE:building" --label "$INPUTS_LABEL=$inputs" \
            --build-arg "FROM=$SANDYARD_BASE_FROM" "$ROOT/executor-image"
    else
        say "[set-up] no image registry answers: making the base image from Debian packages"
        build_base_image_offline "$inputs"
    fi
    docker tag "$BASE_IMAGE:building" "$BASE_IMAGE:$inputs"
    docker tag "$BASE_IMAGE:building" "$BASE_IMAGE:latest"
    docker rmi "$BASE_IMAGE:building" >/dev/null
}

: "${SANDYARD_BASE_FROM:=debian:bookworm-slim}"

# SANDYARD_OFFLINE=1 skips the try.
base_is_reachable() {
    [ -z "${SANDYARD_OFFLINE:-}" ] || return 1
    docker image inspect "$SANDYARD_BASE_FROM" >/dev/null 2>&1 ||
        timeout 120 docker pull -q "$SANDYARD_BASE_FROM" >/dev/null 2>&1
}

build_base_image_offline() { # HASH
    is_root || die "making the base image without a registry needs root: run this once with sudo"
    ensure_minbase
    step base-image "install the base image's packages" \
        "$ROOT/executor-image/build.sh" --tag "$BASE_IMAGE:building" --label "$INPUTS_LABEL=$1" \
        --work "$STATE/cache/base-image" --minbase "$STATE/cache/minbase.tar"
}

# The minimal Debian root that images without a registry start from.
ensure_minbase() {
    local inputs
    inputs=$(hash_of executor-image/minbase.sh)
    if [ -f "$STATE/cache/minbase.tar" ] && is_current minbase "$inputs"; then return; fi
    apt_ensure debootstrap
    step minbase "make a minimal Debian root" \
        "$ROOT/executor-image/minbase.sh" "$STATE/cache/minbase.tar"
    set_current minbase "$inputs"
}

# The FUSE programs with all they load, as an archive.
ensure_fuse_tree() {
    local image inputs
    image=$(docker image inspect --format '{{.Id}}' "$BASE_IMAGE:latest")
    inputs=$(hash_text "$image" "$(hash_of executor-image/fuse-tree.sh)")
    if [ -f "$STATE/cache/fuse.tar" ] && is_current fuse-tree "$inputs"; then return; fi
    step fuse-tree "collect the FUSE programs" make_fuse_tree
    set_current fuse-tree "$inputs"
}

make_fuse_tree() {
    docker run --rm -i --network none --user root --entrypoint /bin/sh "$BASE_IMAGE:latest" -s \
        <"$ROOT/executor-image/fuse-tree.sh" >"$STATE/cache/fuse.tar.new"
    mv "$STATE/cache/fuse.tar.new" "$STATE/cache/fuse.tar"
}
