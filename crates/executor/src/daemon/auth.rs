//! Who may do what: the access token, the user of a request, signatures of file URLs (executor 3).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName};
use sandyard_contract::daemon::{
    CONTROL_TOKEN_HEADER, INIT_BODY_HASH_HEADER, INIT_PATH, INIT_SIGNATURE_HEADER,
};
use sandyard_types::Secret;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

const ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");

/// Routes that need no token, or check their own (executor 3.2).
pub(super) fn is_open(method: &Method, path: &str) -> bool {
    matches!(
        (method.as_str(), path),
        ("GET", "/health") | ("GET" | "POST", "/files") | ("POST", INIT_PATH)
    )
}

/// Whether `given` is the secret, in a time that tells nothing about it.
pub(super) fn equals(secret: &Secret, given: &[u8]) -> bool {
    secret.reveal().as_bytes().ct_eq(given).into()
}

/// Headers that say who calls. Two of one kind could be read differently by two readers.
const CREDENTIALS: [HeaderName; 5] = [
    ACCESS_TOKEN,
    AUTHORIZATION,
    HeaderName::from_static(CONTROL_TOKEN_HEADER),
    HeaderName::from_static(INIT_SIGNATURE_HEADER),
    HeaderName::from_static(INIT_BODY_HASH_HEADER),
];

/// The credential that a request carries more than once, if there is one.
pub(super) fn repeated_credential(headers: &HeaderMap) -> Option<HeaderName> {
    CREDENTIALS.into_iter().find(|name| headers.get_all(name).iter().nth(1).is_some())
}

/// Checks the header that everything but the open routes needs. Nothing is right before a token is set.
pub(super) fn check_token(token: Option<&Secret>, headers: &HeaderMap) -> Result<(), &'static str> {
    match (headers.get(ACCESS_TOKEN), token) {
        (Some(given), Some(token)) if equals(token, given.as_bytes()) => Ok(()),
        (Some(_), _) => Err("the access token in X-Access-Token is not this sandbox's"),
        (None, _) => Err("this sandbox needs its access token in X-Access-Token"),
    }
}

/// The user that a request names (executor 3.1); the password means nothing. What is not of the Basic
/// form names nobody.
pub(super) fn basic_user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(user, _)| user.to_owned())
}

/// What a file URL allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
}

/// A file request as far as its permission goes: texts as they stand in the query, decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signed<'a> {
    pub operation: Operation,
    pub path: &'a str,
    pub username: &'a str,
    pub signature: Option<&'a str>,
    /// Unix seconds.
    pub expiration: Option<i64>,
}

