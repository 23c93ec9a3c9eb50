# shellcheck shell=bash
# The set-up that all scripts share. Each part looks first whether it is done.

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/lib/engine.sh
. "$ROOT/scripts/lib/engine.sh"
# shellcheck source=scripts/lib/images.sh
. "$ROOT/scripts/lib/images.sh"
# shellcheck source=scripts/lib/interpreter.sh
. "$ROOT/scripts/lib/interpreter.sh"
# shellcheck source=scripts/lib/binaries.sh
. "$ROOT/scripts/lib/binaries.sh"
# shellcheck source=scripts/lib/clients.sh
. "$ROOT/scripts/lib/clients.sh"
# shellcheck source=scripts/lib/minio.sh
. "$ROOT/scripts/lib/minio.sh"
# shellcheck source=scripts/lib/remapped.sh
. "$ROOT/scripts/lib/remapped.sh"
# shellcheck source=scripts/lib/server.sh
. "$ROOT/scripts/lib/server.sh"

# What a server needs to run sandboxes.
setup_server() {
    ensure_engine
    ensure_base_image
    ensure_fuse_tree
    ensure_binaries
}

# Everything the demo and the tests use; the store's program only where it is asked for.
setup_demo() { # STORE
    setup_server
    ensure_interpreter_image
    ensure_python
    if [ "$1" = minio ]; then ensure_minio; fi
}
