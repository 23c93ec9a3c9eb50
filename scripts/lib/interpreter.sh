# shellcheck shell=bash
# The images of the code interpreter's templates. Each is what is ours, which is quick to make, on a ground with all
# that is downloaded, which is made anew only when its lists change.
set -euo pipefail

readonly INTERPRETER_IMAGE=sandyard/code-interpreter
readonly INTERPRETER_FILES=executor-image/interpreter
: "${SANDYARD_INTERPRETER_FROM:=debian:trixie-slim}"

ensure_interpreter_image() { ensure_interpreter "$INTERPRETER_IMAGE" packages.txt; }

# With kernels for R and Java.
ensure_full_interpreter_image() { ensure_interpreter "$INTERPRETER_IMAGE-full" packages.txt packages-full.txt; }

ensure_interpreter() { # IMAGE PACKAGE-LIST...
    local image=$1 name ground inputs
    shift
    name=${image##*/}
    inputs=$(hash_of "${@/#/$INTERPRETER_FILES/}" "$INTERPRETER_FILES/python.txt" "$INTERPRETER_FILES/python-full.txt" \
        "$INTERPRETER_FILES/install.sh" \
        "$INTERPRETER_FILES/build.sh" "$INTERPRETER_FILES/ground.Dockerfile" executor-image/customize.sh \
        "$INTERPRETER_FILES/node-kernel/package-lock.json")
    ground=$image-ground:$inputs
    if ! image_has_inputs "$ground" "$inputs"; then
        if ground_is_reachable; then
            step "$name-ground" "build the ground of $image from its Dockerfile" docker build --tag "$ground" \
                --label "$INPUTS_LABEL=$inputs" --file "$ROOT/$INTERPRETER_FILES/ground.Dockerfile" \
                --build-arg "FROM=$SANDYARD_INTERPRETER_FROM" --build-arg "LISTS=$*" "$ROOT/executor-image"
        else
            say "[set-up] no image registry answers: making the ground of $image from packages"
            build_ground_offline "$ground" "$inputs" "$name" "$@"
        fi
    fi
    inputs=$(hash_text "$inputs" "$(hash_of "$INTERPRETER_FILES")")
    if image_has_inputs "$image:latest" "$inputs"; then return; fi
    step "$name" "make $image" docker build --build-arg "GROUND=$ground" --label "$INPUTS_LABEL=$inputs" \
        --tag "$image:latest" "$ROOT/$INTERPRETER_FILES"
}

ground_is_reachable() {
    [ -z "${SANDYARD_OFFLINE:-}" ] || return 1
    docker image inspect "$SANDYARD_INTERPRETER_FROM" >/dev/null 2>&1 ||
        timeout 120 docker pull -q "$SANDYARD_INTERPRETER_FROM" >/dev/null 2>&1
}

build_ground_offline() { # TAG HASH NAME PACKAGE-LIST...
    local tag=$1 hash=$2 name=$3
    shift 3
    is_root || die "making this image without a registry needs root: run this once with sudo"
    ensure_trixie
    # The root is about 3 GB, and 4 GB with R and Java.
    SCRATCH_SIZE=8g step "$name-ground" "install the packages of the code interpreter (3 to 6 minutes)" \
        "$ROOT/$INTERPRETER_FILES/build.sh" --tag "$tag" --label "$INPUTS_LABEL=$hash" \
        --work "$STATE/cache/$name" --minbase "$STATE/cache/minbase-trixie.tar" "$@"
}

ensure_trixie() {
    local inputs
    inputs=$(hash_of executor-image/minbase.sh)
    if [ -f "$STATE/cache/minbase-trixie.tar" ] && is_current minbase-trixie "$inputs"; then return; fi
    apt_ensure debootstrap
    step minbase-trixie "make a minimal Debian 13 root" \
        "$ROOT/executor-image/minbase.sh" "$STATE/cache/minbase-trixie.tar" trixie
    set_current minbase-trixie "$inputs"
}

# The image's kernels for this machine, for tests of the interpreter without a sandbox; specifications are in
# .sandyard/kernels.
ensure_test_kernels() {
    local inputs
    inputs=$(hash_text "$(python3 --version 2>&1)" "$(node --version)" "$(hash_of "$INTERPRETER_FILES")")
    if [ -d "$STATE/kernels" ] && is_current test-kernels "$inputs"; then return; fi
    step test-kernels "install the interpreter's kernels for tests" make_test_kernels
    set_current test-kernels "$inputs"
}

make_test_kernels() (
    local files=$ROOT/$INTERPRETER_FILES environment=$STATE/kernels-venv node=$STATE/kernels-node
    rm -rf "$environment" "$node" "$STATE/kernels" "$STATE/ipython"
    python3 -m venv "$environment"
    sed -n '/^ipykernel==\|^ipython==\|^bash_kernel==\|^orjson\|^pybase64/p' "$files/python.txt" >"$environment/requirements.txt"
    retry 3 "$environment/bin/pip" install --disable-pip-version-check --no-input --quiet -r "$environment/requirements.txt"
    cp -r "$files/node-kernel" "$node"
    cd "$node"
    retry 3 npm ci --ignore-scripts --no-audit --no-fund
    mkdir -p "$STATE/ipython/profile_default"
    cp -r "$files/profile/." "$STATE/ipython/profile_default/"
    cp -r "$files/kernels" "$STATE/kernels"
    sed -i "s|\"python3\"|\"$environment/bin/python\"|; s|\"env\": {|\"env\": { \"IPYTHONDIR\": \"$STATE/ipython\",|
        s|/usr/local/lib/sandyard-node-kernel|$node|; s|/usr/local/lib/sandyard-python-kernel|$files/python-kernel|" "$STATE"/kernels/*/kernel.json
)

# Releases of the code interpreter's packages.
ensure_interpreter_releases() {
    local inputs folder=$STATE/interpreter-releases
    ensure_python
    ensure_node
    ensure_local_names
    inputs=$(hash_text "$(python3 --version 2>&1)" "$(node --version)" \
        "$(hash_of tests/interpreter_releases/python.txt tests/interpreter_releases/package-lock.json)")
    if [ -d "$folder" ] && is_current interpreter-releases "$inputs"; then return; fi
    step interpreter-releases "install releases of the code interpreter's packages" make_interpreter_releases "$folder"
    set_current interpreter-releases "$inputs"
}

make_interpreter_releases() { # FOLDER
    local package e2b
    rm -rf "$1"
    while read -r package e2b; do
        retry 3 "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --target "$1/$package-$e2b" \
            "e2b-code-interpreter==$package" "e2b==$e2b"
    done < <(sed 's/#.*//; /^$/d' "$ROOT/tests/interpreter_releases/python.txt")
    make_node_modules tests/interpreter_releases
}
