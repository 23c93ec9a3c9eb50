//! Another S3 service as the store: MinIO, AWS, R2.
//!
//! A request goes on as it came, but made anew: method, bucket, key and the parameters that matter
//! are those the guard has checked, the headers pass an allow-list, and the signature is the
//! server's. The answer goes back as it is, status, headers and streamed body. Nothing in between
//! knows the operation, which keeps this cheap and its behaviour that of the upstream.

mod answer;
mod forward;
mod operations;
mod sign;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use s3s::auth::SecretKey;
use s3s::{Body, S3Result};
use sandyard_types::BucketName;

use self::answer::{ErrorDocument, collect, list_page};
use self::forward::UpstreamCall;
use self::sign::Signer;
use crate::backend::{DirectoryMarker, ObjectStore, ObjectStoreError};
use crate::listing::{ListingPage, PageRequest};

const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// For the server's own small requests.
const OWN_DEADLINE: Duration = Duration::from_secs(5);
/// Idle connections live shorter than MinIO (30 s) and AWS (20 s) keep them.
const IDLE: Duration = Duration::from_secs(15);

#[cfg(feature = "tls")]
type UpstreamConnector = hyper_rustls::HttpsConnector<HttpConnector>;
#[cfg(not(feature = "tls"))]
type UpstreamConnector = HttpConnector;

/// How to reach the upstream.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// `http://host:port` or `https://host`, without a path.
    pub endpoint: String,
    /// The region its signatures name; `us-east-1` for MinIO, `auto` for R2.
    pub region: String,
    /// The bucket in the path instead of the host name. MinIO needs it unless told its domain.
    pub path_style: bool,
    /// The server's own access key.
    pub access_key_id: String,
    /// And its secret.
    pub secret: SecretKey,
    /// For temporary keys.
    pub session_token: Option<SecretKey>,
}

/// A configuration that names no usable upstream.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUpstream {
    /// The endpoint is no URL of a host.
    #[error("invalid endpoint '{0}': it must be http://host[:port] or https://host[:port]")]
    Endpoint(String),
    /// An `https` endpoint without TLS compiled in.
    #[error("endpoint '{0}' needs TLS, which this build does not have")]
    Tls(String),
    /// The system's certificates cannot be read.
    #[error("failed to read the system's certificates")]
    Certificates(#[source] std::io::Error),
}

/// A client of another S3 service. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    inner: Arc<UpstreamParts>,
}

struct UpstreamParts {
    endpoint: String,
    scheme: Scheme,
    authority: Authority,
    path_style: bool,
    signer: Signer,
    client: Client<UpstreamConnector, Body>,
}

impl Upstream {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// [`InvalidUpstream`] if the endpoint cannot be used.
    pub fn new(config: UpstreamConfig) -> Result<Self, InvalidUpstream> {
        let invalid = || InvalidUpstream::Endpoint(config.endpoint.clone());
        let uri: Uri = config.endpoint.parse().map_err(|_| invalid())?;
        let scheme = uri.scheme().cloned().ok_or_else(invalid)?;
        let authority = uri.authority().cloned().ok_or_else(invalid)?;
        let plain = scheme == Scheme::HTTP || scheme == Scheme::HTTPS;
        if !plain || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid());
        }
        if authority.as_str().contains('@') {
            return Err(invalid());
        }
        if scheme == Scheme::HTTPS && !cfg!(feature = "tls") {
            return Err(InvalidUpstream::Tls(config.endpoint));
        }
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector()?);
        let inner = UpstreamParts {
            scheme,
            authority,
            path_style: config.path_style,
            signer: Signer::new(&config),
            client,
            endpoint: config.endpoint,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// One request of the server's own, with its whole answer.
    async fn ask(&self, call: UpstreamCall<'_>) -> Result<(StatusCode, Bytes), ObjectStoreError> {
        let unreachable = |reason: String| ObjectStoreError::Unreachable {
            endpoint: self.inner.endpoint.clone(),
            reason,
        };
        let asked = async {
            let response = self.send(call, OWN_DEADLINE).await.map_err(|e| e.to_string())?;
            let status = response.status();
            Ok((status, collect(response.into_body()).await.map_err(|error| error.to_string())?))
        };
        match tokio::time::timeout(OWN_DEADLINE, asked).await {
            Ok(answer) => answer.map_err(unreachable),
            Err(_) => Err(unreachable(format!("no answer within {OWN_DEADLINE:?}"))),
        }
    }

    /// What an answer that is no success means for the server.
    fn refused(
        &self,
        call: &'static str,
        bucket: &BucketName,
        status: StatusCode,
        body: &[u8],
    ) -> ObjectStoreError {
        let endpoint = self.inner.endpoint.clone();
        let ErrorDocument { code, message } = ErrorDocument::read(body);
        match (status, code.as_str()) {
            (
                _,
                "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken",
            ) => ObjectStoreError::WrongKeys { endpoint, code, message },
            (_, "NoSuchBucket") => ObjectStoreError::NoBucket { endpoint, bucket: bucket.clone() },
            (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED, _) => {
                ObjectStoreError::NotAllowed { endpoint, call, message }
            }
            _ => {
                ObjectStoreError::Refused { endpoint, call, status: status.as_u16(), code, message }
            }
        }
    }
}

