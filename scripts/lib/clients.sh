# shellcheck shell=bash
# The E2B clients that the demo and the tests use: Python in a virtual environment, and Node.js.
set -euo pipefail

ensure_python() {
    local inputs
    have python3 || apt_ensure python3 python3-venv
    inputs=$(hash_text "$(python3 --version 2>&1)" "$(hash_of tests/requirements.txt)" "$VENV")
    if [ -x "$VENV/bin/python" ] && is_current python "$inputs"; then return; fi
    if ! python3 -c 'import ensurepip' 2>/dev/null; then apt_ensure python3-venv; fi
    step python "make the Python environment with the E2B SDK" make_venv
    set_current python "$inputs"
}

make_venv() {
    rm -rf "$VENV"
    python3 -m venv "$VENV"
    retry 3 "$VENV/bin/pip" install --disable-pip-version-check --no-input --quiet \
        -r "$ROOT/tests/requirements.txt"
}

ensure_node() {
    local inputs major
    have node || apt_ensure nodejs npm
    major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$major" -ge 20 ] || die "the JavaScript SDK needs Node.js 20 or later, and $(command -v node) is $(node --version): put a newer one on PATH"
    inputs=$(hash_text "$(node --version)" "$(hash_of tests/node/package.json tests/node/package-lock.json)")
    if [ -d "$ROOT/tests/node/node_modules/e2b" ] && is_current node "$inputs"; then return; fi
    step node "install the JavaScript SDK" make_node_modules
    set_current node "$inputs"
}

make_node_modules() (
    cd "$ROOT/tests/node"
    retry 3 npm ci --no-audit --no-fund
)
