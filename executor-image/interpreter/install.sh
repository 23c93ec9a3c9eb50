#!/bin/sh
# Turns a minimal Debian 13 root into the ground of a code interpreter's image: what is downloaded. Runs as root
# inside that root, from ground.Dockerfile and from build.sh, which put the lists beside it.
#
#   install.sh FOLDER PACKAGE-LIST...
set -eu

folder=$1
shift

debian_packages() {
    apt-get -q -o Acquire::Retries=5 update
    for list in "$@"; do sed 's/#.*//' "$folder/$list"; done |
        xargs apt-get -q -o Acquire::Retries=5 -o Dpkg::Options::=--force-unsafe-io \
            install -y --no-install-recommends
}

# A sandbox is the environment, so pip may install into it, as on E2B.
python_packages() { # PIP-ARGUMENT....
    rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
    ln -sf python3 /usr/bin/python
    pip3 install --disable-pip-version-check --no-input --root-user-action ignore --retries 5 \
        --no-cache-dir --only-binary :all: "$@"
    # Every kernel would compile what it imports: several times the time of its start.
    python3 -m compileall -q -j 0 /usr/local/lib/python3*/dist-packages >/dev/null || true
}

node_kernel() {
    install -d /usr/local/lib/sandyard-node-kernel
    cp "$folder/node-kernel/package.json" "$folder/node-kernel/package-lock.json" /usr/local/lib/sandyard-node-kernel/
    cd /usr/local/lib/sandyard-node-kernel
    # Scripts would download what the packages hold already.
    npm ci --ignore-scripts --no-audit --no-fund
    # The other systems' builds of the library.
    rm -rf node_modules/zeromq/build/darwin node_modules/zeromq/build/win32
    cd /
}

debian_packages "$@"
case " $* " in
    *" packages-full.txt "*) python_packages -r "$folder/python.txt" -r "$folder/python-full.txt" ;;
    *) python_packages -r "$folder/python.txt" ;;
esac
node_kernel
