//! Headers that are for one connection only (RFC 9110, 7.6.1).

use http::header::{
    CONNECTION, EXPECT, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The protocol that the sender wants to go on in, if it wants to: `Upgrade` counts only where
/// `Connection` names it.
pub(super) fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = named_by_connection(headers).any(|name| name.eq_ignore_ascii_case("upgrade"));
    named.then(|| headers.get(UPGRADE).cloned()).flatten()
}

fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

/// Takes out what is for this connection only.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        named_by_connection(headers).filter_map(|name| name.parse().ok()).collect();
    for name in named {
        headers.remove(name);
    }
    // What a receiver of trailers says about itself concerns the far end too.
    let trailers = headers.get_all(TE).iter().any(|value| {
        let text = value.to_str().unwrap_or_default();
        text.split(',').any(|item| item.trim() == "trailers")
    });
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes out of a request what this side answers itself, and puts the upgrade back in.
pub(super) fn prepare_request(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    remove_hop_by_hop(headers);
    // The client is told to go on as soon as its body is read.
    headers.remove(EXPECT);
    put_upgrade(headers, upgrade);
}

/// Says that the connection goes on in another protocol.
pub(super) fn put_upgrade(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn only_what_concerns_the_far_end_goes_on() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-access-token", "t"),
            ("content-length", "3"),
        ]);
        assert_eq!(wanted_upgrade(&headers), None);
        prepare_request(&mut headers, None);
        let expected = map(&[("x-access-token", "t"), ("content-length", "3"), ("te", "trailers")]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn an_upgrade_goes_on() {
        let mut headers = map(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
        ]);
        let upgrade = wanted_upgrade(&headers);
        assert_eq!(upgrade, Some(HeaderValue::from_static("websocket")));
        prepare_request(&mut headers, upgrade.as_ref());
        let expected =
            map(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")]);
        assert_eq!(headers, expected);
    }
}
