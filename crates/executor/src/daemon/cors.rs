//! Cross-origin requests (executor 2.1): everything is allowed to everybody who has the token.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use hyper::{Method, Request, Response, StatusCode};

use super::body::DaemonBody;
use super::plain;

const METHODS: [&str; 6] = ["HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"];
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Location, Cache-Control, \
     X-Content-Type-Options",
);
const ANY: HeaderValue = HeaderValue::from_static("*");

/// What a request is to CORS.
pub(super) enum Reading {
    /// A question of a browser, with its answer; no token is needed.
    Preflight(Response<DaemonBody>),
    /// A request to carry out.
    Request(Origin),
}

/// Whether a request comes from a page.
pub(super) struct Origin(bool);

impl Origin {
    pub(super) fn read<B>(request: &Request<B>) -> Reading {
        let headers = request.headers();
        let cross = headers.contains_key(ORIGIN);
        match headers.get(ACCESS_CONTROL_REQUEST_METHOD) {
            Some(method) if request.method() == Method::OPTIONS => {
                Reading::Preflight(preflight(cross, method, headers))
            }
            _ => Reading::Request(Self(cross)),
        }
    }

    /// Adds what a page needs to see an answer.
    pub(super) fn mark(&self, headers: &mut HeaderMap) {
        headers.append(VARY, HeaderValue::from_static("Origin"));
        if self.0 {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}

fn preflight(cross: bool, method: &HeaderValue, asked: &HeaderMap) -> Response<DaemonBody> {
    let mut response = plain::status(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert(
        VARY,
        HeaderValue::from_static(
            "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        ),
    );
    if cross && METHODS.iter().any(|allowed| method.as_bytes() == allowed.as_bytes()) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
        if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    }
    response
}