impl Signed<'_> {
    /// Checks a request for a file (executor 3.3) at the time `now`, in Unix seconds.
    ///
    /// # Errors
    /// The message of the 401.
    pub(super) fn check(
        &self,
        token: Option<&Secret>,
        headers: &HeaderMap,
        now: i64,
    ) -> Result<(), &'static str> {
        let token = token.ok_or("this sandbox has no access token yet")?;
        if let Some(given) = headers.get(ACCESS_TOKEN).filter(|given| !given.is_empty()) {
            return match equals(token, given.as_bytes()) {
                true => Ok(()),
                false => Err("access token present in header but does not match"),
            };
        }
        let given = self.signature.ok_or("missing signature query parameter")?;
        if !bool::from(self.expected(token).as_bytes().ct_eq(given.as_bytes())) {
            return Err("invalid signature");
        }
        match self.expiration {
            Some(expiration) if expiration < now => Err("signature is already expired"),
            _ => Ok(()),
        }
    }

    fn expected(&self, token: &Secret) -> String {
        let operation = match self.operation {
            Operation::Read => "read",
            Operation::Write => "write",
        };
        let mut text = format!("{}:{operation}:{}:{}", self.path, self.username, token.reveal());
        if let Some(expiration) = self.expiration {
            text.push_str(&format!(":{expiration}"));
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const READ: Signed<'static> = Signed {
        operation: Operation::Read,
        path: "hello.txt",
        username: "user",
        signature: None,
        expiration: None,
    };
    const WRITE: Signed<'static> = Signed {
        operation: Operation::Write,
        path: "/home/user/a b.txt",
        username: "",
        signature: None,
        expiration: None,
    };

    #[test]
    fn the_contracts_vectors() {
        let first = Secret::new("0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0");
        assert_eq!(READ.expected(&first), "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E");
        let token = Secret::new("tok123");
        assert_eq!(WRITE.expected(&token), "v1_7GVeMTBibFdyYOxMv7Dgk7eE52Ovf/1xehm2Stkl85w");
        let expiring = Signed { expiration: Some(1_800_000_000), ..WRITE };
        assert_eq!(expiring.expected(&token), "v1_Pm2wjYc2z4s1vJ/bdoe2F2JujdZNdJJl11k1hBVRaDI");
        let bare = Signed { path: "", ..WRITE };
        assert_eq!(bare.expected(&token), "v1_IRUdH3q1eblRa51Oe8cPYb6nPrDFzSdh3EscgPkD+YA");
    }

    #[test]
    fn header_then_signature_then_time() {
        let token = Secret::new("tok123");
        let with = |text| HeaderMap::from_iter([(ACCESS_TOKEN, HeaderValue::from_static(text))]);
        let none = HeaderMap::new();
        let signature = "v1_Pm2wjYc2z4s1vJ/bdoe2F2JujdZNdJJl11k1hBVRaDI";
        let signed =
            Signed { signature: Some(signature), expiration: Some(1_800_000_000), ..WRITE };
        let forged = Signed { signature: Some("v1_x"), ..signed };
        let token = Some(&token);

        assert!(WRITE.check(None, &with("tok123"), 0).is_err(), "before the claim");
        assert_eq!(WRITE.check(token, &with("tok123"), 0), Ok(()));
        assert_eq!(
            signed.check(token, &with("wrong"), 0),
            Err("access token present in header but does not match")
        );
        assert_eq!(signed.check(token, &with(""), 1_800_000_000), Ok(()));
        assert_eq!(WRITE.check(token, &none, 0), Err("missing signature query parameter"));
        assert_eq!(forged.check(token, &none, 2_000_000_000), Err("invalid signature"));
        assert_eq!(signed.check(token, &none, 1_800_000_001), Err("signature is already expired"));
    }

    #[test]
    fn nothing_opens_a_sandbox_without_a_token() {
        let given = HeaderMap::from_iter([(ACCESS_TOKEN, HeaderValue::from_static("tok"))]);
        assert!(check_token(None, &HeaderMap::new()).is_err());
        assert!(check_token(None, &given).is_err());
        assert!(check_token(Some(&Secret::new("tok")), &HeaderMap::new()).is_err());
        assert_eq!(check_token(Some(&Secret::new("tok")), &given), Ok(()));
    }

    #[test]
    fn a_credential_comes_once() {
        for name in CREDENTIALS {
            let mut headers = HeaderMap::new();
            headers.append(&name, HeaderValue::from_static("a"));
            assert_eq!(repeated_credential(&headers), None);
            headers.append(&name, HeaderValue::from_static("a"));
            assert_eq!(repeated_credential(&headers), Some(name));
        }
    }

    #[test]
    fn only_basic_names_a_user() {
        let user = |value| {
            basic_user(&HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]))
        };
        assert_eq!(user("Basic dXNlcjo=").as_deref(), Some("user"));
        assert_eq!(user("basic dXNlcjpwdw==").as_deref(), Some("user"));
        assert_eq!(user("Bearer dXNlcjo="), None);
        assert_eq!(user("Basic ???"), None);
        assert_eq!(user("Basic dXNlcg=="), None);
    }

    #[test]
    fn open_routes_are_exact() {
        assert!(is_open(&Method::GET, "/health"));
        assert!(is_open(&Method::POST, "/files"));
        for (method, path) in [
            (Method::POST, "/health"),
            (Method::GET, "/init"),
            (Method::GET, "/files/"),
            (Method::POST, "/files/compose"),
            (Method::GET, "/nothing"),
        ] {
            assert!(!is_open(&method, path), "{method} {path}");
        }
    }

    proptest! {
        #[test]
        fn a_signature_is_for_one_path_user_operation_and_time(
            path in "\\PC{0,20}",
            other in "\\PC{0,20}",
            username in "[a-z]{0,8}",
            expiration in prop::option::of(0i64..2_000),
            now in 0i64..2_000,
        ) {
            let token = Secret::new("tok123");
            let none = HeaderMap::new();
            let asked = Signed { path: &path, username: &username, expiration, ..READ };
            let signature = asked.expected(&token);
            let signed = Signed { signature: Some(&signature), ..asked };
            let in_time = expiration.is_none_or(|end| end >= now);
            let expected = if in_time { Ok(()) } else { Err("signature is already expired") };
            prop_assert_eq!(signed.check(Some(&token), &none, now), expected);
            let wrong = Err("invalid signature");
            let written = Signed { operation: Operation::Write, ..signed };
            prop_assert_eq!(written.check(Some(&token), &none, now), wrong);
            let later = Signed { expiration: Some(expiration.unwrap_or(0) + 1), ..signed };
            prop_assert_eq!(later.check(Some(&token), &none, now), wrong);
            if other != path {
                let elsewhere = Signed { path: &other, ..signed };
                prop_assert_eq!(elsewhere.check(Some(&token), &none, now), wrong);
            }
            prop_assert_eq!(signed.check(Some(&Secret::new("tok124")), &none, now), wrong);
        }
    }
}
