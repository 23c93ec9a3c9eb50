//! Making a request anew and sending it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use http_body::{Frame, SizeHint};
use http_body_util::StreamBody;
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::StreamingBlob;
use s3s::stream::ByteStream as _;
use s3s::{Body, S3Error, S3Request, S3Result, TrailingHeaders, s3_error};
use sandyard_types::error_chain;
use tokio::time::Sleep;
use tracing::warn;

use super::answer::{ErrorDocument, collect};
use super::{RawResponse, Upstream};
use crate::checksum::Expected;

/// What S3 leaves unencoded in a signed path or query.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// How long an answer may take, on top of what the body needs at [`SLOWEST`].
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// How long an answer may pause once it has begun.
const SILENCE_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes per second below which a transfer counts as stuck.
const SLOWEST: u64 = 64 * 1024;

/// Headers that go on, beside `x-amz-meta-*` and `x-amz-checksum-*`.
const PASSED: [&str; 19] = [
    "cache-control",
    "content-disposition",
    "content-language",
    "content-md5",
    "content-type",
    "expires",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "range",
    "x-amz-copy-source-if-match",
    "x-amz-copy-source-if-modified-since",
    "x-amz-copy-source-if-none-match",
    "x-amz-copy-source-if-unmodified-since",
    "x-amz-copy-source-range",
    "x-amz-metadata-directive",
    "x-amz-mp-object-size",
    "x-amz-storage-class",
];

/// A request to the upstream. Bucket, key and query are plain text, as the guard saw them.
pub(super) struct UpstreamCall<'a> {
    pub(super) method: Method,
    pub(super) bucket: &'a str,
    pub(super) key: Option<&'a str>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// The body's length; `None` for a request that has none.
    pub(super) length: Option<u64>,
    /// The hex SHA-256 of the body where the client has signed it.
    pub(super) payload: Option<String>,
}

impl<'a> UpstreamCall<'a> {
    pub(super) fn new(method: Method, bucket: &'a str) -> Self {
        Self {
            method,
            bucket,
            key: None,
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Body::empty(),
            length: None,
            payload: None,
        }
    }

    /// A call on an object with the headers of the client's request that may go on.
    pub(super) fn object<T>(req: &S3Request<T>, bucket: &'a str, key: &'a str) -> Self {
        let headers = passed(&req.headers);
        Self { key: Some(key), headers, ..Self::new(req.method.clone(), bucket) }
    }

    /// Sends the client's body along.
    pub(super) fn with_upload(
        mut self,
        body: Option<StreamingBlob>,
        length: Option<i64>,
        client: &HeaderMap,
        trailers: Option<TrailingHeaders>,
    ) -> S3Result<Self> {
        let decoded = client.get("x-amz-decoded-content-length").and_then(|v| v.to_str().ok());
        let length = match decoded {
            Some(text) => text.parse().ok(),
            None => match (length, &body) {
                (Some(length), _) => u64::try_from(length).ok(),
                (None, None) => Some(0),
                (None, Some(body)) => body.remaining_length().exact().map(|length| length as u64),
            },
        };
        let length = length.ok_or_else(|| s3_error!(MissingContentLength))?;
        self.length = Some(length);
        self.payload = client
            .get("x-amz-content-sha256")
            .and_then(|value| value.to_str().ok())
            .filter(|value| value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit()))
            .map(str::to_owned);
        let expected = Expected::of(client, trailers)?;
        self.body = match body {
            None => Body::empty(),
            Some(body) if expected.is_any() => verified(body, expected),
            Some(body) => Body::from(body),
        };
        Ok(self)
    }

    /// Drops the checksums from a request of a multipart upload. The gateway holds parts against
    /// them itself: those in a trailer cannot go on, and an upload whose parts have some here and
    /// none there could not be completed.
    pub(super) fn part_of_upload(mut self) -> Self {
        let sums = |name: &&HeaderName| name.as_str().starts_with("x-amz-checksum-");
        let names: Vec<HeaderName> = self.headers.keys().filter(sums).cloned().collect();
        for name in names {
            self.headers.remove(name);
        }
        self
    }
}

