# shellcheck shell=bash
# Starting and stopping a server, and a MinIO for it, in the background.
set -euo pipefail

readonly SERVER_START_LIMIT=60
readonly SERVER_STOP_LIMIT=20
readonly MINIO_START_LIMIT=30
readonly MINIO_USER=sandyard MINIO_PASSWORD=sandyard-local MINIO_BUCKET=sandyard

# start_server DIR [NAME=VALUE]...: a server with its data in DIR, on free ports, with the named
# configuration. Its log is DIR/server.log. Returns when it serves.
start_server() {
    local dir=$1 pid
    shift
    rm -f "$dir/server.json"
    (
        # Nothing but what is named here configures this server.
        trap - EXIT
        unlock_setup
        unset "${!SANDYARD_@}"
        exec setsid env "$@" "$BIN/sandyard" up --data-dir "$dir" --api-listen 127.0.0.1:0 \
            --proxy-listen 127.0.0.1:0 --gateway-listen 127.0.0.1:0 >>"$dir/server.log" 2>&1 </dev/null
    ) &
    pid=$!
    if ! wait_for "$SERVER_START_LIMIT" server_settled "$dir" "$pid" || ! kill -0 "$pid" 2>/dev/null; then
        kill -9 "$pid" 2>/dev/null || true
        show_log "$dir/server.log"
        die "the server did not start; its log is $dir/server.log"
    fi
}

# Either it serves, or it has ended.
server_settled() { # DIR PID
    [ -f "$1/server.json" ] || ! kill -0 "$2" 2>/dev/null
}

# A server that was killed leaves its files; one that answers has something to export.
server_is_live() { # DIR
    "$BIN/sandyard" env --data-dir "$1" >/dev/null 2>&1
}

# Ends the server, its sandboxes and everything it has in the engine. Tried again for a while: a server
# that has only just been started holds its data folder, but does not listen yet.
stop_server() { # DIR
    if [ ! -d "$1" ]; then return; fi
    wait_for "$SERVER_STOP_LIMIT" "$BIN/sandyard" down --data-dir "$1"
}

show_log() {
    say "the end of $1:"
    tail -n 30 "$1" >&2 || true
}

# start_minio DIR: a MinIO with its data in DIR/minio, on free ports of loopback, holding the bucket
# MINIO_BUCKET. Sets MINIO_ENDPOINT, which is also in DIR/minio.endpoint.
start_minio() {
    local dir=$1 ports pid
    # A directory at the top is a bucket.
    mkdir -p "$dir/minio/$MINIO_BUCKET"
    read -r -a ports < <(free_ports)
    MINIO_ENDPOINT=http://127.0.0.1:${ports[0]}
    (
        trap - EXIT
        unlock_setup
        exec setsid env -u MINIO_ENDPOINT MINIO_ROOT_USER=$MINIO_USER MINIO_ROOT_PASSWORD=$MINIO_PASSWORD \
            MINIO_BROWSER=off MINIO_UPDATE=off "$MINIO" server --quiet --address "127.0.0.1:${ports[0]}" \
            "$dir/minio" >>"$dir/minio.log" 2>&1 </dev/null
    ) &
    pid=$!
    echo "$pid" >"$dir/minio.pid"
    echo "$MINIO_ENDPOINT" >"$dir/minio.endpoint"
    if ! wait_for "$MINIO_START_LIMIT" minio_settled "$pid" || ! kill -0 "$pid" 2>/dev/null; then
        stop_minio "$dir"
        show_log "$dir/minio.log"
        die "MinIO did not start"
    fi
}

minio_settled() { # PID
    ! kill -0 "$1" 2>/dev/null || minio_is_ready
}

minio_is_ready() {
    "$VENV/bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/minio/health/ready", timeout=5)' \
        "$MINIO_ENDPOINT" 2>/dev/null
}

# The configuration of a server whose store is the MinIO at MINIO_ENDPOINT, as NAME=VALUE lines.
minio_settings() {
    printf '%s\n' SANDYARD_STORE__BACKEND=upstream "SANDYARD_STORE__ENDPOINT=$MINIO_ENDPOINT" \
        "SANDYARD_STORE__BUCKET=$MINIO_BUCKET" "SANDYARD_STORE__ACCESS_KEY_ID=$MINIO_USER" \
        "SANDYARD_STORE__SECRET_ACCESS_KEY=$MINIO_PASSWORD"
}

stop_minio() { # DIR
    local pid
    pid=$(cat "$1/minio.pid" 2>/dev/null || true)
    if [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = minio ]; then
        kill "$pid" 2>/dev/null || true
        wait_for 10 process_is_gone "$pid" || kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$1/minio.pid" "$1/minio.endpoint"
}

process_is_gone() { ! kill -0 "$1" 2>/dev/null; }

free_ports() {
    "$VENV/bin/python" -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))'
}
