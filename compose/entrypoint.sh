#!/bin/bash
# Starts the server in its container, with an API key that nobody else has.
set -euo pipefail
umask 077

key=$SANDYARD_API__KEY_FILE
if [ -n "${SANDYARD_API_KEY:-}" ]; then
    printf '%s\n' "$SANDYARD_API_KEY" >"$key"
elif [ ! -s "$key" ]; then
    printf 'e2b_%s\n' "$(od -An -N20 -tx1 /dev/urandom | tr -d ' \n')" >"$key"
fi
exec /usr/local/bin/sandyard "$@"