/// Holds the last piece back until the checksums are right: the upstream takes an
/// object for complete when it has all of its bytes.
fn verified(body: StreamingBlob, expected: Expected) -> Body {
    let state = (body, Some(expected), None);
    let stream =
        futures::stream::try_unfold(state, |(mut body, mut expected, mut held)| async move {
            loop {
                match body.next().await {
                    Some(piece) => {
                        let piece = piece?;
                        if let Some(expected) = &mut expected {
                            expected.update(&piece);
                        }
                        if let Some(ready) = held.replace(piece) {
                            return Ok(Some((Frame::data(ready), (body, expected, held))));
                        }
                    }
                    None => {
                        if let Some(expected) = expected.take() {
                            expected.finish(None)?;
                        }
                        let last = held.take().map(|last| (Frame::data(last), (body, None, None)));
                        return Ok::<_, s3s::StdError>(last);
                    }
                }
            }
        });
    Body::http_body_unsync(StreamBody::new(stream))
}

fn passed(client: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in client {
        let text = name.as_str();
        let declared_sum = text.starts_with("x-amz-checksum-");
        if PASSED.contains(&text) || text.starts_with("x-amz-meta-") || declared_sum {
            headers.append(name.clone(), value.clone());
        }
    }
    let encoding = client.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    let kept: Vec<&str> = encoding
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|coding| !matches!(*coding, "" | "aws-chunked"))
        .collect();
    if let Ok(value) = HeaderValue::try_from(kept.join(","))
        && !value.is_empty()
    {
        headers.insert(header::CONTENT_ENCODING, value);
    }
    headers
}

/// The named parameters of the client's query.
pub(super) fn parameters(uri: &Uri, names: &[&'static str]) -> Vec<(&'static str, String)> {
    let query = uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes())
        .filter_map(|(name, value)| {
            let name = names.iter().find(|known| **known == name)?;
            Some((*name, value.into_owned()))
        })
        .collect()
}

impl Upstream {
    /// Sends a client's request. What the upstream answers goes back as it is, unless it refuses the
    /// server's own key: that is nothing a client can act on, and its text names the server's key.
    pub(super) async fn forward(&self, call: UpstreamCall<'_>) -> S3Result<Response<Body>> {
        let uploading = Duration::from_secs(call.length.unwrap_or_default() / SLOWEST);
        let head = call.method == Method::HEAD;
        let response = self.send(call, ANSWER_DEADLINE + uploading).await?;
        if !matches!(response.status(), StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
            return Ok(response);
        }
        let status = response.status();
        let document = if head {
            ErrorDocument::default()
        } else {
            ErrorDocument::read(&collect(response.into_body()).await?)
        };
        warn!(
            endpoint = self.inner.endpoint,
            status = status.as_u16(),
            code = document.code,
            message = document.message,
            "the object store refuses the server's own access key"
        );
        match document.code.as_str() {
            "" | "AccessDenied" => {
                Err(s3_error!(AccessDenied, "the object store does not allow this to the server"))
            }
            _ => Err(s3_error!(
                ServiceUnavailable,
                "the object store refuses the server's access key"
            )),
        }
    }

    /// Forwards, and packs the raw answer for the outermost layer.
    pub(super) async fn relay<T: Default>(
        &self,
        call: UpstreamCall<'_>,
    ) -> S3Result<s3s::S3Response<T>> {
        let response = self.forward(call).await?;
        let mut output = s3s::S3Response::new(T::default());
        output.extensions.insert(RawResponse::new(response));
        Ok(output)
    }

