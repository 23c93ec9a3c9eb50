//! Everything secret that one installation has follows from one master key: nothing else is stored,
//! and all of it is valid again after a restart.

use ed25519_dalek::SigningKey;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sandyard_gateway::{AccessKey, GatewayKeys, KeyName};
use sandyard_types::{SandboxId, Secret};
use sha2::Sha256;

use crate::tokens::Tokens;

/// The key of a sandbox's grant or of the owner's counts from here; a second key for the same holder
/// would have the next number.
const GENERATION: u32 = 1;

/// The installation's keys.
#[derive(Clone)]
pub struct Secrets {
    master: [u8; 32],
    control: SigningKey,
    gateway: GatewayKeys,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(***)")
    }
}

impl Secrets {
    /// The secrets of the installation with this master key.
    pub fn new(master: [u8; 32]) -> Self {
        let control = SigningKey::from_bytes(&derive(&master, "control signing key", ""));
        let gateway = GatewayKeys::new(&derive(&master, "gateway keys", ""));
        Self { master, control, gateway }
    }

    /// Signs calls to `init` and the daemon (design 6.1 (8)).
    pub fn control(&self) -> &SigningKey {
        &self.control
    }

    /// The public half of [`Self::control`], hex, for `init`'s command line.
    pub fn control_public(&self) -> String {
        hex::encode(self.control.verifying_key().as_bytes())
    }

    /// The S3 key of a sandbox.
    pub fn sandbox_key(&self, id: &SandboxId) -> AccessKey {
        self.gateway.key(&sandbox_key_name(id))
    }

    /// The S3 key of whoever runs the installation.
    pub fn owner_key(&self) -> AccessKey {
        self.gateway.key(&KeyName::Owner { generation: GENERATION })
    }

    /// The key of this name, if it is one that is in use.
    pub fn key_in_use(&self, name: &KeyName) -> Option<AccessKey> {
        let (KeyName::Sandbox { generation, .. } | KeyName::Owner { generation }) = name;
        (*generation == GENERATION).then(|| self.gateway.key(name))
    }
}

fn sandbox_key_name(id: &SandboxId) -> KeyName {
    KeyName::Sandbox { sandbox: id.clone(), generation: GENERATION }
}

impl Tokens for Secrets {
    fn envd_access_token(&self, id: &SandboxId) -> Secret {
        Secret::new(hex::encode(derive(&self.master, "envd access token", id.as_str())))
    }

    fn traffic_access_token(&self, id: &SandboxId) -> Secret {
        Secret::new(hex::encode(derive(&self.master, "traffic access token", id.as_str())))
    }

    fn control_token(&self, id: &SandboxId) -> Secret {
        Secret::new(hex::encode(derive(&self.master, "daemon control token", id.as_str())))
    }
}

/// One secret of the master key, told from all others by what it is for and whose it is.
fn derive(master: &[u8; 32], purpose: &str, holder: &str) -> [u8; 32] {
    // HMAC fills a short key up with zeros to its block: doing so here leaves nothing that can fail.
    let mut block = [0; 64];
    block[..32].copy_from_slice(master);
    let mut mac: Hmac<Sha256> = Hmac::new(&block.into());
    mac.update(b"sandyard v1\0");
    mac.update(purpose.as_bytes());
    mac.update(b"\0");
    mac.update(holder.as_bytes());
    mac.finalize().into_bytes().into()
}

/// A fresh API key: `e2b_` and 40 hex digits (control-plane 1.1).
///
/// # Errors
/// The operating system's refusal of random numbers.
pub fn fresh_api_key() -> anyhow::Result<String> {
    let mut bytes = [0; 20];
    fill_random(&mut bytes)?;
    Ok(format!("e2b_{}", hex::encode(bytes)))
}

/// Fills `bytes` with random numbers.
///
/// # Errors
/// The operating system's refusal.
pub fn fill_random(bytes: &mut [u8]) -> anyhow::Result<()> {
    getrandom::fill(bytes).map_err(|e| anyhow::anyhow!("the system gives no random numbers: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_by_purpose_sandbox_and_installation_and_stay_the_same_otherwise() {
        let (one, two) = (Secrets::new([1; 32]), Secrets::new([2; 32]));
        let (a, b): (SandboxId, SandboxId) =
            ("ia".parse().expect("valid"), "ib".parse().expect("valid"));
        let token = one.envd_access_token(&a);
        assert_eq!(token.reveal().len(), 64);
        assert_eq!(token, Secrets::new([1; 32]).envd_access_token(&a));
        assert_ne!(token, one.envd_access_token(&b));
        assert_ne!(token, one.control_token(&a));
        assert_ne!(token, one.traffic_access_token(&a));
        assert_ne!(token, two.envd_access_token(&a));
        assert_ne!(one.control_public(), two.control_public());
        assert!(!format!("{one:?}{token:?}").contains(token.reveal()));
    }

    #[test]
    fn api_keys_have_the_form_every_client_accepts() -> anyhow::Result<()> {
        let key = fresh_api_key()?;
        let hex = key.strip_prefix("e2b_").expect("the prefix");
        assert_eq!(hex.len(), 40);
        assert!(hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        assert_ne!(key, fresh_api_key()?);
        Ok(())
    }

    #[test]
    fn only_keys_in_use_are_known() {
        let secrets = Secrets::new([3; 32]);
        let id: SandboxId = "ia".parse().expect("valid");
        let name = |generation| KeyName::Sandbox { sandbox: id.clone(), generation };
        assert_eq!(secrets.sandbox_key(&id).id, secrets.key_in_use(&name(1)).expect("in use").id);
        assert!(secrets.key_in_use(&name(2)).is_none());
    }
}
