//! One sandbox: read, kill, time (control-plane 3.3, 3.4).

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use sandyard_contract::rest::{RefreshBody, SandboxDetailBody, TimeoutBody};
use sandyard_core::SandboxError;

use super::SharedApi;
use super::auth::Caller;
use super::body::JsonBody;
use super::convert::detail_body;
use super::error::ApiError;
use super::path::SandboxPath;

/// What a refresh means at least.
const REFRESH_MIN: Duration = Duration::from_secs(15);
/// What a refresh may ask for, in seconds.
const REFRESH_MAX_SECS: i32 = 3600;

/// A number of seconds that may not be negative.
pub(super) fn seconds(member: &str, value: i32) -> Result<Duration, ApiError> {
    u64::try_from(value)
        .map(Duration::from_secs)
        .map_err(|_| ApiError::validation(member, "it is a number of seconds, at least 0"))
}

/// `GET /sandboxes/{sandboxID}`.
pub(super) async fn detail(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
) -> Result<Json<SandboxDetailBody>, ApiError> {
    let sandbox = api.app.scheduler.get(caller.team, &id)?;
    let body = detail_body(&api.app, &sandbox).ok_or(SandboxError::NotFound(id))?;
    Ok(Json(body))
}

/// `DELETE /sandboxes/{sandboxID}`.
pub(super) async fn kill(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
) -> Result<StatusCode, ApiError> {
    api.app.scheduler.kill(caller.team, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /sandboxes/{sandboxID}/timeout`.
pub(super) async fn set_timeout(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
    body: JsonBody,
) -> Result<StatusCode, ApiError> {
    let timeout = seconds("timeout", body.parse::<TimeoutBody>()?.timeout)?;
    let scheduler = &api.app.scheduler;
    scheduler.set_timeout(caller.team, &id, timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /sandboxes/{sandboxID}/refreshes`.
pub(super) async fn refresh(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
    body: JsonBody,
) -> Result<StatusCode, ApiError> {
    let duration = body.parse_or_default::<RefreshBody>()?.duration.unwrap_or(0);
    if duration > REFRESH_MAX_SECS {
        let rule = format!("it is a number of seconds, at most {REFRESH_MAX_SECS}");
        return Err(ApiError::validation("duration", rule));
    }
    let duration = seconds("duration", duration)?.max(REFRESH_MIN);
    let scheduler = &api.app.scheduler;
    scheduler.extend(caller.team, &id, duration).await?;
    Ok(StatusCode::NO_CONTENT)
}
