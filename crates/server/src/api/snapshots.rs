//! Snapshots (control-plane 3.5).

use axum::Json;
use axum::extract::{FromRequestParts, RawPathParams, RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use sandyard_contract::rest::{SnapshotBody, SnapshotInfoBody};
use sandyard_core::{Snapshot, SnapshotFilter, TemplateReference};
use sandyard_types::SandboxId;

use super::SharedApi;
use super::auth::Caller;
use super::body::JsonBody;
use super::error::ApiError;
use super::list::{MAX_LIMIT, NEXT_TOKEN, QueryPairs, limit};
use super::page_token::{Position, SortOrder};
use super::path::SandboxPath;

/// The template that `{templateID}` names, decoded: its characters may be percent-encoded (control-plane G7).
pub(super) struct TemplatePath(TemplateReference);

impl FromRequestParts<SharedApi> for TemplatePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &SharedApi) -> Result<Self, ApiError> {
        let refused = || ApiError::bad_request("invalid template reference");
        let params = RawPathParams::from_request_parts(parts, api).await.map_err(|_| refused())?;
        let (_, text) =
            params.iter().find(|(name, _)| *name == "templateID").ok_or_else(refused)?;
        Ok(Self(text.parse::<TemplateReference>()?))
    }
}

/// `POST /sandboxes/{sandboxID}/snapshots`. Memory is never kept, so `memory` makes no difference: sandboxes from
/// a snapshot start with new processes (design 5.1).
pub(super) async fn take(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
    body: JsonBody,
) -> Result<(StatusCode, Json<SnapshotInfoBody>), ApiError> {
    let SnapshotBody { name, memory: _ } = body.parse_or_default()?;
    let name = name.as_deref().map(str::parse::<TemplateReference>).transpose();
    let name = name.map_err(|error| ApiError::validation("name", error))?;
    let snapshot = api.app.scheduler.snapshot(caller.team, &id, name.as_ref()).await?;
    Ok((StatusCode::CREATED, Json(body_of(&snapshot))))
}

fn body_of(snapshot: &Snapshot) -> SnapshotInfoBody {
    SnapshotInfoBody { snapshot_id: snapshot.id.clone(), names: snapshot.names.clone() }
}

/// `GET /snapshots`: newest first, in pages.
pub(super) async fn list(
    caller: Caller,
    State(api): State<SharedApi>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = QueryPairs::parse(query.as_deref());
    let given = |name: &str| query.get(name).filter(|value| !value.is_empty());
    let name = given("name").map(str::parse::<TemplateReference>).transpose();
    let filter = SnapshotFilter {
        source: given("sandboxID").map(SandboxId::from_path).transpose()?,
        name: name.map_err(|error| ApiError::validation("name", error))?,
    };
    let limit = query.get("limit").map_or(Ok(MAX_LIMIT), limit)?;
    let after = given("nextToken").map(|token| Position::from_token(token, SortOrder::Descending));
    let after = after.transpose()?;
    let found = api.app.scheduler.catalogue().snapshots(caller.team, &filter);
    let found = found.map_err(|error| ApiError::validation("name", error))?;

    let mut placed: Vec<(Position, Snapshot)> = found
        .into_iter()
        .map(|snapshot| (Position::new(snapshot.created_at, &snapshot.id), snapshot))
        .collect();
    if let Some(after) = &after {
        placed.retain(|(place, _)| place.compare(after, SortOrder::Descending).is_gt());
    }
    placed.sort_by(|(a, _), (b, _)| a.compare(b, SortOrder::Descending));
    let more = placed.len() > limit;
    placed.truncate(limit);
    let mut headers = HeaderMap::new();
    if let Some((last, _)) = placed.last().filter(|_| more) {
        // A token is made of what may stand in a header.
        let token = HeaderValue::from_str(&last.to_token(SortOrder::Descending));
        headers.extend(token.ok().map(|token| (NEXT_TOKEN, token)));
    }
    let page: Vec<SnapshotInfoBody> =
        placed.iter().map(|(_, snapshot)| body_of(snapshot)).collect();
    Ok((headers, Json(page)).into_response())
}

/// `DELETE /templates/{templateID}`: of the store's templates, which are snapshots.
pub(super) async fn delete(
    caller: Caller,
    TemplatePath(reference): TemplatePath,
    State(api): State<SharedApi>,
) -> Result<StatusCode, ApiError> {
    api.app.scheduler.delete_template(caller.team, &reference).await?;
    Ok(StatusCode::NO_CONTENT)
}
