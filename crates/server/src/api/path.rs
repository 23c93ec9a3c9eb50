//! The sandbox id of a path. Routes are matched on the raw path and segments decoded after that
//! (control-plane G7).

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;
use sandyard_types::{InvalidSandboxId, SandboxId};
use tracing::Span;

use super::SharedApi;
use super::error::ApiError;

/// The sandbox that `{sandboxID}` names, without its client suffix (control-plane 4.1).
pub(super) struct SandboxPath(pub(super) SandboxId);

impl FromRequestParts<SharedApi> for SandboxPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &SharedApi) -> Result<Self, ApiError> {
        // The extractor refuses a segment that is not UTF-8 when decoded: no id is.
        let params =
            RawPathParams::from_request_parts(parts, api).await.map_err(|_| InvalidSandboxId)?;
        let (_, text) =
            params.iter().find(|(name, _)| *name == "sandboxID").ok_or(InvalidSandboxId)?;
        let id = SandboxId::from_path(text)?;
        Span::current().record("sandbox.id", id.as_str());
        Ok(Self(id))
    }
}
