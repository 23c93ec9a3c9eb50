# shellcheck shell=bash
# The Docker Engine: used if it answers, else installed and started.
set -euo pipefail

readonly ENGINE_START_LIMIT=60

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

ensure_engine() {
    if have docker && engine_answers; then return; fi
    if [ -n "${DOCKER_HOST:-}" ] && [ "$DOCKER_HOST" != unix:///var/run/docker.sock ]; then
        die "no Docker Engine answers at DOCKER_HOST=$DOCKER_HOST: start it, or unset DOCKER_HOST to use a local one"
    fi
    if ! is_root && [ -S /var/run/docker.sock ] && as_root docker version >/dev/null 2>&1; then
        die "the Docker Engine runs, but $(id -un) may not use it: 'sudo usermod -aG docker $(id -un)' and log in again, or run this as root"
    fi
    [ "$(uname -s)" = Linux ] || die "no Docker Engine answers: start Docker Desktop, then run this again"
    if ! have dockerd; then
        is_root || have sudo || die "no Docker Engine is installed, and installing one needs root"
        # iptables is only recommended by docker.io, but the engine does not start without it.
        apt_ensure docker.io iptables
    fi
    if [ -d /run/systemd/system ]; then
        say "[set-up] starting the Docker Engine with systemd"
        as_root systemctl start docker
        wait_for "$ENGINE_START_LIMIT" engine_answers ||
            die "the engine did not answer within $ENGINE_START_LIMIT s: see 'journalctl -u docker'"
    else
        start_engine_directly
    fi
}

start_engine_directly() {
    local log=$STATE/log/dockerd.log start=$SECONDS launched=''
    is_root || die "no Docker Engine answers, and without systemd only root can start one: run this as root"
    if engine_is_starting; then
        say "[set-up] a Docker Engine is starting already, or ending; waiting for it"
    fi
    while ! engine_answers; do
        if ! engine_is_starting; then
            if [ -z "$launched" ]; then
                launch_engine "$log"
                launched=$SECONDS
            elif [ $((SECONDS - launched)) -ge 3 ]; then
                tail -n 20 "$log" >&2 || true
                die "dockerd ended; its log is $log"
            fi
        fi
        if [ $((SECONDS - start)) -ge "$ENGINE_START_LIMIT" ]; then
            tail -n 20 "$log" >&2 || true
            die "the engine did not answer within $ENGINE_START_LIMIT s; its log is $log"
        fi
        sleep 0.3
    done
    say "[set-up] the Docker Engine answers, $((SECONDS - start)) s"
}

# Its own session, and none of our descriptors: it stays when this script ends, and holds neither our
# lock nor the pipe somebody reads our output from.
launch_engine() { # LOG
    say "[set-up] starting the Docker Engine directly (no systemd here); its log: $1"
    (
        trap - EXIT
        unlock_setup
        exec setsid dockerd >>"$1" 2>&1 </dev/null
    ) &
}

# Whether a dockerd process lives. Removes pid files of processes that are gone, or whose number now
# belongs to another program: dockerd refuses to start over the first, and waits for ever on the
# second.
engine_is_starting() {
    remove_stale_pid_file /var/run/docker/containerd/containerd.pid containerd
    remove_stale_pid_file /var/run/docker.pid dockerd
    pgrep -x dockerd >/dev/null 2>&1
}

remove_stale_pid_file() { # FILE PROGRAM
    local pid
    [ -f "$1" ] || return 0
    pid=$(tr -dc '0-9' <"$1")
    if [ -z "$pid" ] || [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != "$2" ]; then
        say "[set-up] removing $1: its process is gone"
        rm -f "$1"
    fi
}

# Sets COMPOSE to whichever compose there is: the plugin, or the older program.
ensure_compose() {
    if docker compose version >/dev/null 2>&1; then
        COMPOSE=(docker compose)
        return
    fi
    have docker-compose || apt_ensure docker-compose
    # shellcheck disable=SC2034 # for the script that sources this
    COMPOSE=(docker-compose)
}
