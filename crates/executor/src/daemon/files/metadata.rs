//! Metadata of uploads, from their headers (executor 6.5).

use std::collections::BTreeMap;

use hyper::header::HeaderMap;

use super::super::filesystem::metadata::PREFIX;
use super::FileRefusal;

const HEADER_PREFIX: &str = "x-metadata-";

/// The kernel's limit for a name, less our prefix.
const KEY_LIMIT: usize = 246;

/// Over all entries, prefix, key and value.
const TOTAL_LIMIT: usize = 4096;

/// Reads `X-Metadata-<key>` headers: keys in lower case, the first of repeated ones.
pub(super) fn read(headers: &HeaderMap) -> Result<BTreeMap<String, String>, FileRefusal> {
    let mut metadata = BTreeMap::new();
    let mut total = 0;
    for name in headers.keys() {
        // Header names are in lower case here.
        let Some(key) = name.as_str().strip_prefix(HEADER_PREFIX) else {
            continue;
        };
        let Some(value) = headers.get(name).filter(|_| !key.is_empty()) else {
            continue;
        };
        if key.len() > KEY_LIMIT {
            let message = format!("metadata key '{key}' is longer than {KEY_LIMIT} bytes");
            return Err(FileRefusal::invalid(message));
        }
        let value =
            value.to_str().ok().filter(|text| text.bytes().all(|b| (b' '..=b'~').contains(&b)));
        let Some(value) = value else {
            let message = format!("the value of metadata '{key}' is not printable ASCII");
            return Err(FileRefusal::invalid(message));
        };
        total += PREFIX.len() + key.len() + value.len();
        metadata.insert(key.to_owned(), value.to_owned());
    }
    if total > TOTAL_LIMIT {
        let message = format!("the metadata has {total} bytes, more than {TOTAL_LIMIT}");
        return Err(FileRefusal::invalid(message));
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn keys_are_lower_case_and_the_first_value_counts() {
        let read = read(&headers(&[
            ("X-Metadata-Author", b"me"),
            ("x-metadata-author", b"you"),
            ("X-Metadata-", b"nothing"),
            ("X-Other", b"x"),
        ]));
        assert_eq!(read.unwrap(), BTreeMap::from([("author".into(), "me".into())]));
    }

    #[test]
    fn limits() {
        let long = format!("x-metadata-{}", "k".repeat(247));
        assert!(read(&headers(&[(&long, b"v")])).is_err());
        assert!(read(&headers(&[(&long[..long.len() - 1], b"v")])).is_ok());
        assert!(read(&headers(&[("x-metadata-a", "ü".as_bytes())])).is_err());
        assert!(read(&headers(&[("x-metadata-a", b"a\tb")])).is_err());
        assert!(read(&headers(&[("x-metadata-a", &[b'v'; 4086])])).is_ok());
        assert!(read(&headers(&[("x-metadata-a", &[b'v'; 4087])])).is_err());
    }
}
