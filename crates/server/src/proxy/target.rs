//! Which port of which sandbox a request is for (control-plane 5.5 (1), (2)).

use http::HeaderMap;
pub(super) use sandyard_contract::sandbox_host::ProxyTarget;
use sandyard_contract::sandbox_host::{
    InvalidHost, names_no_sandbox, port_of, target_of_host, without_port,
};
use sandyard_types::SandboxId;

pub(super) const ID_HEADER: &str = "e2b-sandbox-id";
pub(super) const PORT_HEADER: &str = "e2b-sandbox-port";

/// Why a request is for no sandbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unaddressed {
    #[error("missing header: {0}")]
    MissingHeader(&'static str),
    #[error("Invalid port: it is a number from 1 to 65535")]
    Port,
    #[error("Invalid sandbox ID")]
    Id,
    #[error(
        "Invalid host: name the sandbox in the host, as <port>-<sandboxID>.<domain>, or in the headers \
         E2b-Sandbox-Id and E2b-Sandbox-Port"
    )]
    Host,
}

impl From<InvalidHost> for Unaddressed {
    fn from(invalid: InvalidHost) -> Self {
        match invalid {
            InvalidHost::Form => Self::Host,
            InvalidHost::Port => Self::Port,
            InvalidHost::Id => Self::Id,
        }
    }
}

/// Reads host and headers. On `localhost`, addresses and hosts that begin with `sandbox.` the headers
/// decide; on others the host does if it names a sandbox, else the headers again (names in a local network).
pub(super) fn target_of(
    host: Option<&str>,
    headers: &HeaderMap,
) -> Result<ProxyTarget, Unaddressed> {
    let host = host.map(without_port).unwrap_or_default();
    let by_headers = from_headers(headers);
    if names_no_sandbox(host)
        && let Some(target) = by_headers
    {
        return target;
    }
    match (target_of_host(host), by_headers) {
        (Ok(target), _) => Ok(target),
        (Err(_), Some(target)) => target,
        (Err(invalid), None) => Err(invalid.into()),
    }
}

/// What the headers say; `None` if there are none.
fn from_headers(headers: &HeaderMap) -> Option<Result<ProxyTarget, Unaddressed>> {
    let (id, port) = match (headers.get(ID_HEADER), headers.get(PORT_HEADER)) {
        (None, None) => return None,
        (Some(_), None) => return Some(Err(Unaddressed::MissingHeader("E2b-Sandbox-Port"))),
        (None, Some(_)) => return Some(Err(Unaddressed::MissingHeader("E2b-Sandbox-Id"))),
        (Some(id), Some(port)) => (id.to_str(), port.to_str()),
    };
    let target = || {
        let port = port.ok().and_then(port_of).ok_or(Unaddressed::Port)?;
        let id = id.map_err(|_| Unaddressed::Id)?;
        let id = SandboxId::from_path(id.trim()).map_err(|_| Unaddressed::Id)?;
        Ok(ProxyTarget { id, port })
    };
    Some(target())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(id: Option<&str>, port: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [(ID_HEADER, id), (PORT_HEADER, port)] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_str(value).expect("value"));
            }
        }
        headers
    }

    fn target(id: &str, port: u16) -> ProxyTarget {
        ProxyTarget { id: id.parse().expect("valid"), port }
    }

    #[test]
    fn hosts_name_port_and_sandbox() {
        for host in [
            "8000-iabc.sbx.localhost",
            "8000-iabc.sbx.localhost:3002",
            "8000-iabc-6532622b.localhost",
            "8000-iabc-a-b-c.x",
            "08000-iabc.x",
        ] {
            assert_eq!(
                target_of(Some(host), &HeaderMap::new()),
                Ok(target("iabc", 8000)),
                "{host}"
            );
        }
    }

    #[test]
    fn what_is_wrong_with_a_host_is_said() {
        for (host, expected) in [
            (None, Unaddressed::Host),
            (Some("localhost:3002"), Unaddressed::Host),
            (Some("127.0.0.1:3002"), Unaddressed::Host),
            (Some("[::1]:3002"), Unaddressed::Host),
            (Some("8000-iabc"), Unaddressed::Host),
            (Some("iabc.x"), Unaddressed::Host),
            (Some("x-iabc.x"), Unaddressed::Port),
            (Some("+80-iabc.x"), Unaddressed::Port),
            (Some("0-iabc.x"), Unaddressed::Port),
            (Some("65536-iabc.x"), Unaddressed::Port),
            (Some("-iabc.x"), Unaddressed::Port),
            (Some("80-.x"), Unaddressed::Id),
            (Some("80-iABC.x"), Unaddressed::Id),
        ] {
            assert_eq!(target_of(host, &HeaderMap::new()), Err(expected), "{host:?}");
        }
    }

    #[test]
    fn headers_decide_where_the_host_names_no_sandbox() {
        let given = headers(Some("iabc"), Some("49983"));
        for host in [
            "localhost:3002",
            "LOCALHOST",
            "127.0.0.1",
            "[::1]:3002",
            "sandbox.e2b.example",
            // Parses as a sandbox host, but begins with `sandbox.`: no dash in its first label.
            "sandbox.8000-iother.x",
            "build-machine.lan",
            "proxy",
        ] {
            assert_eq!(target_of(Some(host), &given), Ok(target("iabc", 49983)), "{host}");
        }
        // Where it does, they are ignored, even if there is only one.
        let one = headers(None, Some("1"));
        for given in [given, one] {
            let other = target_of(Some("8000-iother.x"), &given);
            assert_eq!(other, Ok(target("iother", 8000)));
        }
    }

    #[test]
    fn what_is_wrong_with_headers_is_said() {
        for (id, port, expected) in [
            (Some("iabc"), None, Unaddressed::MissingHeader("E2b-Sandbox-Port")),
            (None, Some("80"), Unaddressed::MissingHeader("E2b-Sandbox-Id")),
            (Some("iabc"), Some("http"), Unaddressed::Port),
            (Some("iABC"), Some("80"), Unaddressed::Id),
            (Some("a-b-c"), Some("80"), Unaddressed::Id),
        ] {
            let refused = target_of(Some("localhost"), &headers(id, port));
            assert_eq!(refused, Err(expected));
        }
    }

    proptest! {
        #[test]
        fn every_port_and_id_comes_through_the_host(
            port in 1_u16..,
            id in "[a-z0-9]{1,21}",
            suffix in "(-[a-z0-9-]{0,8})?",
            rest in "[a-z0-9.]{0,20}",
        ) {
            let host = format!("{port}-{id}{suffix}.{rest}:3002");
            let read = target_of(Some(&host), &HeaderMap::new());
            prop_assert_eq!(read, Ok(target(&id, port)));
        }

        #[test]
        fn no_host_panics(host in "\\PC{0,40}") {
            let _ = target_of(Some(&host), &HeaderMap::new());
        }
    }
}
