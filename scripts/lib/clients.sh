# shellcheck shell=bash
# The E2B clients that the demo and the tests use: Python in a virtual environment, and Node.js.
set -euo pipefail

readonly OLDEST_VENV=$STATE/venv-oldest

ensure_python() { ensure_venv python "the newest E2B SDK" "$VENV" tests/requirements.txt; }

# Both releases are one package, so the oldest has an environment of its own.
ensure_oldest_python() {
    ensure_venv python-oldest "the oldest E2B SDK" "$OLDEST_VENV" tests/python_oldest/requirements.txt
    ensure_local_names
}

ensure_venv() { # STAMP WHAT FOLDER REQUIREMENTS
    local inputs
    have python3 || apt_ensure python3 python3-venv
    inputs=$(hash_text "$(python3 --version 2>&1)" "$(hash_of "$4")" "$3")
    if [ -x "$3/bin/python" ] && is_current "$1" "$inputs"; then return; fi
    if ! python3 -c 'import ensurepip' 2>/dev/null; then apt_ensure python3-venv; fi
    step "$1" "make the Python environment with $2" make_venv "$3" "$4"
    set_current "$1" "$inputs"
}

make_venv() { # FOLDER REQUIREMENTS
    rm -rf "$1"
    python3 -m venv "$1"
    retry 3 "$1/bin/pip" install --disable-pip-version-check --no-input --quiet -r "$ROOT/$2"
}

# Names below sbx.localhost, which plain glibc does not resolve: for clients that ask the system
# (control-plane 5.8).
ensure_local_names() {
    if getent ahosts api.sbx.localhost >/dev/null; then return; fi
    apt_ensure libnss-myhostname
    getent ahosts api.sbx.localhost >/dev/null ||
        die "names below sbx.localhost do not resolve, with libnss-myhostname too: add 'myhostname' to 'hosts' in /etc/nsswitch.conf"
}

# What is installed without a lock file was published before this day, so that an install is always the same.
readonly PUBLISHED_BEFORE=2026-11-29T00:00:00Z
readonly SDK_RELEASES=$STATE/sdk

# Many releases of the SDKs: each Python one in a folder of its own, all JavaScript ones under names of their own.
ensure_sdk_releases() {
    local inputs
    ensure_python
    ensure_node
    ensure_local_names
    inputs=$(hash_text "$(python3 --version 2>&1)" "$(node --version)" "$PUBLISHED_BEFORE" \
        "$(hash_of tests/releases/python.txt tests/releases/package-lock.json)")
    if [ -d "$SDK_RELEASES" ] && is_current releases "$inputs"; then return; fi
    step releases "install releases of the E2B SDKs" make_sdk_releases
    set_current releases "$inputs"
}

make_sdk_releases() {
    rm -rf "$SDK_RELEASES"
    xargs -P 4 -I RELEASE "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" \
        --exclude-newer "$PUBLISHED_BEFORE" --target "$SDK_RELEASES/RELEASE" e2b==RELEASE \
        <"$ROOT/tests/releases/python.txt"
    make_node_modules tests/releases
}

readonly FRAMEWORKS=$STATE/frameworks PYTHON_FRAMEWORKS=(openai_agents langchain crewai agentscope code_interpreter)

# Each pins a release of the SDK, so each has an environment of its own.
ensure_frameworks() {
    local inputs folders=("${PYTHON_FRAMEWORKS[@]/#/tests/frameworks/}")
    ensure_python
    ensure_node
    inputs=$(hash_text "$(python3 --version 2>&1)" "$(node --version)" "$PUBLISHED_BEFORE" "$(hash_of \
        "${folders[@]/%//requirements.txt}" tests/frameworks/agentscope/gateway.txt \
        tests/frameworks/computesdk/package-lock.json)")
    if [ -d "$FRAMEWORKS" ] && is_current frameworks "$inputs"; then return; fi
    step frameworks "install frameworks that use E2B" make_frameworks
    set_current frameworks "$inputs"
}

make_frameworks() (
    cd "$ROOT/tests/frameworks"
    rm -rf "$FRAMEWORKS"
    for name in "${PYTHON_FRAMEWORKS[@]}"; do make_framework "$name"; done
    # For the base image's Python, whatever this machine's is.
    gateway=$FRAMEWORKS/gateway
    target=(--target "$gateway" --only-binary :all: --python-version 3.11 --python-platform "$(uname -m)-manylinux_2_28")
    dated_uv pip install "${target[@]}" -r agentscope/gateway.txt
    dated_uv pip install "${target[@]}" --no-deps "$(grep -o 'agentscope.*' agentscope/requirements.txt)"
    tar -C "$gateway" -czf "$gateway.tar.gz" .
    make_node_modules tests/frameworks/computesdk
)

make_framework() { # NAME
    dated_uv venv --clear --python "$VENV/bin/python" "$FRAMEWORKS/$1"
    dated_uv pip install --python "$FRAMEWORKS/$1/bin/python" -r "$ROOT/tests/frameworks/$1/requirements.txt"
}

dated_uv() { retry 3 "$VENV/bin/uv" "$@" --quiet --exclude-newer "$PUBLISHED_BEFORE"; }

ensure_node() { ensure_node_modules node "the newest JavaScript SDK" tests/node; }

ensure_oldest_node() {
    ensure_node_modules node-oldest "the oldest JavaScript SDK" tests/node_oldest
    ensure_local_names
}

ensure_node_modules() { # STAMP WHAT FOLDER
    local inputs major
    have node || apt_ensure nodejs npm
    major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$major" -ge 20 ] || die "the JavaScript SDK needs Node.js 20 or later, and $(command -v node) is $(node --version): put a newer one on PATH"
    inputs=$(hash_text "$(node --version)" "$(hash_of "$3/package.json" "$3/package-lock.json")")
    if [ -d "$ROOT/$3/node_modules/e2b" ] && is_current "$1" "$inputs"; then return; fi
    step "$1" "install $2" make_node_modules "$3"
    set_current "$1" "$inputs"
}

make_node_modules() ( # FOLDER
    cd "$ROOT/$1"
    retry 3 npm ci --no-audit --no-fund
)
