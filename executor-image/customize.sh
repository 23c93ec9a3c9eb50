#!/bin/sh
# Turns a Debian root with the packages of packages.txt into the base image: what code inside a
# sandbox may rely on. Runs as root inside that root, from the Dockerfile and from build.sh.
set -eu

make_user() {
    if ! getent passwd user >/dev/null; then
        groupadd --gid 1000 user
        useradd --uid 1000 --gid 1000 --create-home --skel /etc/skel --shell /bin/bash user
    fi
    usermod --append --groups sudo user
    # No password opens either: an empty one would make root of every program inside, sudo or not.
    usermod --password '*' user
    usermod --password '*' root
    echo 'user ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/user
    chmod 0440 /etc/sudoers.d/user
}

make_directories() {
    install -d -m 0755 -o 1000 -g 1000 /workspace
    install -d -m 0777 /code
    chmod -R 0777 /usr/local
}

# SDK commands run in a login shell (`bash -l -c`), which reads /etc/profile and nothing of the
# image's own environment; so what every command shall see is set there.
make_profile() {
    # Every command reads it: bash knows the user's id without starting a program.
    # shellcheck disable=SC2016  # the profile's own text
    sed -i 's/"$(id -u)"/"${EUID:-$(id -u)}"/' /etc/profile
    cat >>/etc/profile <<'PROFILE'

export SHELL=/bin/bash
export PS1='\w \$ '
if [ -n "${BASH_VERSION:-}" ] && [ -n "${HOME:-}" ]; then
  if [ -f "$HOME/.bashrc" ]; then . "$HOME/.bashrc"; fi
  if [ -f "$HOME/.profile" ]; then . "$HOME/.profile"; fi
fi
PROFILE
    echo 'LANG=C.UTF-8' >/etc/default/locale
    ln -sf /usr/share/zoneinfo/Etc/UTC /etc/localtime
    echo 'Etc/UTC' >/etc/timezone
}

make_tools() {
    ln -sf python3 /usr/bin/python
    # A sandbox is the environment, so pip may install into it, as on E2B.
    rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
    # A ping with a file capability or a set-user-id bit asks for NET_RAW, which sandboxes do not
    # have, and then fails. Without either it uses an ICMP datagram socket, which is allowed.
    # Copying the content drops both.
    cp --no-preserve=all /usr/bin/ping /usr/bin/ping.plain
    chmod 0755 /usr/bin/ping.plain
    mv /usr/bin/ping.plain /usr/bin/ping
    # FUSE programs of the image itself (profile `guest`) let others read their mounts.
    sed -i 's/^#user_allow_other/user_allow_other/' /etc/fuse.conf
}

clean() {
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache
    rm -rf /tmp/* /var/tmp/* /var/log/apt /var/log/*.log /root/.cache
}

make_user
make_directories
make_profile
make_tools
clean
