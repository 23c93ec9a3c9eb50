//! Request bodies: JSON of bounded size, with or without `Content-Length` (control-plane G10).

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, EXPECT};
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::SharedApi;
use super::error::ApiError;

/// The largest body that is read.
const MAX_BYTES: usize = 1 << 20;

/// How much of a larger body is thrown away before it is refused. A client that is still sending when the
/// connection closes does not see the answer.
const MAX_DISCARDED_BYTES: u64 = 64 << 20;

/// A body as it was sent, known to claim to be JSON if it is not empty.
pub(super) struct JsonBody(pub(super) Bytes);

impl FromRequest<SharedApi> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &SharedApi) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body).await?;
        if !bytes.is_empty() {
            check_content_type(&parts.headers)?;
        }
        Ok(Self(bytes))
    }
}

impl JsonBody {
    /// The body's value.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        if self.0.is_empty() {
            return Err(ApiError::bad_request(
                "validation error: the request has no body, but needs a JSON object",
            ));
        }
        // A derived reader takes a list for an object with its members in order.
        if self.0.trim_ascii_start().first() == Some(&b'[') {
            return Err(ApiError::bad_request(
                "validation error: the request body is a JSON array, but must be an object",
            ));
        }
        let mut deserializer = serde_json::Deserializer::from_slice(&self.0);
        let value =
            serde_path_to_error::deserialize(&mut deserializer).map_err(|error| refusal(&error))?;
        deserializer.end().map_err(|error| malformed(&error))?;
        Ok(value)
    }

    /// The body's value, or the default if there is no body.
    pub(super) fn parse_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, ApiError> {
        if self.0.is_empty() {
            return Ok(T::default());
        }
        self.parse()
    }
}

fn refusal(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let inner = error.inner();
    if !inner.is_data() {
        return malformed(inner);
    }
    match error.path().to_string().as_str() {
        // The body itself: the text names a missing member.
        "." => ApiError::bad_request(format!("validation error: {inner}")),
        member => ApiError::validation(member, inner),
    }
}

fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::bad_request(format!("the request body is not well-formed JSON: {error}"))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Ok(());
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    let essence = text.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "the request body has the content type '{essence}': send JSON as 'application/json'"
    )))
}

async fn read(headers: &HeaderMap, mut body: Body) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request body is larger than {MAX_BYTES} bytes"),
        )
    };
    let announced = body.size_hint().lower();
    // A client that asks first has not sent anything yet.
    let asks = headers.contains_key(EXPECT) && announced > MAX_BYTES as u64;
    if asks || announced > MAX_DISCARDED_BYTES {
        return Err(too_large());
    }
    let mut kept = BytesMut::new();
    let mut seen: u64 = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request(format!("the request body could not be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue; // trailers
        };
        seen += data.len() as u64;
        if seen <= MAX_BYTES as u64 {
            kept.extend_from_slice(&data);
        } else if seen > MAX_DISCARDED_BYTES {
            return Err(too_large());
        } else {
            kept = BytesMut::new();
        }
    }
    if seen > MAX_BYTES as u64 {
        return Err(too_large());
    }
    Ok(kept.freeze())
}

#[cfg(test)]
mod tests {
    use sandyard_contract::rest::{CreateBody, TimeoutBody};

    use super::*;

    fn refused<T: DeserializeOwned>(body: &'static str) -> String {
        let parsed = JsonBody(Bytes::from_static(body.as_bytes())).parse::<T>();
        let error = parsed.err().expect("refused");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        error.message().to_owned()
    }

    #[test]
    fn a_wrong_type_is_a_validation_error_that_names_the_member() {
        let message = refused::<CreateBody>(r#"{"templateID":"base","envVars":{"A":1}}"#);
        assert!(message.starts_with("validation error at 'envVars.A':"), "{message}");
        let message = refused::<CreateBody>("{}");
        assert!(
            message.starts_with("validation error") && message.contains("templateID"),
            "{message}"
        );
        for body in [r#"{"timeout":"5"}"#, r#"{"timeout":99999999999}"#] {
            let message = refused::<TimeoutBody>(body);
            assert!(message.starts_with("validation error at 'timeout':"), "{message}");
        }
    }

    #[test]
    fn what_is_no_json_says_so() {
        for body in ["{", "nope", r#"{"timeout":1} x"#] {
            assert!(refused::<TimeoutBody>(body).contains("not well-formed JSON"), "{body}");
        }
        assert!(refused::<TimeoutBody>("").contains("no body"));
    }

    #[test]
    fn a_list_is_no_object_even_if_its_members_would_fit() {
        for body in ["[]", "[5]", " [30]"] {
            assert!(refused::<TimeoutBody>(body).contains("must be an object"), "{body}");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_however_it_is_framed() {
        let whole = || vec![b' '; MAX_BYTES + 1];
        let chunks = whole()
            .chunks(100_000)
            .map(|chunk| Ok::<_, std::io::Error>(Bytes::copy_from_slice(chunk)))
            .collect::<Vec<_>>();
        let chunked = Body::from_stream(futures::stream::iter(chunks));
        for body in [Body::from(whole()), chunked] {
            let refused = read(&HeaderMap::new(), body).await.expect_err("too large");
            assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        }
        let exact = read(&HeaderMap::new(), Body::from(vec![b' '; MAX_BYTES])).await;
        assert_eq!(exact.expect("fits").len(), MAX_BYTES);
    }
}