#[cfg(feature = "tls")]
fn connector() -> Result<UpstreamConnector, InvalidUpstream> {
    Ok(hyper_rustls::HttpsConnectorBuilder::new()
        .with_native_roots()
        .map_err(InvalidUpstream::Certificates)?
        .https_or_http()
        .enable_http1()
        .wrap_connector(plain_connector()))
}

#[cfg(not(feature = "tls"))]
fn connector() -> Result<UpstreamConnector, InvalidUpstream> {
    Ok(plain_connector())
}

fn plain_connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_DEADLINE));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector
}

/// The upstream's own answer, on its way around `s3s`, which would take it apart.
#[derive(Clone)]
pub(crate) struct RawResponse(Arc<Mutex<Option<Response<Body>>>>);

impl RawResponse {
    pub(crate) fn new(response: Response<Body>) -> Self {
        Self(Arc::new(Mutex::new(Some(response))))
    }

    pub(crate) fn take(&self) -> Option<Response<Body>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[async_trait]
impl ObjectStore for Upstream {
    async fn page(&self, request: &PageRequest<'_>) -> S3Result<ListingPage> {
        let mut query = vec![
            ("encoding-type", "url".to_owned()),
            ("max-keys", request.limit.to_string()),
            ("prefix", request.prefix.to_owned()),
        ];
        if let Some(delimiter) = request.delimiter {
            query.push(("delimiter", delimiter.to_owned()));
        }
        if let Some(after) = request.after {
            query.push(("marker", after.to_owned()));
        }
        let call = UpstreamCall { query, ..UpstreamCall::new(Method::GET, request.bucket) };
        let response = self.forward(call).await?;
        let status = response.status();
        let body = collect(response.into_body()).await?;
        if status != StatusCode::OK {
            return Err(ErrorDocument::read(&body).into_s3(status));
        }
        list_page(&body)
    }

    async fn check(&self, bucket: &BucketName) -> Result<(), ObjectStoreError> {
        // A list and not a HEAD: only an answer with a body says what is wrong.
        let query = vec![("max-keys", "1".to_owned())];
        let call = UpstreamCall { query, ..UpstreamCall::new(Method::GET, bucket.as_str()) };
        match self.ask(call).await? {
            (StatusCode::OK, _) => Ok(()),
            (status, body) => Err(self.refused("list the bucket", bucket, status, &body)),
        }
    }

    async fn ensure_bucket(&self, bucket: &BucketName) -> Result<(), ObjectStoreError> {
        match self.check(bucket).await {
            Err(ObjectStoreError::NoBucket { .. }) => {}
            other => return other,
        }
        let body = self.inner.signer.location().map_or_else(Bytes::new, |region| {
            let xml = "<CreateBucketConfiguration><LocationConstraint>";
            let end = "</LocationConstraint></CreateBucketConfiguration>";
            Bytes::from(format!("{xml}{region}{end}"))
        });
        let call = UpstreamCall {
            length: Some(body.len() as u64),
            body: Body::from(body),
            ..UpstreamCall::new(Method::PUT, bucket.as_str())
        };
        match self.ask(call).await? {
            (StatusCode::OK, _) => Ok(()),
            (status, body) => match ErrorDocument::read(&body).code.as_str() {
                "BucketAlreadyOwnedByYou" => Ok(()),
                _ => Err(self.refused("create the bucket", bucket, status, &body)),
            },
        }
    }

    async fn put_marker(
        &self,
        bucket: &BucketName,
        key: &str,
        marker: &DirectoryMarker,
    ) -> Result<(), ObjectStoreError> {
        let call =
            UpstreamCall { key: Some(key), ..UpstreamCall::new(Method::HEAD, bucket.as_str()) };
        // Any other answer will come again, with a body that explains it.
        if self.ask(call).await?.0 == StatusCode::OK {
            return Ok(());
        }
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static(DirectoryMarker::CONTENT_TYPE);
        headers.insert(header::CONTENT_TYPE, kind);
        for (name, value) in &marker.metadata {
            let name = HeaderName::try_from(format!("x-amz-meta-{name}"));
            let value = HeaderValue::try_from(value);
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.insert(name, value);
            }
        }
        let call = UpstreamCall {
            key: Some(key),
            headers,
            length: Some(0),
            ..UpstreamCall::new(Method::PUT, bucket.as_str())
        };
        match self.ask(call).await? {
            (StatusCode::OK, _) => Ok(()),
            (status, body) => Err(self.refused("create a directory", bucket, status, &body)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_a_scheme_and_a_host() {
        let config = |endpoint: &str| UpstreamConfig {
            endpoint: endpoint.to_owned(),
            region: "us-east-1".to_owned(),
            path_style: true,
            access_key_id: "id".to_owned(),
            secret: SecretKey::from("secret"),
            session_token: None,
        };
        assert!(Upstream::new(config("http://127.0.0.1:9000")).is_ok());
        assert!(Upstream::new(config("http://minio:9000/")).is_ok());
        for bad in ["", "minio:9000", "ftp://x", "http://x/path", "http://u:p@x", "http://x/?q"] {
            assert!(Upstream::new(config(bad)).is_err(), "{bad}");
        }
        assert!(!format!("{:?}", config("http://x")).contains("\"secret\""));
    }
}
