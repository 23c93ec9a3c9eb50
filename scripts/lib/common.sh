# shellcheck shell=bash
# What every script needs: places, progress, steps, stamps, clean-up. Sourced; sets the shell's
# strict mode for whoever sources it.
#
# Everything the scripts make lies in .sandyard/ of the checkout; nothing else is written but the
# package caches of apt, cargo, pip and go, and the engine's own data.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
STATE=$ROOT/.sandyard
BIN=$STATE/bin
VENV=$STATE/venv
export ROOT STATE BIN VENV
mkdir -p "$BIN" "$STATE/cache" "$STATE/log" "$STATE/stamps"

# Progress goes to standard error: standard output is for what a caller reads by program.
say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# ---- clean-up -------------------------------------------------------------------------------

exit_hooks=()

# Runs a function when the script ends, however it ends; the last one registered runs first. Its $1 is
# the script's exit code. A hook that fails makes the script fail.
on_exit() { exit_hooks+=("$1"); }

run_exit_hooks() {
    local code=$? i
    trap - EXIT INT TERM
    for ((i = ${#exit_hooks[@]} - 1; i >= 0; i--)); do
        if ! "${exit_hooks[$i]}" "$code" && [ "$code" -eq 0 ]; then code=1; fi
    done
    exit "$code"
}
trap run_exit_hooks EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- steps ----------------------------------------------------------------------------------

step_log=''
heartbeat=''

# step NAME TEXT COMMAND...: a part of the set-up that takes a while. Its output goes to
# .sandyard/log/NAME.log, and its end is shown if it fails.
#
# COMMAND is not run as `COMMAND || …`: that would switch strict mode off inside it. It is run in a subshell:
# if it ended this shell, what is said then would go where its output goes.
step() {
    local name=$1 text=$2 start=$SECONDS code
    shift 2
    step_log=$STATE/log/$name.log
    say "[set-up] $text ..."
    (
        trap - EXIT
        trap 'kill "$sleeping" 2>/dev/null; exit 0' TERM
        while true; do
            sleep 30 &
            sleeping=$!
            wait "$sleeping"
            say "[set-up] $text ... $((SECONDS - start)) s"
        done
    ) &
    heartbeat=$!
    set +e
    (
        trap - EXIT
        set -e
        "$@"
    ) >"$step_log" 2>&1
    code=$?
    set -e
    if [ "$code" -ne 0 ]; then exit "$code"; fi
    stop_heartbeat
    step_log=''
    say "[set-up] $text: done, $((SECONDS - start)) s"
}

stop_heartbeat() {
    if [ -n "$heartbeat" ]; then
        kill "$heartbeat" 2>/dev/null || true
        wait "$heartbeat" 2>/dev/null || true
        heartbeat=''
    fi
}

explain_failed_step() {
    stop_heartbeat
    if [ "$1" -ne 0 ] && [ -n "$step_log" ]; then
        say "error: this step failed; the end of $step_log:"
        tail -n 30 "$step_log" >&2
    fi
    return 0
}
on_exit explain_failed_step

# One set-up at a time per checkout. The descriptor is closed in every child that outlives us.
lock_setup() {
    exec {setup_lock}>"$STATE/lock"
    if ! flock -n "$setup_lock"; then
        say "[set-up] another script sets this checkout up; waiting for it"
        flock -w 3600 "$setup_lock" || die "the other set-up did not end within an hour"
    fi
}

unlock_setup() {
    exec {setup_lock}>&-
}

# ---- stamps ---------------------------------------------------------------------------------

# A stamp holds the hash of what something was made from. It is written last, so what was made by
# half is made again.
is_current() { [ -f "$STATE/stamps/$1" ] && [ "$(cat "$STATE/stamps/$1")" = "$2" ]; }

set_current() {
    printf '%s\n' "$2" >"$STATE/stamps/$1.new"
    mv "$STATE/stamps/$1.new" "$STATE/stamps/$1"
}

# hash_of PATH...: one hash over names and contents of files and directories, relative to the
# checkout.
hash_of() {
    (
        cd "$ROOT"
        find "$@" -type f -not -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    ) | sha256sum | cut -c 1-16
}

hash_text() { printf '%s' "$*" | sha256sum | cut -c 1-16; }

# ---- waiting, rights, packages --------------------------------------------------------------

# wait_for SECONDS COMMAND...: polls until COMMAND succeeds.
wait_for() {
    local limit=$1 start=$SECONDS
    shift
    until "$@"; do
        if [ $((SECONDS - start)) -ge "$limit" ]; then return 1; fi
        sleep 0.2
    done
}

retry() {
    local times=$1 i
    shift
    for ((i = 1; i < times; i++)); do
        if "$@"; then return 0; fi
        say "failed, trying again ($i of $((times - 1))): $*"
        sleep $((i * 3))
    done
    "$@"
}

is_root() { [ "$(id -u)" -eq 0 ]; }

as_root() {
    if is_root; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo: $*"
    fi
}

# apt_ensure PACKAGE...: installs what is missing, and asks nothing.
apt_ensure() {
    local package missing=()
    have apt-get || die "please install: $* (this is done by itself on Debian and Ubuntu only)"
    for package in "$@"; do
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            missing+=("$package")
        fi
    done
    if [ ${#missing[@]} -gt 0 ]; then
        step "apt-${missing[0]}" "install Debian packages: ${missing[*]}" apt_install "${missing[@]}"
    fi
}

apt_install() {
    local options=(-q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    retry 3 as_root apt-get "${options[@]}" update
    retry 3 as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l \
        apt-get "${options[@]}" install -y --no-install-recommends "$@"
}
