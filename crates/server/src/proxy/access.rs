//! Who may pass to a sandbox's ports, and as whom: what its client has said about traffic to them (control-plane
//! 3.1, 5.5), and the daemon's token.

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue};
use sandyard_types::{HostMask, Secret};
use subtle::ConstantTimeEq as _;

use super::answers::ProxyRefusal;
use super::target::{ID_HEADER, PORT_HEADER, ProxyTarget};

const TOKEN_HEADER: HeaderName = HeaderName::from_static("e2b-traffic-access-token");
pub(super) const ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Headers that say for which sandbox a request is and what opens it. Two of one kind could be read differently by
/// two readers.
const ONCE: [HeaderName; 4] = [
    HeaderName::from_static(ID_HEADER),
    HeaderName::from_static(PORT_HEADER),
    ACCESS_TOKEN,
    TOKEN_HEADER,
];

/// Refuses a request that carries one of [`ONCE`] more than once.
pub(super) fn check_once(headers: &HeaderMap) -> Result<(), ProxyRefusal> {
    let repeated = |name: &HeaderName| headers.get_all(name).iter().nth(1).is_some();
    match ONCE.into_iter().find(repeated) {
        Some(name) => Err(ProxyRefusal::Repeated(name)),
        None => Ok(()),
    }
}

/// Shows the daemon the token that it demands, in the place of whatever the client has sent.
pub(super) fn put_access_token(headers: &mut HeaderMap, token: &Secret) {
    // Tokens are hex digits.
    if let Ok(value) = HeaderValue::from_str(token.reveal()) {
        headers.insert(ACCESS_TOKEN, value);
    }
}

/// Whether a request that has these headers may pass. The daemon's port is exempt: it looks at a token of its
/// own.
pub(super) fn check(
    demanded: Option<&Secret>,
    target: &ProxyTarget,
    headers: &HeaderMap,
) -> Result<(), ProxyRefusal> {
    let Some(demanded) = demanded else {
        return Ok(());
    };
    let given = headers.get(TOKEN_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
    if given.is_empty() {
        return Err(ProxyRefusal::TrafficTokenMissing(target.id.clone()));
    }
    if bool::from(demanded.reveal().as_bytes().ct_eq(given)) {
        Ok(())
    } else {
        Err(ProxyRefusal::TrafficTokenWrong(target.id.clone()))
    }
}

/// Shows the service the host that the sandbox's client wants it to see, and beside it the one asked for.
pub(super) fn put_mask(headers: &mut HeaderMap, mask: &HostMask, port: u16) {
    // A mask is ASCII without control characters whatever the port.
    if let Ok(masked) = HeaderValue::try_from(mask.for_port(port))
        && let Some(asked) = headers.insert(HOST, masked)
    {
        headers.insert(FORWARDED_HOST, asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_missing_wrong_or_right() {
        let target = ProxyTarget { id: "iabc".parse().expect("valid"), port: 80 };
        let secret = Secret::new("right");
        let checked = |given: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(TOKEN_HEADER, HeaderValue::from_static(given));
            }
            check(Some(&secret), &target, &headers)
        };
        let id = target.id.clone();
        assert_eq!(checked(None), Err(ProxyRefusal::TrafficTokenMissing(id.clone())));
        assert_eq!(checked(Some("")), Err(ProxyRefusal::TrafficTokenMissing(id.clone())));
        assert_eq!(checked(Some("wrong")), Err(ProxyRefusal::TrafficTokenWrong(id)));
        assert_eq!(checked(Some("right")), Ok(()));
        assert_eq!(check(None, &target, &HeaderMap::new()), Ok(()));
    }

    #[test]
    fn what_names_or_opens_a_sandbox_comes_once() {
        for name in ONCE {
            let mut headers = HeaderMap::new();
            headers.append(&name, HeaderValue::from_static("a"));
            assert_eq!(check_once(&headers), Ok(()));
            headers.append(&name, HeaderValue::from_static("a"));
            assert_eq!(check_once(&headers), Err(ProxyRefusal::Repeated(name)));
        }
    }

    #[test]
    fn a_mask_takes_the_place_of_the_host() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("80-iabc.x:3002"));
        headers.insert(FORWARDED_HOST, HeaderValue::from_static("made up"));
        put_mask(&mut headers, &"localhost:${PORT}".parse().expect("valid"), 80);
        assert_eq!(headers[HOST], "localhost:80");
        assert_eq!(headers[FORWARDED_HOST], "80-iabc.x:3002");
    }
}
