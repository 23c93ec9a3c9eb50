//! The names under which the ports of sandboxes are reached from outside (control-plane 5.5 (2)).
//!
//! Whoever can reach the proxy chooses what is read here.

use std::net::IpAddr;

use sandyard_types::SandboxId;

/// A port of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyTarget {
    /// Which sandbox.
    pub id: SandboxId,
    /// Which of its ports; never 0.
    pub port: u16,
}

/// Why a host names no port of a sandbox. What a client is told about it is the server's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidHost {
    /// It is not of the form `<port>-<sandboxID>.<domain>`.
    Form,
    /// Its port is no number from 1 to 65535.
    Port,
    /// Its sandbox ID has characters outside `[a-z0-9]`, too many, or none.
    Id,
}

/// Reads `<port>-<sandboxID>[-<anything>].<rest>`. The rest is not looked at (control-plane 5.5 (2)).
///
/// # Errors
/// [`InvalidHost`] for everything else.
pub fn target_of_host(host: &str) -> Result<ProxyTarget, InvalidHost> {
    let (label, _) = host.split_once('.').ok_or(InvalidHost::Form)?;
    let mut parts = label.splitn(3, '-');
    let (Some(port), Some(id)) = (parts.next(), parts.next()) else {
        return Err(InvalidHost::Form);
    };
    let port = port_of(port).ok_or(InvalidHost::Port)?;
    let id = id.parse().map_err(|_| InvalidHost::Id)?;
    Ok(ProxyTarget { id, port })
}

/// The host of an authority: without its port, and without an address's brackets.
pub fn without_port(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Whether the host is one of those that never name a sandbox, so that headers do: `localhost`, an
/// address, or a name that begins with `sandbox.` (control-plane 5.5 (1)).
pub fn names_no_sandbox(host: &str) -> bool {
    let starts = |prefix: &str| {
        host.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok() || starts("sandbox.")
}

/// A port as a number, before anything is decided by it; `None` for what is none from 1 to 65535.
pub fn port_of(text: &str) -> Option<u16> {
    let text = text.trim();
    // `parse` alone would take a sign.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}
