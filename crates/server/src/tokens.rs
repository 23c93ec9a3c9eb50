//! The tokens of sandboxes, and how API keys are stored.

use sandyard_core::ApiKeyHash;
use sandyard_types::{SandboxId, Secret};
use sha2::{Digest as _, Sha256};

/// Makes the tokens of sandboxes. The same sandbox has the same tokens for its whole life, over restarts
/// of the server (control-plane 4.1).
pub trait Tokens: Send + Sync + 'static {
    /// What the in-sandbox API demands of clients (executor 3.2). Safe in URLs and headers.
    fn envd_access_token(&self, id: &SandboxId) -> Secret;
    /// What the proxy demands for a sandbox's own ports, if they are not public (control-plane 5.5).
    fn traffic_access_token(&self, id: &SandboxId) -> Secret;
    /// What the daemon's control routes demand of the server
    /// ([`sandyard_contract::daemon::CONTROL_TOKEN_HEADER`]).
    fn control_token(&self, id: &SandboxId) -> Secret;
}

/// What the store keeps of an API key: SHA-256 of its whole text, in lower-case hex.
pub fn hash_api_key(key: &str) -> ApiKeyHash {
    ApiKeyHash(hex::encode(Sha256::digest(key.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_stored_as_the_sha_256_of_its_whole_text() {
        assert_eq!(
            hash_api_key("e2b_00").0,
            "ee62d346e057821a022acfef71ed19de3434336a9e0d40bc0e99965ee3121944"
        );
    }
}
