//! The `metadata` filter of the lists (control-plane 3.3).

use std::borrow::Cow;
use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use super::error::ApiError;

/// Pairs that a sandbox's metadata must all have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MetadataFilter(Vec<(String, String)>);

impl MetadataFilter {
    /// Reads the parameter as it is after the query was decoded. Clients encode keys and values, then the
    /// pairs as a form, so two more layers come off here; what was encoded less often is the same after
    /// each of them.
    pub(super) fn parse(parameter: &str) -> Result<Self, ApiError> {
        let form = form_decode(parameter);
        if form.is_empty() {
            return Ok(Self::default());
        }
        let pairs = form.split('&').map(|pair| {
            pair.split_once('=')
                .filter(|(_, value)| !value.contains('='))
                .map(|(key, value)| {
                    (form_decode(key).into_owned(), form_decode(value).into_owned())
                })
                .ok_or_else(|| {
                    ApiError::validation("metadata", "it is 'key=value' pairs joined by '&'")
                })
        });
        Ok(Self(pairs.collect::<Result<_, _>>()?))
    }

    /// Whether the metadata has every pair.
    pub(super) fn matches(&self, metadata: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| metadata.get(key) == Some(value))
    }
}

fn form_decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return Cow::Borrowed(text);
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    fn pairs(parameter: &str) -> Vec<(String, String)> {
        MetadataFilter::parse(parameter).expect("valid").0
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn what_clients_were_seen_to_send_is_read() {
        // `metadata=a%3Db%252520c` after the query was decoded.
        assert_eq!(pairs("a=b%2520c"), [pair("a", "b c")]);
        assert_eq!(pairs("k=v"), [pair("k", "v")]);
        assert_eq!(pairs("k=v&k2="), [pair("k", "v"), pair("k2", "")]);
        assert_eq!(pairs(""), []);
    }

    #[test]
    fn what_is_no_list_of_pairs_is_refused() {
        for bad in ["k", "k=v=w", "k=v&", "&k=v", "a%3Db%3Dc"] {
            assert!(MetadataFilter::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sandbox_without_metadata_matches_only_the_empty_filter() {
        let none = BTreeMap::new();
        assert!(MetadataFilter::default().matches(&none));
        assert!(!MetadataFilter::parse("k=").expect("valid").matches(&none));
    }

    proptest! {
        #[test]
        fn what_a_client_encodes_comes_back(key in ".{1,12}", value in ".{0,12}") {
            // As the SDKs do it: each of both, then the form.
            let once = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let form: String = form_urlencoded::Serializer::new(String::new())
                .append_pair(&once(&key), &once(&value))
                .finish();
            prop_assert_eq!(pairs(&form), [(key, value)]);
        }

        #[test]
        fn no_parameter_panics(text in ".{0,64}") {
            let _ = MetadataFilter::parse(&text);
        }
    }
}
