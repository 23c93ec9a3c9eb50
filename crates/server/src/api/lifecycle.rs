//! Pause and return of a sandbox, and copies of it (control-plane 3.4, 3.5).

use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sandyard_contract::rest::{
    ConnectBody, ErrorBody, ForkBody, ForkedBody, PauseBody, ResumeBody, SandboxBody,
};
use sandyard_core::Connected;
use sandyard_types::{PauseKind, SandboxId};

use super::SharedApi;
use super::auth::Caller;
use super::body::JsonBody;
use super::convert::sandbox_body;
use super::create::while_waited_for;
use super::error::ApiError;
use super::path::SandboxPath;
use super::sandbox::seconds;
use crate::http_server::Client;

/// What a connect through `/v2` means when it names no time (control-plane 3.4).
const CONNECT_DEFAULT: Duration = Duration::from_secs(300);
/// What a resume or a fork means when it names no time, in seconds.
const RUN_DEFAULT: i32 = 15;
/// The most copies at once.
const MAX_FORKS: i32 = 100;

/// `POST /sandboxes/{sandboxID}/pause`.
pub(super) async fn pause(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
    body: JsonBody,
) -> Result<StatusCode, ApiError> {
    let body: PauseBody = body.parse_or_default()?;
    let kind = match body.memory {
        Some(false) => PauseKind::Filesystem,
        Some(true) | None => PauseKind::Full,
    };
    // Without its memory, a sandbox that does not answer could not say what it had not written.
    let healthy = body.require_healthy_guest == Some(true) || kind == PauseKind::Filesystem;
    api.app.scheduler.pause(caller.team, &id, kind, healthy).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A run of at least a second, in seconds.
fn run_time(member: &str, value: Option<i32>) -> Result<Duration, ApiError> {
    let value = value.unwrap_or(RUN_DEFAULT);
    u64::try_from(value)
        .ok()
        .filter(|value| *value > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| ApiError::validation(member, "it is a number of seconds greater than 0"))
}

/// `POST /sandboxes/{sandboxID}/resume`, deprecated: the oldest releases' way to connect (control-plane 9).
pub(super) async fn resume(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
    body: JsonBody,
) -> Result<(StatusCode, Json<SandboxBody>), ApiError> {
    let body: ResumeBody = body.parse_or_default()?;
    let timeout = run_time("timeout", body.timeout)?;
    let memory = body.memory.unwrap_or(true);
    let scheduler = &api.app.scheduler;
    let resumed = scheduler.resume(caller.team, &id, timeout, memory, body.auto_pause).await;
    let connected = resumed.map_err(|error| already_running(error, &id))?;
    Ok((StatusCode::CREATED, Json(sandbox_body(&api.app, &connected.sandbox))))
}

/// The oldest releases look for these words.
fn already_running(error: sandyard_core::SandboxError, id: &SandboxId) -> ApiError {
    use sandyard_core::{SandboxError, SandboxState};
    match error {
        SandboxError::Conflict { state: SandboxState::Running, .. } => {
            ApiError::new(StatusCode::CONFLICT, format!("sandbox '{id}' is already running"))
        }
        other => other.into(),
    }
}

/// `POST /sandboxes/{sandboxID}/connect`: the time must be named.
pub(super) async fn connect_v1(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
    body: JsonBody,
) -> Result<(StatusCode, Json<SandboxBody>), ApiError> {
    let body: ConnectBody = body.parse()?;
    let timeout = body.timeout.ok_or_else(|| ApiError::validation("timeout", "it is required"))?;
    let timeout = seconds("timeout", timeout)?;
    connect(&api, caller, &id, timeout, body.memory).await
}

/// `POST /v2/sandboxes/{sandboxID}/connect`: the body may be absent.
pub(super) async fn connect_v2(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
    body: JsonBody,
) -> Result<(StatusCode, Json<SandboxBody>), ApiError> {
    let body: ConnectBody = body.parse_or_default()?;
    let timeout = match body.timeout {
        Some(timeout) => seconds("timeout", timeout)?,
        None => CONNECT_DEFAULT,
    };
    connect(&api, caller, &id, timeout, body.memory).await
}

/// 200 for a sandbox that ran, 201 for one that was resumed.
async fn connect(
    api: &SharedApi,
    caller: Caller,
    id: &SandboxId,
    timeout: Duration,
    memory: Option<bool>,
) -> Result<(StatusCode, Json<SandboxBody>), ApiError> {
    let memory = memory.unwrap_or(true);
    let Connected { sandbox, resumed } =
        api.app.scheduler.connect(caller.team, id, timeout, memory).await?;
    let status = if resumed { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(sandbox_body(&api.app, &sandbox))))
}

/// `POST /sandboxes/{sandboxID}/fork`.
pub(super) async fn fork(
    caller: Caller,
    SandboxPath(id): SandboxPath,
    State(api): State<SharedApi>,
    Extension(client): Extension<Client>,
    body: JsonBody,
) -> Result<(StatusCode, Json<Vec<ForkedBody>>), ApiError> {
    let body: ForkBody = body.parse_or_default()?;
    let timeout = run_time("timeout", body.timeout)?;
    let count = body.count.unwrap_or(1);
    let count = usize::try_from(count).ok().filter(|_| (1..=MAX_FORKS).contains(&count));
    let count = count.ok_or_else(|| {
        ApiError::validation("count", format!("it is a number from 1 to {MAX_FORKS}"))
    })?;
    let scheduler = &api.app.scheduler;
    let fork = async { Ok(scheduler.fork(caller.team, &id, count, timeout).await?) };
    let forks = while_waited_for(&client, fork).await?;
    let entry = |fork: Result<sandyard_core::NewSandbox, _>| match fork {
        Ok(new) => ForkedBody::Sandbox(sandbox_body(&api.app, &new.keep())),
        Err(error) => ForkedBody::Error(ErrorBody::from(ApiError::from(error))),
    };
    Ok((StatusCode::CREATED, Json(forks.into_iter().map(entry).collect())))
}
