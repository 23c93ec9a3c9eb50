//! Requests that do not say in one voice for which host they are: whatever stands between client and server
//! may have read them differently. Nothing here depends on the host, so that it is one is enough.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use super::error::ApiError;
use crate::http_server::{BadHost, requested_host};

pub(super) async fn check(request: Request, next: Next) -> Result<Response, ApiError> {
    requested_host(&request)?;
    Ok(next.run(request).await)
}

impl From<BadHost> for ApiError {
    fn from(error: BadHost) -> Self {
        Self::bad_request(format!("invalid host: {error}"))
    }
}
