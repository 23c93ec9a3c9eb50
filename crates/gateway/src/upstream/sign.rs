//! Signature Version 4 with the server's own key.
//!
//! Written here and not taken from an SDK because it is on the way of every request: the key of the
//! day is kept, and nothing is parsed or encoded that [`super::forward`] has just encoded.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use s3s::auth::SecretKey;
use s3s::{Body, S3Error, S3Result};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::UpstreamConfig;

/// The region whose buckets are made without naming it.
const DEFAULT_REGION: &str = "us-east-1";

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const PAYLOAD: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

pub(super) struct Signer {
    access_key_id: String,
    secret: SecretKey,
    token: Option<SecretKey>,
    region: String,
    today: Mutex<Option<DayKey>>,
}

/// What signs all requests of one day: four hashes over hashes away from the secret.
#[derive(Clone)]
struct DayKey {
    day: String,
    mac: Hmac<Sha256>,
}

impl Signer {
    pub(super) fn new(config: &UpstreamConfig) -> Self {
        Self {
            access_key_id: config.access_key_id.clone(),
            secret: config.secret.clone(),
            token: config.session_token.clone(),
            region: config.region.clone(),
            today: Mutex::new(None),
        }
    }

    /// The region to name when a bucket is made.
    pub(super) fn location(&self) -> Option<&str> {
        (self.region != DEFAULT_REGION && self.region != "auto").then_some(self.region.as_str())
    }

    /// Signs the request as it stands, all of its headers included; path and query must be encoded
    /// as S3 wants them. `payload` is the hex SHA-256 of the body where it is known.
    pub(super) fn sign(&self, request: &mut Request<Body>, payload: Option<&str>) -> S3Result<()> {
        self.sign_at(request, payload, OffsetDateTime::now_utc())
    }

    fn sign_at(
        &self,
        request: &mut Request<Body>,
        payload: Option<&str>,
        now: OffsetDateTime,
    ) -> S3Result<()> {
        let day = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
        let (hour, minute, second) = now.to_hms();
        let stamp = format!("{day}T{hour:02}{minute:02}{second:02}Z");
        let payload = payload.unwrap_or(UNSIGNED);
        let headers = request.headers_mut();
        headers.insert(DATE, value(&stamp)?);
        headers.insert(PAYLOAD, value(payload)?);
        if let Some(token) = &self.token {
            let mut token = value(token.expose())?;
            token.set_sensitive(true);
            headers.insert(TOKEN, token);
        }

        let mut canonical = String::with_capacity(1024);
        canonical.push_str(request.method().as_str());
        canonical.push('\n');
        canonical.push_str(request.uri().path());
        canonical.push('\n');
        push_query(&mut canonical, request.uri().query().unwrap_or_default());
        canonical.push('\n');
        let signed = push_headers(&mut canonical, request.headers())?;
        canonical.push('\n');
        canonical.push_str(&signed);
        canonical.push('\n');
        canonical.push_str(payload);

        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let digest = hex::encode(Sha256::digest(&canonical));
        let mut mac = self.mac(&day)?;
        mac.update(format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}").as_bytes());
        let signature = hex::encode(mac.finalize().into_bytes());
        let mut authorization = value(&format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={signed}, Signature={signature}",
            self.access_key_id
        ))?;
        authorization.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, authorization);
        Ok(())
    }

    fn mac(&self, day: &str) -> S3Result<Hmac<Sha256>> {
        let mut today = self.today.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = today.as_ref().filter(|key| key.day == day) {
            return Ok(key.mac.clone());
        }
        let mut mac = keyed(format!("AWS4{}", self.secret.expose()).as_bytes())?;
        for step in [day, &self.region, "s3", "aws4_request"] {
            mac.update(step.as_bytes());
            mac = keyed(&mac.finalize().into_bytes())?;
        }
        let day = day.to_owned();
        *today = Some(DayKey { day, mac: mac.clone() });
        Ok(mac)
    }
}

fn keyed(key: &[u8]) -> S3Result<Hmac<Sha256>> {
    Hmac::new_from_slice(key).map_err(S3Error::internal_error)
}

fn value(text: &str) -> S3Result<HeaderValue> {
    HeaderValue::try_from(text).map_err(S3Error::internal_error)
}

