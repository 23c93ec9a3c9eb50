# shellcheck shell=bash
# The programs built from this checkout: the server, the executor, and the bundle that carries the
# executor and the FUSE programs into sandboxes.
set -euo pipefail

ensure_cargo() {
    if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    have cargo || die "there is no Rust toolchain: install one with rustup (Rust $(rust_version) or later), then run this again"
    # The C compiler builds the bundled SQLite; libc's archive is what the executor is linked with.
    have cc || apt_ensure gcc libc6-dev
}

rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

rust_inputs() {
    hash_text "$(cd "$ROOT" && rustc --version)" "$(hash_of Cargo.toml Cargo.lock crates)"
}

# Both programs at once would need twice the memory at the linker; one after the other.
ensure_binaries() {
    local inputs
    ensure_cargo
    inputs=$(rust_inputs)
    if ! { [ -x "$BIN/sandyard" ] && is_current server "$inputs"; }; then
        step server "build the server" build_server
        set_current server "$inputs"
    fi
    if ! { [ -x "$BIN/sandyard-executor" ] && is_current executor "$inputs"; }; then
        step executor "build the executor" build_executor
        set_current executor "$inputs"
    fi
    ensure_bundle
}

build_server() (
    cd "$ROOT"
    retry 3 cargo fetch --locked
    cargo build --release --locked -p sandyard
    put_program "$(target_directory)/release/sandyard" sandyard
)

# Linked statically, so that it runs in any image; --target keeps the flag away from proc macros,
# which cannot be linked so.
build_executor() (
    local target
    cd "$ROOT"
    target=$(uname -m)-unknown-linux-gnu
    retry 3 cargo fetch --locked
    RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build --profile executor --locked --target "$target" -p sandyard-executor
    put_program "$(target_directory)/$target/executor/sandyard-executor" sandyard-executor
)

target_directory() { echo "${CARGO_TARGET_DIR:-$ROOT/target}"; }

# By rename: a running server keeps the file it was started from.
put_program() { # FILE NAME
    cp "$1" "$BIN/$2.new"
    mv "$BIN/$2.new" "$BIN/$2"
}

ensure_bundle() {
    local inputs
    inputs=$(hash_text "$(sha256sum <"$BIN/sandyard-executor")" "$(sha256sum <"$STATE/cache/fuse.tar")")
    if [ -f "$BIN/sandyard-bundle.tar" ] && is_current bundle "$inputs"; then return; fi
    step bundle "pack the executor's bundle" make_bundle
    set_current bundle "$inputs"
}

# Same content, same archive: its hash names the engine's volume it is unpacked into.
make_bundle() {
    local tree=$STATE/cache/bundle
    rm -rf "$tree"
    mkdir -p "$tree/fuse" "$tree/run" "$tree/cache"
    tar -C "$tree/fuse" -xf "$STATE/cache/fuse.tar"
    if [ -x "$BIN/sandyard-executor" ]; then
        install -m 0755 "$BIN/sandyard-executor" "$tree/executor"
    fi
    find "$tree" -type d -exec chmod 0755 {} +
    tar -C "$tree" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu \
        -cf "$BIN/sandyard-bundle.tar.new" .
    mv "$BIN/sandyard-bundle.tar.new" "$BIN/sandyard-bundle.tar"
    rm -rf "$tree"
}
