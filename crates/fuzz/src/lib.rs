//! What outsiders send, against models: each target takes any bytes and panics where a parser breaks its
//! word. `tests/any_bytes.rs` runs them for a bounded time; `cargo fuzz` does without a bound
//! (CONTRIBUTING.md).

mod envelopes;
mod sandbox_host;
mod upload;

pub use envelopes::fuzz_envelopes;
pub use sandbox_host::fuzz_sandbox_host;
pub use upload::fuzz_upload;

/// The pieces that a transport may cut bytes into, decided by the bytes before them.
fn pieces(mut bytes: &[u8], mut seed: u8) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        // Short ones are where heads and boundaries are torn apart.
        seed = seed.wrapping_mul(167).wrapping_add(13);
        let length = usize::from(seed >> 3).clamp(1, bytes.len());
        let (piece, rest) = bytes.split_at(length);
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}
