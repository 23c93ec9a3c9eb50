//! Which encoding a download gets (executor 6.4).

use hyper::header::{
    ACCEPT_ENCODING, HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, RANGE,
};

/// How a file is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    /// gzip, which also allows identity if `identity` says so.
    Gzip {
        identity: bool,
    },
}

/// The client refuses everything we have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no acceptable encoding: gzip and identity are supported")]
pub(super) struct NotAcceptable;

/// Requests that are about parts or versions of the file itself, and so get it as it is.
const ABOUT_PLAIN_BYTES: [HeaderName; 6] =
    [RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];

pub(super) fn choose(headers: &HeaderMap) -> Result<Encoding, NotAcceptable> {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    for item in values.flat_map(|value| value.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let weight = match parts.next().map(str::to_ascii_lowercase).as_deref() {
            Some("gzip") => &mut gzip,
            Some("identity") => &mut identity,
            Some("*") => &mut any,
            _ => continue,
        };
        *weight = Some(quality(parts));
    }
    // What is not named is accepted, unless `*` says otherwise; `*` alone does not ask for gzip.
    let identity_refused = identity.or(any) == Some(0.0);
    let gzip_weight = match (gzip, any) {
        (Some(weight), _) => weight,
        // Identity is refused by name and anything else will do.
        (None, Some(weight)) if identity == Some(0.0) => weight,
        _ => 0.0,
    };
    let must_be_plain = ABOUT_PLAIN_BYTES.iter().any(|name| headers.contains_key(name));
    if must_be_plain {
        return if identity_refused { Err(NotAcceptable) } else { Ok(Encoding::Identity) };
    }
    let identity_preferred = identity.is_some_and(|weight| weight > gzip_weight);
    if gzip_weight > 0.0 && !identity_preferred {
        return Ok(Encoding::Gzip { identity: !identity_refused });
    }
    if identity_refused { Err(NotAcceptable) } else { Ok(Encoding::Identity) }
}

/// The weight among an item's parameters; 1 if none can be read.
fn quality<'a>(parameters: impl Iterator<Item = &'a str>) -> f32 {
    let weight = parameters.filter_map(|text| text.split_once('=')).find_map(|(name, value)| {
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse().ok())?
    });
    weight.unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const BOTH: Result<Encoding, NotAcceptable> = Ok(Encoding::Gzip { identity: true });
    const ONLY_GZIP: Result<Encoding, NotAcceptable> = Ok(Encoding::Gzip { identity: false });
    const PLAIN: Result<Encoding, NotAcceptable> = Ok(Encoding::Identity);

    fn accepting(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))])
    }

    #[test]
    fn weights_decide() {
        for (value, expected) in [
            ("gzip, deflate, br", BOTH),
            ("gzip;q=0.1", BOTH),
            ("identity, gzip;q=0.5", PLAIN),
            ("identity;q=0.5, GZIP; Q=0.9", BOTH),
            ("gzip, identity", BOTH),
            ("gzip, identity;q=0", ONLY_GZIP),
            ("gzip, *;q=0", ONLY_GZIP),
            ("gzip;q=0", PLAIN),
            ("*", PLAIN),
            ("*;q=0, identity", PLAIN),
            ("*, identity;q=0", ONLY_GZIP),
            ("br", PLAIN),
            ("", PLAIN),
            ("identity;q=0", Err(NotAcceptable)),
            ("*;q=0", Err(NotAcceptable)),
            ("gzip;q=0, identity;q=0", Err(NotAcceptable)),
        ] {
            assert_eq!(choose(&accepting(value)), expected, "{value:?}");
        }
        assert_eq!(choose(&HeaderMap::new()), PLAIN);
    }

    #[test]
    fn parts_are_sent_as_they_are() {
        let mut headers = accepting("gzip");
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-1"));
        assert_eq!(choose(&headers), PLAIN);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, identity;q=0"));
        assert_eq!(choose(&headers), Err(NotAcceptable));
    }
}
