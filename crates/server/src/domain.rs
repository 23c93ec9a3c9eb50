//! The domain that sandboxes are reached under: `<port>-<sandboxID>.<domain>`, the API at `api.<domain>`
//! (control-plane 5.2).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// What the domain is unless another is configured.
const DEFAULT_NAME: &str = "sbx.localhost";

/// For these, clients make addresses of their own, so that they never come here (control-plane 5.2).
const HOSTED: [&str; 7] = [
    "e2b.app",
    "e2b.dev",
    "e2b.pro",
    "e2b-staging.dev",
    "e2b-tango.dev",
    "e2b-juliett.dev",
    "foxtrot-2.e2b.dev",
];

/// The text is no domain that clients can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDomain {
    /// It has another form.
    #[error(
        "it is a name of two labels or more, with or without a port, such as 'sbx.localhost:3002'"
    )]
    Form,
    /// It is E2B's own.
    #[error("clients take this name for E2B's own service: choose another")]
    Hosted,
}

/// A name of two labels or more, which one wildcard certificate can cover, and perhaps a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    name: String,
    port: Option<u16>,
}

impl Domain {
    /// The domain of a server on this machine whose proxy has this port.
    pub fn local(port: u16) -> Self {
        Self { name: DEFAULT_NAME.to_owned(), port: Some(port) }
    }

    /// The name alone, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port of `https://<name>`.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(443)
    }

    /// The host of the API.
    pub fn api_host(&self) -> String {
        format!("api.{}", self.name)
    }

    /// Whether this machine's resolvers, not a name server, have to know the names.
    pub fn is_localhost(&self) -> bool {
        self.name.ends_with(".localhost")
    }
}

impl FromStr for Domain {
    type Err = InvalidDomain;

    fn from_str(text: &str) -> Result<Self, InvalidDomain> {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => {
                let digits = port.bytes().all(|b| b.is_ascii_digit());
                let port = port.parse().ok().filter(|port| digits && *port != 0);
                (name, Some(port.ok_or(InvalidDomain::Form)?))
            }
            None => (text, None),
        };
        let label =
            |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_name = name.contains('.') && name.split('.').all(label);
        if !is_name || name.parse::<IpAddr>().is_ok() {
            return Err(InvalidDomain::Form);
        }
        let name = name.to_ascii_lowercase();
        if HOSTED.contains(&name.as_str()) {
            return Err(InvalidDomain::Hosted);
        }
        Ok(Self { name, port })
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_a_name_that_clients_can_use() {
        let domain: Domain = "SBX.example:3002".parse().expect("valid");
        assert_eq!((domain.name(), domain.port()), ("sbx.example", 3002));
        assert_eq!(domain.to_string(), "sbx.example:3002");
        assert_eq!(domain.api_host(), "api.sbx.example");
        assert_eq!("a.b".parse::<Domain>().expect("valid").port(), 443);
        assert_eq!(Domain::local(1).to_string(), "sbx.localhost:1");
        assert!(Domain::local(1).is_localhost() && !domain.is_localhost());
        for text in
            ["localhost:3002", "127.0.0.1:3002", "http://a.b", "a..b", "a.b:", "a.b:0", "a.b:x"]
        {
            assert_eq!(text.parse::<Domain>(), Err(InvalidDomain::Form), "{text}");
        }
        // control-plane 5.2
        for text in [
            "e2b.app",
            "e2b.dev",
            "e2b.pro",
            "e2b-staging.dev",
            "e2b-tango.dev",
            "e2b-juliett.dev",
            "foxtrot-2.e2b.dev",
            "E2B.dev:443",
        ] {
            assert_eq!(text.parse::<Domain>(), Err(InvalidDomain::Hosted), "{text}");
        }
    }
}
