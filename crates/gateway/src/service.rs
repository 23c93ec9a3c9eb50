//! The outermost layer: early refusals, counters, access log, and the upstream's raw responses.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use s3s::service::S3Service;
use s3s::{Body, S3Error, s3_error};
use sandyard_http::{Requests, UnderWay};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::grant::GrantOwner;
use crate::traffic::{CountedRequest, RequestContext, ResponseBody};
use crate::upstream::RawResponse;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The gateway on one connection. Never fails: whatever goes wrong is an S3 error document.
#[derive(Clone)]
pub(crate) struct ConnectionService {
    pub(crate) s3: S3Service,
    pub(crate) requests: Requests,
    pub(crate) source: Option<IpAddr>,
    pub(crate) proven: Arc<Notify>,
}

impl<B> hyper::service::Service<Request<B>> for ConnectionService
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        let s3 = self.s3.clone();
        let from = RequestSource {
            address: self.source,
            under_way: self.requests.begin(),
            proven: Arc::clone(&self.proven),
        };
        Box::pin(async move { Ok(handle(&s3, request, from).await) })
    }
}

/// The connection that a request came on.
#[derive(Debug)]
struct RequestSource {
    address: Option<IpAddr>,
    under_way: UnderWay,
    /// To be told when the request has proven whose it is.
    proven: Arc<Notify>,
}

