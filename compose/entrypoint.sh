#!/bin/bash
# Starts the server in its container.
#
# It is on two networks: `api`, where it is published from and where MinIO is, and the sandboxes' own.
# The API and the proxy listen on the first one only, so that no sandbox reaches them.
set -euo pipefail
umask 077

key=$SANDYARD_API__KEY_FILE
if [ -n "${SANDYARD_API_KEY:-}" ]; then
    printf '%s\n' "$SANDYARD_API_KEY" >"$key"
elif [ ! -s "$key" ]; then
    # Whoever reaches the port must know a key, and there is no default one.
    printf 'e2b_%s\n' "$(od -An -N20 -tx1 /dev/urandom | tr -d ' \n')" >"$key"
fi

if [ "${1:-}" = up ]; then
    # This name exists on that one network.
    address=$(getent ahostsv4 api.sandyard.internal | awk '{ print $1; exit }')
    if [ -z "$address" ]; then
        echo "entrypoint.sh: this container is not on a network with the alias api.sandyard.internal" >&2
        exit 1
    fi
    export SANDYARD_API__LISTEN=$address:3000 SANDYARD_PROXY__LISTEN=$address:3002
fi
exec /usr/local/bin/sandyard "$@"
