//! Rules for a sandbox's traffic, as its client gave them (control-plane 3.1, `SandboxNetworkConfig`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a client said about traffic. Members that were not said are `None`; those that ask for nothing are
/// kept all the same, because the client gets back what it gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// `false`: ports other than the in-sandbox API's demand the traffic access token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Destinations that are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
    /// Destinations that are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_servers: Option<Vec<String>>,
    /// Ports that speak TLS themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_ports: Option<Vec<u32>>,
    /// `Host` of requests as services see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<HostMask>,
}

impl Network {
    /// Whether ports are open to whoever knows their names.
    pub fn is_public(&self) -> bool {
        self.allow_public_traffic != Some(false)
    }
}

/// What stands for the port in a [`HostMask`].
const PORT: &str = "${PORT}";

/// The text is no [`HostMask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is 'host' or 'host:port', in ASCII; '${{PORT}}' in it stands for the port")]
pub struct InvalidHostMask;

/// A host, with or without a port, in which `${PORT}` stands for the port that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostMask(String);

impl HostMask {
    /// The host for requests to `port`.
    pub fn for_port(&self, port: u16) -> String {
        self.0.replace(PORT, &port.to_string())
    }
}

impl FromStr for HostMask {
    type Err = InvalidHostMask;

    fn from_str(text: &str) -> Result<Self, InvalidHostMask> {
        // The longest port: what fits with it fits with all.
        let filled = text.replace(PORT, "65535");
        if is_host_and_port(&filled) { Ok(Self(text.to_owned())) } else { Err(InvalidHostMask) }
    }
}

impl TryFrom<String> for HostMask {
    type Error = InvalidHostMask;

    fn try_from(text: String) -> Result<Self, InvalidHostMask> {
        text.parse()
    }
}

impl From<HostMask> for String {
    fn from(mask: HostMask) -> Self {
        mask.0
    }
}

impl fmt::Display for HostMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, rest)) => match rest.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host_fits = if text.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        let label = |l: &str| {
            !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // A name may end in the root's dot.
        host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
    };
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    host_fits && port.is_none_or(|port| digits(port) && port.parse::<u16>().is_ok_and(|p| p != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_a_host_with_or_without_a_port() {
        for (text, filled) in [
            ("localhost:${PORT}", "localhost:8000"),
            ("${PORT}-x.example", "8000-x.example"),
            ("app.example.", "app.example."),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]:${PORT}", "[::1]:8000"),
        ] {
            let mask: HostMask = text.parse().expect(text);
            assert_eq!(mask.for_port(8000), filled);
        }
        // The first is the contract's example (control-plane 3.6).
        for text in [
            "-https://abcd",
            "",
            ":80",
            "a:",
            "a:x",
            "a:0",
            "a:65536",
            "a:1:2",
            "a b",
            "ä.example",
            "[::1",
            "[x]",
            "[::1]8",
            "u@a",
            "a..b",
        ] {
            assert_eq!(text.parse::<HostMask>(), Err(InvalidHostMask), "{text}");
        }
    }

    #[test]
    fn what_a_client_gave_is_kept_as_it_was() {
        let wire = r#"{"allowPublicTraffic":false,"allowOut":[],"maskRequestHost":"a:${PORT}"}"#;
        let network: Network = serde_json::from_str(wire).expect("readable");
        assert!(!network.is_public());
        assert_eq!(serde_json::to_string(&network).expect("writable"), wire);
        assert!(Network::default().is_public());
    }
}
