//! Answers of the routes that are not procedures (executor 6).

use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::body::DaemonBody;

const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A status and nothing else.
pub(super) fn status(status: StatusCode) -> Response<DaemonBody> {
    let mut response = Response::new(DaemonBody::empty());
    *response.status_mut() = status;
    response
}

/// A text for people.
pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Response<DaemonBody> {
    typed(status, TEXT, text.into().into_bytes(), true)
}

/// A value as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<DaemonBody> {
    match serde_json::to_vec(value) {
        Ok(body) => typed(status, JSON, body, false),
        Err(error) => {
            text(StatusCode::INTERNAL_SERVER_ERROR, format!("failed to write the answer: {error}"))
        }
    }
}

/// The error body of plain routes; its code is a number, unlike a procedure's (executor 3.2, 6).
pub(super) fn error(status: StatusCode, message: impl AsRef<str>) -> Response<DaemonBody> {
    let body = serde_json::json!({ "code": status.as_u16(), "message": message.as_ref() });
    typed(status, JSON, format!("{body}\n").into_bytes(), true)
}

fn typed(
    status: StatusCode,
    content_type: HeaderValue,
    body: Vec<u8>,
    nosniff: bool,
) -> Response<DaemonBody> {
    let mut response = Response::new(DaemonBody::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    if nosniff {
        response.headers_mut().insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    }
    response
}