async fn handle<B>(
    s3: &S3Service,
    request: Request<B>,
    from: RequestSource,
) -> Response<ResponseBody>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let started = Instant::now();
    let context = Arc::new(RequestContext::new(from.address, from.proven));
    let under_way = from.under_way;
    let (mut parts, body) = request.into_parts();
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let mut response = match check_form(&parts) {
        Ok(()) => {
            parts.extensions.insert(context.clone());
            let body = Body::http_body_unsync(CountedRequest {
                inner: body,
                context: context.clone(),
                _under_way: under_way.clone(),
            });
            match s3.call(Request::from_parts(parts, body)).await {
                Ok(response) => response,
                Err(error) => {
                    let source: s3s::StdError = error.into();
                    warn!(error = %source, "an S3 request failed without an answer");
                    error_response(s3_error!(InternalError, "the request failed"))
                }
            }
        }
        Err(refused) => error_response(refused),
    };
    if let Some(raw) = response.extensions_mut().remove::<RawResponse>().and_then(|raw| raw.take())
    {
        response = raw;
    }
    let status = response.status();
    let caller = context.caller();
    if caller.is_none() {
        // Nothing is proven: whoever it is has to come again, and wait for a place again.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let counters = caller.and_then(|caller| caller.counters.clone());
    if let Some(counters) = &counters {
        counters.bytes_in.fetch_add(context.received(), Ordering::Relaxed);
        if is_fault(status) {
            counters.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
    let sandbox = caller.and_then(|caller| match &caller.owner {
        GrantOwner::Sandbox(sandbox) => Some(sandbox.as_str()),
        GrantOwner::Installation => None,
    });
    debug!(
        sandbox.id = sandbox,
        %method,
        path,
        status = status.as_u16(),
        received = context.received(),
        elapsed_ms = started.elapsed().as_millis() as u64,
        "s3 request"
    );
    response.map(|inner| ResponseBody { inner, counters, _under_way: under_way })
}

/// 404 and 412 are how drivers ask; they are no faults.
fn is_fault(status: StatusCode) -> bool {
    let asked = [StatusCode::NOT_FOUND, StatusCode::PRECONDITION_FAILED];
    (status.is_client_error() && !asked.contains(&status)) || status.is_server_error()
}

fn error_response(error: S3Error) -> Response<Body> {
    error.to_http_response().unwrap_or_else(|error| {
        // Only the serialisation of a short document can fail here, which needs a full memory.
        warn!(%error, "cannot write an S3 error document");
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// Refuses what must not reach the signature check: other ways to authenticate, and requests whose
/// signature does not cover all that S3 demands.
fn check_form(parts: &Parts) -> Result<(), S3Error> {
    let unsupported = || {
        s3_error!(
            InvalidRequest,
            "The authorization mechanism you have provided is not supported. Please use \
             AWS4-HMAC-SHA256 in the Authorization header."
        )
    };
    let query = parts.uri.query().unwrap_or_default();
    let mut names = Vec::new();
    for (name, _) in form_urlencoded::parse(query.as_bytes()) {
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("x-amz-") || matches!(&*lower, "signature" | "awsaccesskeyid") {
            return Err(unsupported());
        }
        // A second value could be read by the store where the check read the first.
        if names.contains(&name) {
            return Err(s3_error!(InvalidArgument, "the query names '{name}' more than once"));
        }
        names.push(name);
    }
    if parts.method == Method::POST && is_form(parts) {
        return Err(s3_error!(MethodNotAllowed, "form uploads are not supported"));
    }
    let mut values = parts.headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Err(s3_error!(AccessDenied, "requests must be signed"));
    };
    let authorization = value.to_str().map_err(|_| unsupported())?;
    let fields = authorization.strip_prefix(ALGORITHM).ok_or_else(unsupported)?;
    if values.next().is_some() {
        return Err(s3_error!(InvalidRequest, "more than one Authorization header"));
    }
    let field = |name: &str| {
        fields.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='))
    };
    if !field("Credential").is_some_and(|scope| scope.ends_with("/s3/aws4_request")) {
        return Err(s3_error!(AccessDenied, "the signature is not for the service 's3'"));
    }
    let signed: Vec<&str> = field("SignedHeaders").unwrap_or_default().split(';').collect();
    let unsigned = |name: &str| !signed.iter().any(|s| s.eq_ignore_ascii_case(name));
    if unsigned("host") {
        return Err(s3_error!(AccessDenied, "the header 'host' is not signed"));
    }
    for name in parts.headers.keys().map(header::HeaderName::as_str) {
        if name.starts_with("x-amz-") && unsigned(name) {
            return Err(s3_error!(AccessDenied, "the header '{name}' is not signed"));
        }
        if name.starts_with("x-amz-") && parts.headers.get_all(name).iter().count() > 1 {
            return Err(s3_error!(InvalidArgument, "more than one header '{name}'"));
        }
    }
    Ok(())
}

fn is_form(parts: &Parts) -> bool {
    let content_type = parts.headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    content_type.is_some_and(|value| {
        value.get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, \
                          SignedHeaders=host;x-amz-date, Signature=0";

    fn code(request: http::request::Builder) -> Option<String> {
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        check_form(&parts).err().map(|error| error.code().as_str().to_owned())
    }

    #[test]
    fn only_complete_header_signatures_of_version_4_pass() {
        let signed = || Request::get("/b/k?list-type=2").header("authorization", SIGNED);
        assert_eq!(code(signed().header("x-amz-date", "d")), None);
        assert_eq!(code(Request::get("/b/k")).as_deref(), Some("AccessDenied"));
        let v2 = Request::get("/b/k").header("authorization", "AWS key:sig");
        assert_eq!(code(v2).as_deref(), Some("InvalidRequest"));
        for query in ["X-Amz-Signature=1", "X%2DAmz-Signature=1", "Signature=x&AWSAccessKeyId=y"] {
            let presigned = Request::get(format!("/b/k?{query}")).header("authorization", SIGNED);
            assert_eq!(code(presigned).as_deref(), Some("InvalidRequest"), "{query}");
        }
        let added = signed().header("x-amz-copy-source", "/b/other");
        assert_eq!(code(added).as_deref(), Some("AccessDenied"));
        let doubled = Request::get("/b?prefix=a&prefix=b").header("authorization", SIGNED);
        assert_eq!(code(doubled).as_deref(), Some("InvalidArgument"));
        let sts = SIGNED.replace("/s3/", "/sts/");
        assert_eq!(
            code(Request::get("/").header("authorization", sts)).as_deref(),
            Some("AccessDenied")
        );
        let form = Request::post("/b").header("content-type", "Multipart/form-data; boundary=x");
        assert_eq!(code(form).as_deref(), Some("MethodNotAllowed"));
    }
}
