//! What a sandbox's client has said about traffic to its ports (control-plane 3.1, 5.5).

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue};
use sandyard_contract::control::Secret;
use sandyard_types::HostMask;
use subtle::ConstantTimeEq as _;

use super::answers::Refusal;
use super::target::Target;

const TOKEN_HEADER: HeaderName = HeaderName::from_static("e2b-traffic-access-token");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Whether a request that has these headers may pass. The daemon's port is exempt: it looks at a token of its
/// own.
pub(super) fn check(
    demanded: Option<&Secret>,
    target: &Target,
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    let Some(demanded) = demanded else {
        return Ok(());
    };
    let given = headers.get(TOKEN_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
    if given.is_empty() {
        return Err(Refusal::TrafficTokenMissing(target.id.clone()));
    }
    if bool::from(demanded.reveal().as_bytes().ct_eq(given)) {
        Ok(())
    } else {
        Err(Refusal::TrafficTokenWrong(target.id.clone()))
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
        let target = Target { id: "iabc".parse().expect("valid"), port: 80 };
        let secret = Secret::new("right");
        let checked = |given: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(TOKEN_HEADER, HeaderValue::from_static(given));
            }
            check(Some(&secret), &target, &headers)
        };
        let id = target.id.clone();
        assert_eq!(checked(None), Err(Refusal::TrafficTokenMissing(id.clone())));
        assert_eq!(checked(Some("")), Err(Refusal::TrafficTokenMissing(id.clone())));
        assert_eq!(checked(Some("wrong")), Err(Refusal::TrafficTokenWrong(id)));
        assert_eq!(checked(Some("right")), Ok(()));
        assert_eq!(check(None, &target, &HeaderMap::new()), Ok(()));
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