    pub(super) async fn send(
        &self,
        mut call: UpstreamCall<'_>,
        deadline: Duration,
    ) -> S3Result<Response<Body>> {
        let broken = Arc::new(AtomicBool::new(false));
        let again = call.length.is_none();
        let body = std::mem::take(&mut call.body);
        let request = self.request(&call, watched(body, broken.clone()))?;
        let mut sent = tokio::time::timeout(deadline, self.inner.client.request(request)).await;
        if let Ok(Err(error)) = &sent
            && again
            && !error.is_connect()
        {
            // The upstream closed an idle connection under the request; without a body it can be
            // sent again.
            let request = self.request(&call, Body::empty())?;
            sent = tokio::time::timeout(deadline, self.inner.client.request(request)).await;
        }
        match sent {
            Ok(Ok(response)) => {
                let (mut parts, body) = response.into_parts();
                for name in [header::CONNECTION, header::TRANSFER_ENCODING, KEEP_ALIVE] {
                    parts.headers.remove(name);
                }
                let body = Patient { inner: body, waiting: None };
                Ok(Response::from_parts(parts, Body::http_body_unsync(body)))
            }
            Ok(Err(_)) if broken.load(Ordering::Relaxed) => {
                Err(s3_error!(IncompleteBody, "the body broke off or does not match its checksum"))
            }
            Ok(Err(error)) => Err(self.unreachable(&error_chain(&error))),
            Err(_) => Err(self.unreachable(&format!("no answer within {deadline:?}"))),
        }
    }

    fn unreachable(&self, reason: &str) -> S3Error {
        let endpoint = &self.inner.endpoint;
        warn!(endpoint, reason, "the object store cannot be reached");
        s3_error!(ServiceUnavailable, "object store {endpoint} cannot be reached: {reason}")
    }

    fn request(&self, call: &UpstreamCall<'_>, body: Body) -> S3Result<Request<Body>> {
        let mut request = Request::new(body);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = self.uri(call)?;
        *request.headers_mut() = call.headers.clone();
        let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
        let host =
            HeaderValue::try_from(host.unwrap_or_default()).map_err(S3Error::internal_error)?;
        request.headers_mut().insert(header::HOST, host);
        // Without a body the payload is known: nothing.
        let payload = match (call.length, &call.payload) {
            (None | Some(0), None) => Some(EMPTY_SHA256),
            (_, payload) => payload.as_deref(),
        };
        self.inner.signer.sign(&mut request, payload)?;
        if let Some(length) = call.length {
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        Ok(request)
    }

    fn uri(&self, call: &UpstreamCall<'_>) -> S3Result<Uri> {
        let authority = &self.inner.authority;
        let (host, mut path) = if self.inner.path_style {
            (authority.to_string(), format!("/{}", call.bucket))
        } else {
            (format!("{}.{authority}", call.bucket), String::new())
        };
        path.push('/');
        if let Some(key) = call.key {
            path.extend(utf8_percent_encode(key, PATH));
        }
        for (place, (name, value)) in call.query.iter().enumerate() {
            path.push(if place == 0 { '?' } else { '&' });
            path.push_str(name);
            path.push('=');
            path.extend(utf8_percent_encode(value, QUERY));
        }
        Uri::builder()
            .scheme(self.inner.scheme.clone())
            .authority(host)
            .path_and_query(path)
            .build()
            .map_err(S3Error::internal_error)
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Remembers whether it was the client's body that failed, and not the upstream.
fn watched(body: Body, broken: Arc<AtomicBool>) -> Body {
    use http_body::Body as _;
    if body.is_end_stream() {
        return body;
    }
    Body::http_body_unsync(http_body_util::BodyExt::map_err(body, move |error| {
        broken.store(true, Ordering::Relaxed);
        BrokenBody(error)
    }))
}

/// The upstream's body, given up when nothing of it arrives for a while. Time the client takes to
/// read does not count.
struct Patient {
    inner: Incoming,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Patient {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.waiting = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let waiting =
            self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(SILENCE_DEADLINE)));
        match waiting.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Some(Err(Silent.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the object store sent nothing for {SILENCE_DEADLINE:?} in the middle of an answer")]
struct Silent;

#[derive(Debug, thiserror::Error)]
#[error("the client's body failed")]
struct BrokenBody(#[source] s3s::StdError);
