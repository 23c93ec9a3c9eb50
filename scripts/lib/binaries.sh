# shellcheck shell=bash
# The programs built from this checkout: the server, the executor, the code interpreter, and the bundle that
# carries the last two and the FUSE programs into sandboxes.
set -euo pipefail

readonly PRELOAD=libsandyard_s3fs_guard.so

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
    if ! { [ -x "$BIN/sandyard-executor" ] && [ -x "$BIN/sandyard-interpreter" ] && is_current executor "$inputs"; }; then
        step executor "build the executor and the code interpreter" build_executor
        set_current executor "$inputs"
    fi
    if ! { [ -f "$BIN/$PRELOAD" ] && is_current preload "$inputs"; }; then
        step preload "build the library for s3fs" build_preload
        set_current preload "$inputs"
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
        cargo build --profile executor --locked --target "$target" -p sandyard-executor -p sandyard-interpreter
    put_program "$(target_directory)/$target/executor/sandyard-executor" sandyard-executor
    put_program "$(target_directory)/$target/executor/sandyard-interpreter" sandyard-interpreter
)

# The library that the bundle's s3fs must not run without. Only here is it a library to load: cargo's own
# builds and tests see an ordinary crate.
build_preload() (
    cd "$ROOT"
    retry 3 cargo fetch --locked
    cargo rustc --profile executor --locked -p sandyard-s3fs-guard --features preload --crate-type cdylib
    put_program "$(target_directory)/executor/$PRELOAD" "$PRELOAD"
)

target_directory() { echo "${CARGO_TARGET_DIR:-$ROOT/target}"; }

# By rename: a running server keeps the file it was started from.
put_program() { # FILE NAME
    cp "$1" "$BIN/$2.new"
    mv "$BIN/$2.new" "$BIN/$2"
}

ensure_bundle() {
    local inputs out=$BIN/sandyard-bundle.tar
    inputs=$(hash_text "$(sha256sum <"$BIN/sandyard-executor")" \
        "$(sha256sum <"$BIN/sandyard-interpreter")" "$(sha256sum <"$BIN/$PRELOAD")" \
        "$(sha256sum <"$STATE/cache/fuse.tar")" "$(hash_of executor-image/bundle.sh)")
    if [ -f "$out" ] && is_current bundle "$inputs"; then return; fi
    step bundle "pack the executor's bundle" \
        "$ROOT/executor-image/bundle.sh" "$BIN/sandyard-executor" "$BIN/sandyard-interpreter" "$BIN/$PRELOAD" \
        "$STATE/cache/fuse.tar" "$out"
    set_current bundle "$inputs"
}
