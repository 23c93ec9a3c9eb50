# shellcheck shell=bash
# An engine of its own for the tests that run once with remapped users (`userns-remap`), beside the machine's.
set -euo pipefail

# In a network namespace of its own: a second engine would take the first one's bridge away.
#
#   with_remapped_engine COMMAND...
#
# COMMAND finds the engine by DOCKER_HOST, and the base image on it.
with_remapped_engine() (
    folder=$(mktemp -d)
    # The engine's remapped root has to pass through it.
    chmod 711 "$folder"
    # Users of containers are others than root here, and the node may be root's alone.
    mode=$(stat -c %a /dev/fuse)
    trap 'leave_remapped_engine "$folder" "$mode"' EXIT
    as_root chmod 666 /dev/fuse
    code=0
    as_root unshare --net --mount -- env FOLDER="$folder" BASE_IMAGE="$BASE_IMAGE:latest" \
        bash -euo pipefail -c "$(declare -f run_beside_engine); run_beside_engine \"\$@\"" - "$@" || code=$?
    exit "$code"
)

# Also after an interrupt.
leave_remapped_engine() { # FOLDER MODE
    local folder=$1 mode=$2 engine
    if engine=$(as_root cat "$folder/pid" 2>/dev/null) && as_root kill "$engine" 2>/dev/null; then
        while as_root kill -0 "$engine" 2>/dev/null; do sleep 0.1; done
    fi
    as_root chmod "$mode" /dev/fuse
    as_root rm -rf "$folder"
}

# shellcheck disable=SC2153 # FOLDER comes from the environment
run_beside_engine() {
    local machine=${DOCKER_HOST:-unix:///var/run/docker.sock} code=0 engine
    ip link set lo up
    dockerd --userns-remap=default --data-root "$FOLDER/data" --exec-root "$FOLDER/exec" \
        --pidfile "$FOLDER/pid" --host "unix://$FOLDER/docker.sock" >"$FOLDER/dockerd.log" 2>&1 &
    engine=$!
    export DOCKER_HOST=unix://$FOLDER/docker.sock
    for _ in $(seq 200); do
        if docker version >/dev/null 2>&1; then break; fi
        if ! kill -0 "$engine" 2>/dev/null; then break; fi
        sleep 0.2
    done
    if ! docker version >/dev/null 2>&1; then
        tail -n 20 "$FOLDER/dockerd.log" >&2
        echo "error: no engine with remapped users" >&2
        return 1
    fi
    docker -H "$machine" save "$BASE_IMAGE" | docker load >/dev/null
    "$@" || code=$?
    kill "$engine"
    # 143: ended by that.
    wait "$engine" || [ $? -eq 143 ] || code=1
    return "$code"
}
