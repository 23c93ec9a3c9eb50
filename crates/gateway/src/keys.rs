//! Access keys that are derived, not stored (design 6.2): nothing to keep per sandbox, valid after a
//! restart of the server.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use s3s::auth::SecretKey;
use sandyard_types::SandboxId;
use sha2::Sha256;

/// Begins every access key id of ours.
const PREFIX: &str = "SY";
/// Stands where a sandbox id stands in a sandbox's key. Sandbox ids have no capital letters.
const OWNER: &str = "OWNER";
/// Between the holder and the generation.
const GENERATION: char = 'G';

/// Who an access key was made for, as its id says: `SY<sandbox id>G<generation>`, or
/// `SYOWNERG<generation>` for the installation's owner. At most 76 characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyName {
    /// One sandbox.
    Sandbox {
        /// The sandbox.
        sandbox: SandboxId,
        /// Counts up when the sandbox gets a new key; the old one dies with it.
        generation: u32,
    },
    /// Whoever runs the installation (`sandyard env`).
    Owner {
        /// Counts up when the owner asks for a new key.
        generation: u32,
    },
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox { sandbox, generation } => {
                write!(f, "{PREFIX}{sandbox}{GENERATION}{generation}")
            }
            Self::Owner { generation } => write!(f, "{PREFIX}{OWNER}{GENERATION}{generation}"),
        }
    }
}

/// An access key id that is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an access key id of this gateway")]
pub struct InvalidAccessKeyId;

impl FromStr for KeyName {
    type Err = InvalidAccessKeyId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (holder, number) = text
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.rsplit_once(GENERATION))
            .ok_or(InvalidAccessKeyId)?;
        let generation: u32 = number.parse().map_err(|_| InvalidAccessKeyId)?;
        let name = match holder {
            OWNER => Self::Owner { generation },
            id => {
                let sandbox = id.parse().map_err(|_| InvalidAccessKeyId)?;
                Self::Sandbox { sandbox, generation }
            }
        };
        // One key has one id: "G01" and "G+1" are no other ways to write "G1".
        if name.to_string() == text { Ok(name) } else { Err(InvalidAccessKeyId) }
    }
}

/// An access key in the form a client wants it.
#[derive(Clone, Debug)]
pub struct AccessKey {
    /// The access key id.
    pub id: String,
    /// The secret; never shown by `Debug`.
    pub secret: SecretKey,
}

/// Makes access keys from the installation's master key: the secret is HMAC-SHA256 over the key's
/// name.
#[derive(Clone)]
pub struct GatewayKeys {
    mac: Hmac<Sha256>,
}

impl fmt::Debug for GatewayKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayKeys").finish_non_exhaustive()
    }
}

impl GatewayKeys {
    /// Keys of the installation with this master key.
    pub fn new(master: &[u8; 32]) -> Self {
        // HMAC pads a short key with zeros to the hash's block size.
        let mut block = [0u8; 64];
        block[..master.len()].copy_from_slice(master);
        Self { mac: Hmac::new(&block.into()) }
    }

    /// The access key of this name. The same name gives the same key for the life of the master key.
    pub fn key(&self, name: &KeyName) -> AccessKey {
        let id = name.to_string();
        let mut mac = self.mac.clone();
        // The tag keeps these secrets apart from anything else the master key may be used for.
        mac.update(b"sandyard gateway secret\0");
        mac.update(id.as_bytes());
        let secret = SecretKey::from(hex::encode(mac.finalize().into_bytes()));
        AccessKey { id, secret }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(byte: u8) -> GatewayKeys {
        GatewayKeys::new(&[byte; 32])
    }

    #[test]
    fn a_secret_depends_on_master_holder_and_generation_and_on_nothing_else() {
        let sandbox: SandboxId = "iabc".parse().expect("valid");
        let name = |generation| KeyName::Sandbox { sandbox: sandbox.clone(), generation };
        let key = keys(1).key(&name(1));
        assert_eq!(key.id, "SYiabcG1");
        assert_eq!(key.secret.expose(), keys(1).key(&name(1)).secret.expose());
        let others = [keys(2).key(&name(1)), keys(1).key(&name(2))];
        let owner = keys(1).key(&KeyName::Owner { generation: 1 });
        for other in others.iter().chain([&owner]) {
            assert_ne!(key.secret.expose(), other.secret.expose());
        }
        assert!(!format!("{key:?}").contains(key.secret.expose()));
    }

    #[test]
    fn ids_that_are_not_ours_are_refused() {
        for bad in ["", "SY", "SYG1", "SYiabcG", "SYiabcG01", "SYiabcG+1", "iabcG1", "SYABCG1"] {
            assert_eq!(bad.parse::<KeyName>(), Err(InvalidAccessKeyId), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_id_names_its_key(id in "[a-z0-9]{1,63}", generation: u32) {
            let sandbox = id.parse().expect("valid");
            let name = KeyName::Sandbox { sandbox, generation };
            let text = name.to_string();
            prop_assert!(text.len() <= 128);
            prop_assert_eq!(text.parse::<KeyName>(), Ok(name));
        }
    }
}
