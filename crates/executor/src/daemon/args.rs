//! The command line of `daemon`.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, bail};
use ed25519_dalek::VerifyingKey;
use sandyard_contract::daemon::DAEMON_PORT;
use sandyard_types::InstanceId;

/// What the daemon is told by who starts it. Nothing of it is secret.
#[derive(Debug)]
pub(super) struct DaemonArgs {
    /// Who this container is and whom it obeys.
    pub identity: ContainerIdentity,
    /// Where to listen; only tests name something else than the contract's port.
    pub listen: SocketAddr,
    /// Whether the template asks for a code interpreter.
    pub interpreter: bool,
}

/// Who this container is, and whose calls to `/init` it obeys.
#[derive(Debug)]
pub(super) struct ContainerIdentity {
    /// Names this container: what calls must be signed for.
    pub instance: InstanceId,
    /// The installation's public key.
    pub control_key: VerifyingKey,
}

impl DaemonArgs {
    pub(super) fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (mut instance, mut control_key) = (None, None);
        let mut listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, DAEMON_PORT));
        let mut interpreter = false;
        while let Some(name) = arguments.next() {
            if name == "--interpreter" {
                interpreter = true;
                continue;
            }
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--instance" => instance = Some(value.parse::<InstanceId>()?),
                "--control-key" => control_key = Some(parse_key(&value)?),
                "--listen" => listen = value.parse().context("--listen is no address:port")?,
                _ => bail!("unknown argument {name}"),
            }
        }
        let identity = ContainerIdentity {
            instance: instance.context("--instance is missing")?,
            control_key: control_key.context("--control-key is missing")?,
        };
        Ok(Self { identity, listen, interpreter })
    }
}

fn parse_key(text: &str) -> anyhow::Result<VerifyingKey> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).context("--control-key is not 64 hex digits")?;
    VerifyingKey::from_bytes(&bytes).context("--control-key is no Ed25519 public key")
}

#[cfg(test)]
mod tests {
    use super::*;

    // The public key of RFC 8032's first test vector.
    const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    fn parse(line: &str) -> anyhow::Result<DaemonArgs> {
        DaemonArgs::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_contracts_port_is_the_default() {
        let args = parse(&format!("--instance {} --control-key {KEY}", "0".repeat(32))).unwrap();
        assert_eq!(args.listen.to_string(), "0.0.0.0:49983");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let message = |line: &str| parse(line).unwrap_err().to_string();
        assert_eq!(message(""), "--instance is missing");
        assert_eq!(message("--control-key"), "--control-key needs a value");
        assert_eq!(message("--control-key zz"), "--control-key is not 64 hex digits");
        assert_eq!(message("--port 1"), "unknown argument --port");
    }
}