/// The parameters by name, then by value.
fn push_query(canonical: &mut String, query: &str) {
    let mut parameters: Vec<(&str, &str)> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .collect();
    parameters.sort_unstable();
    for (place, (name, value)) in parameters.into_iter().enumerate() {
        let separator = if place == 0 { "" } else { "&" };
        // Writing to a string cannot fail.
        let _ = write!(canonical, "{separator}{name}={value}");
    }
}

/// The headers by name, with single spaces in their values; answers their names.
fn push_headers(canonical: &mut String, headers: &HeaderMap) -> S3Result<String> {
    let mut names: Vec<&HeaderName> = headers.keys().collect();
    names.sort_unstable_by_key(|name| name.as_str());
    let mut signed = String::with_capacity(256);
    for name in names {
        if !signed.is_empty() {
            signed.push(';');
        }
        signed.push_str(name.as_str());
        canonical.push_str(name.as_str());
        for (place, value) in headers.get_all(name).iter().enumerate() {
            canonical.push(if place == 0 { ':' } else { ',' });
            let text = value.to_str().map_err(S3Error::internal_error)?;
            let words = text.split(' ').filter(|word| !word.is_empty());
            for (place, word) in words.enumerate() {
                if place > 0 {
                    canonical.push(' ');
                }
                canonical.push_str(word);
            }
        }
        canonical.push('\n');
    }
    Ok(signed)
}

#[cfg(test)]
mod tests {
    use aws_credential_types::Credentials;
    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    };
    use aws_sigv4::sign::v4::SigningParams;
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    /// What AWS's own code makes of the same request.
    fn reference(request: &Request<Body>, payload: Option<&str>, now: OffsetDateTime) -> String {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let token = Some("token".to_owned());
        let identity = Credentials::new("AKID", SECRET, token, None, "test").into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region("eu-west-1")
            .name("s3")
            .time(now.into())
            .settings(settings)
            .build()
            .expect("complete")
            .into();
        let headers = request.headers().iter();
        let headers = headers.map(|(name, value)| (name.as_str(), value.to_str().expect("text")));
        let body = payload.map_or(SignableBody::UnsignedPayload, |hash| {
            SignableBody::Precomputed(hash.to_owned())
        });
        let (method, uri) = (request.method().as_str(), request.uri().to_string());
        let signable = SignableRequest::new(method, uri, headers, body).expect("signable");
        let (instructions, _) = sign(signable, &params).expect("signed").into_parts();
        let mut signed = Request::new(());
        instructions.apply_to_request_http1x(&mut signed);
        let header = signed.headers().get("authorization").expect("signed");
        header.to_str().expect("text").to_owned()
    }

    proptest! {
        #[test]
        fn signatures_are_those_of_the_reference(
            path in "(/([a-zA-Z0-9._~-]|%[0-9A-F]{2}){0,9}){1,4}",
            query in proptest::collection::btree_map("[a-z-]{1,9}", "[a-z0-9]|%2F|%20|%7C", 0..5),
            headers in proptest::collection::vec(("x-amz-meta-[a-c]", "([!-~]{1,6}[ ]{0,3}){0,4}"), 0..6),
            known: bool,
            seconds in 0i64..4_000_000_000,
        ) {
            let signer = Signer::new(&UpstreamConfig {
                endpoint: String::new(),
                region: "eu-west-1".to_owned(),
                path_style: true,
                access_key_id: "AKID".to_owned(),
                secret: SecretKey::from(SECRET),
                session_token: Some(SecretKey::from("token")),
            });
            // In another order than the signed one.
            let query: Vec<_> = query.iter().rev().map(|(n, v)| format!("{n}={v}")).collect();
            let uri = format!("http://store:9000{path}?{}", query.join("&"));
            let mut request = Request::put(uri).header("host", "store:9000");
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let mut request = request.body(Body::empty()).expect("a request");
            let payload = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
            let payload = known.then_some(payload);
            // The second day must not be signed with the first one's key.
            for later in [0, 1, 86_400] {
                let now = OffsetDateTime::from_unix_timestamp(seconds + later).expect("a date");
                request.headers_mut().remove("authorization");
                let expected = reference(&request, payload, now);
                signer.sign_at(&mut request, payload, now).expect("signed");
                prop_assert_eq!(&request.headers()["authorization"], expected.as_str());
            }
        }
    }
}
