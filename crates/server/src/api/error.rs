//! Errors as clients see them (control-plane 2).

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode};
use sandyard_contract::rest::ErrorBody;
use sandyard_core::{DeleteRefusal, InvalidReference, SandboxError, StoreError};
use sandyard_types::{InvalidId, InvalidSandboxId};
use tracing::error;

/// An answer that is not success. Clients decide by `code` in the body as well as by the status, so both
/// come from the one place (control-plane G1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    error_code: Option<&'static str>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), error_code: None }
    }

    pub(super) fn with_error_code(mut self, error_code: &'static str) -> Self {
        self.error_code = Some(error_code);
        self
    }

    pub(super) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A member or parameter breaks the schema (control-plane 2.1).
    pub(super) fn validation(member: &str, rule: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("validation error at '{member}': {rule}"))
    }

    /// A known member asks for something that is not there.
    pub(super) fn not_built(what: &str) -> Self {
        let message = format!("{what} is not built in this version of sandyard");
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    #[cfg(test)]
    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl From<ApiError> for ErrorBody {
    fn from(error: ApiError) -> Self {
        Self {
            code: error.status.as_u16(),
            message: error.message,
            error_code: error.error_code.map(str::to_owned),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(ErrorBody::from(self))).into_response();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            // None of our failures goes away by waiting, and clients repeat creates (control-plane 5.8).
            let name = HeaderName::from_static("should-retry");
            let value = HeaderValue::from_static("false");
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<SandboxError> for ApiError {
    /// Picks the status; logs what is the server's own failure, here and nowhere else. 503 is for what had no
    /// effect, never 502 or 504: clients would repeat what may have had one (control-plane G11).
    fn from(error: SandboxError) -> Self {
        let status = status_of(&error);
        let message = if status.is_server_error() {
            let chain = error.chain();
            error!(error = %chain, "a request failed");
            if is_of_store(&error) {
                // What the data base says means nothing to a client.
                error.to_string()
            } else {
                chain
            }
        } else {
            error.to_string()
        };
        Self::new(status, message)
    }
}

/// Whether the data base failed.
fn is_of_store(error: &SandboxError) -> bool {
    match error {
        SandboxError::Shared(inner) => is_of_store(inner),
        error => matches!(error, SandboxError::Store(_)),
    }
}

fn status_of(error: &SandboxError) -> StatusCode {
    match error {
        SandboxError::NotFound(_) | SandboxError::Template(_) | SandboxError::ContainerGone(_) => {
            StatusCode::NOT_FOUND
        }
        SandboxError::Conflict { .. } => StatusCode::CONFLICT,
        SandboxError::ZeroTimeout
        | SandboxError::TimeoutTooLong { .. }
        | SandboxError::LengthUsedUp { .. }
        | SandboxError::SnapshotName(_)
        | SandboxError::TooManyForks { .. }
        | SandboxError::Workspace(_) => StatusCode::BAD_REQUEST,
        SandboxError::Delete(refusal) => match refusal {
            DeleteRefusal::Unknown(_) => StatusCode::NOT_FOUND,
            DeleteRefusal::Foreign | DeleteRefusal::Configured(_) => StatusCode::FORBIDDEN,
            DeleteRefusal::InUse(_) => StatusCode::BAD_REQUEST,
        },
        SandboxError::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        SandboxError::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        // The sandbox is as it was before.
        SandboxError::NotFlushed { .. }
        | SandboxError::NotHalted { .. }
        | SandboxError::NotResumed { .. }
        | SandboxError::NotNoted { .. }
        | SandboxError::ShuttingDown
        | SandboxError::Runtime { op: "pause" | "snapshot" | "resume", .. } => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        SandboxError::ObjectStore { .. }
        | SandboxError::Runtime { .. }
        | SandboxError::Engine(_)
        | SandboxError::Executor { .. }
        | SandboxError::Cleanup { .. }
        | SandboxError::DataLeft { .. }
        | SandboxError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        SandboxError::Shared(inner) => status_of(inner),
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        SandboxError::from(error).into()
    }
}

impl From<InvalidSandboxId> for ApiError {
    fn from(error: InvalidSandboxId) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<InvalidReference> for ApiError {
    fn from(error: InvalidReference) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<InvalidId> for ApiError {
    fn from(error: InvalidId) -> Self {
        Self::bad_request(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_of_ours_invites_a_repetition() {
        let response = ApiError::from(SandboxError::TooMany { max: 1 }).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["should-retry"], "false");
        let response = ApiError::unauthorized("no").into_response();
        assert!(!response.headers().contains_key("should-retry"));
    }
}
