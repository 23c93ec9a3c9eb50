//! A small S3 client that signs what it is told to send, also what no proper client would.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use s3s::crypto::Checksum as _;

#[derive(Clone)]
pub(crate) struct S3Client {
    http: Http<HttpConnector, Full<Bytes>>,
    pub(crate) endpoint: String,
    pub(crate) id: String,
    pub(crate) secret: String,
    /// How long ago the requests were signed.
    pub(crate) age: Duration,
}

pub(crate) struct S3Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl S3Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The texts of all elements of this name.
    pub(crate) fn elements(&self, name: &str) -> Vec<String> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let text = self.text();
        let parts = text.split(&open).skip(1);
        parts.filter_map(|part| Some(part.split_once(&close)?.0.to_owned())).collect()
    }

    pub(crate) fn code(&self) -> String {
        self.elements("Code").pop().unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }

    #[track_caller]
    pub(crate) fn expect_error(self, status: u16, code: &str) -> Self {
        let reply = self.expect(status);
        assert_eq!(reply.code(), code, "{}", reply.text());
        reply
    }
}

pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

impl S3Client {
    pub(crate) fn new(endpoint: &str, id: &str, secret: &str) -> Self {
        Self {
            http: Http::builder(TokioExecutor::new()).build_http(),
            endpoint: endpoint.to_owned(),
            id: id.to_owned(),
            secret: secret.to_owned(),
            age: Duration::ZERO,
        }
    }

    /// A signed request; `payload` is what `x-amz-content-sha256` says.
    pub(crate) fn signed(
        &self,
        method: &str,
        target: &str,
        headers: Headers<'_>,
        body: &[u8],
        payload: Option<&str>,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let uri = format!("{}{target}", self.endpoint);
        let mut builder = Request::builder().method(method).uri(&uri);
        let host = self.endpoint.trim_start_matches("http://").to_owned();
        builder = builder.header("host", host);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let mut request = builder.body(Full::new(Bytes::copy_from_slice(body)))?;
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let identity =
            Credentials::new(self.id.clone(), self.secret.clone(), None, None, "test").into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region("us-east-1")
            .name("s3")
            .time(SystemTime::now() - self.age)
            .settings(settings)
            .build()?
            .into();
        let signed_headers: Vec<(String, String)> = request
            .headers()
            .iter()
            .map(|(name, value)| Ok((name.to_string(), value.to_str()?.to_owned())))
            .collect::<Result<_, http::header::ToStrError>>()?;
        let pairs = signed_headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let hash = match payload {
            Some(text) => SignableBody::Precomputed(text.to_owned()),
            None => SignableBody::Bytes(body),
        };
        let signable = SignableRequest::new(method, uri, pairs, hash)?;
        let (instructions, _) = sign(signable, &params)?.into_parts();
        instructions.apply_to_request_http1x(&mut request);
        Ok(request)
    }

    pub(crate) async fn raw(&self, request: Request<Full<Bytes>>) -> anyhow::Result<S3Reply> {
        let limit = Duration::from_secs(60);
        let answer = async {
            let response = self.http.request(request).await.context("no answer")?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.context("the answer broke off")?.to_bytes();
            Ok(S3Reply { status: parts.status, headers: parts.headers, body })
        };
        tokio::time::timeout(limit, answer).await.context("no answer within a minute")?
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: Headers<'_>,
        body: &[u8],
    ) -> anyhow::Result<S3Reply> {
        self.raw(self.signed(method, target, headers, body, None)?).await
    }

    pub(crate) async fn get(&self, target: &str) -> anyhow::Result<S3Reply> {
        self.send("GET", target, &[], b"").await
    }

    pub(crate) async fn head(&self, target: &str) -> anyhow::Result<S3Reply> {
        self.send("HEAD", target, &[], b"").await
    }

    pub(crate) async fn put(&self, target: &str, body: &[u8]) -> anyhow::Result<S3Reply> {
        self.send("PUT", target, &[], body).await
    }

    pub(crate) async fn delete(&self, target: &str) -> anyhow::Result<S3Reply> {
        self.send("DELETE", target, &[], b"").await
    }

    pub(crate) async fn delete_many(&self, bucket: &str, xml: &str) -> anyhow::Result<S3Reply> {
        let digest = md5_base64(xml.as_bytes());
        let headers = [("content-md5", digest.as_str())];
        self.send("POST", &format!("/{bucket}?delete="), &headers, xml.as_bytes()).await
    }
}

pub(crate) fn md5_base64(bytes: &[u8]) -> String {
    use base64::Engine;
    let mut md5 = s3s::crypto::Md5::new();
    md5.update(bytes);
    base64::engine::general_purpose::STANDARD.encode(md5.finalize())
}

/// Bytes that differ from place to place, the same for the same seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
