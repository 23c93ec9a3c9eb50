//! Signed file URLs on the proxy's own address: neither host nor headers name the sandbox, only the
//! signature does (control-plane 5.4, executor 3.3).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{Method, Uri};
use sandyard_contract::control::Secret;
use sandyard_types::SandboxId;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Routes;

/// The parameters of a signed URL.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SignedUrl {
    operations: &'static [&'static str],
    path: String,
    username: String,
    signature: String,
    expiration: Option<String>,
}

impl SignedUrl {
    /// Reads a request; `None` if it is not one for a signed URL.
    pub(super) fn of(method: &Method, uri: &Uri) -> Option<Self> {
        if uri.path() != "/files" {
            return None;
        }
        let operations: &[_] = match *method {
            Method::GET | Method::HEAD => &["read"],
            Method::POST => &["write"],
            // A browser asks before it does either.
            Method::OPTIONS => &["read", "write"],
            _ => return None,
        };
        let mut url = Self { operations, ..Self::default() };
        let mut signed = false;
        for (name, value) in form_urlencoded::parse(uri.query()?.as_bytes()) {
            let value = value.into_owned();
            match name.as_ref() {
                "path" => url.path = value,
                "username" => url.username = value,
                "signature_expiration" => url.expiration = Some(value),
                "signature" => {
                    signed = true;
                    url.signature = value;
                }
                _ => {}
            }
        }
        signed.then_some(url)
    }

    /// The sandbox whose token the URL was signed with. Whether it is still valid is for the daemon to say.
    pub(super) fn sandbox(&self, routes: &dyn Routes) -> Option<SandboxId> {
        let sandboxes = routes.secure_sandboxes();
        let found = sandboxes.into_iter().find(|(_, token)| self.fits(token));
        found.map(|(id, _)| id)
    }

    /// Whether it was signed with a token.
    pub(super) fn fits(&self, token: &Secret) -> bool {
        self.operations.iter().any(|operation| {
            let expected = self.expected(operation, token);
            expected.as_bytes().ct_eq(self.signature.as_bytes()).into()
        })
    }

    fn expected(&self, operation: &str, token: &Secret) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{}:{operation}:{}:", self.path, self.username));
        hash.update(token.reveal());
        if let Some(expiration) = &self.expiration {
            hash.update(format!(":{expiration}"));
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(hash.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract's vectors (executor 3.3).
    #[test]
    fn signatures_are_the_contracts() {
        for (query, method, token) in [
            (
                "path=hello.txt&username=user&signature=v1_gUtH%2Fs9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E",
                Method::GET,
                "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0",
            ),
            (
                "path=/home/user/a%20b.txt&signature=v1_7GVeMTBibFdyYOxMv7Dgk7eE52Ovf/1xehm2Stkl85w",
                Method::POST,
                "tok123",
            ),
            (
                "path=/home/user/a+b.txt&signature_expiration=1800000000&signature=v1_Pm2wjYc2z4s1vJ/bdoe2F2JujdZNdJJl11k1hBVRaDI",
                Method::POST,
                "tok123",
            ),
            ("signature=v1_IRUdH3q1eblRa51Oe8cPYb6nPrDFzSdh3EscgPkD%2BYA", Method::POST, "tok123"),
        ] {
            let uri: Uri = format!("/files?{query}").parse().expect("uri");
            let url = SignedUrl::of(&method, &uri).expect(query);
            assert!(url.fits(&Secret::new(token)), "{query}");
            assert!(!url.fits(&Secret::new("other")), "{query}");
            let asked = SignedUrl::of(&Method::OPTIONS, &uri).expect(query);
            assert!(asked.fits(&Secret::new(token)), "{query}");
        }
    }

    #[test]
    fn other_requests_are_not_taken_for_signed_ones() {
        for (method, uri) in [
            (Method::GET, "/files?path=a"),
            (Method::GET, "/file?signature=a"),
            (Method::GET, "/files"),
            (Method::DELETE, "/files?signature=a"),
        ] {
            let parsed: Uri = uri.parse().expect("uri");
            assert_eq!(SignedUrl::of(&method, &parsed), None, "{uri}");
        }
    }
}
