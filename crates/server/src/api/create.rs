//! Create: `POST /v2/sandboxes` and `POST /sandboxes`, one body with different defaults (control-plane 3.3).

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use http::{HeaderMap, StatusCode};
use sandyard_contract::rest::{CreateBody, SandboxBody};
use sandyard_core::CreateSandbox;
use sandyard_types::{Lifecycle, OnTimeout, PauseKind, Secret, SessionId};
use serde_json::Value;
use tracing::Span;

use super::SharedApi;
use super::auth::Caller;
use super::body::JsonBody;
use super::convert::sandbox_body;
use super::error::ApiError;
use super::idempotency::{self, Key};
use super::network::network;
use super::refusals::refuse_what_is_not_built;
use crate::http_server::Client;

/// Which of the two paths was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// `POST /sandboxes`.
    V1,
    /// `POST /v2/sandboxes`.
    V2,
}

/// Metadata as a whole may have this many bytes: every list carries it.
const METADATA_MAX_BYTES: usize = 64 * 1024;
/// The variables as a whole, as JSON: with the image's and the template's they are part of one call to the
/// sandbox's daemon, which is bounded ([`sandyard_contract::daemon::INIT_BODY_LIMIT`]).
const ENV_MAX_BYTES: usize = 48 * 1024;

/// Metadata that names the session whose workspace is mounted (design 6).
const SESSION: &str = "session";
/// Metadata that describes a workspace in full (design 6).
const WORKSPACE: &str = "workspace";

pub(super) async fn v1(
    caller: Caller,
    State(api): State<SharedApi>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<(StatusCode, Json<SandboxBody>), ApiError> {
    create(caller, &api, &client, Version::V1, &headers, &body).await
}

pub(super) async fn v2(
    caller: Caller,
    State(api): State<SharedApi>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<(StatusCode, Json<SandboxBody>), ApiError> {
    create(caller, &api, &client, Version::V2, &headers, &body).await
}

/// The result of a create, given up as soon as its client closes its side of the connection. From here that
/// looks the same whether the client still listens or has gone, which most that close have; and a sandbox
/// whose id nobody learns would run for its whole time. Whoever does listen is told.
pub(super) async fn while_waited_for<T>(
    client: &Client,
    create: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    tokio::select! {
        biased;
        () = client.closed_its_side() => Err(ApiError::bad_request(
            "the client closed its side of the connection before the sandbox was ready, which counts as \
             leaving: keep it open until the answer",
        )),
        created = create => created,
    }
}

async fn create(
    caller: Caller,
    api: &SharedApi,
    client: &Client,
    version: Version,
    headers: &HeaderMap,
    body: &JsonBody,
) -> Result<(StatusCode, Json<SandboxBody>), ApiError> {
    let key = idempotency::key_of(headers, caller.team)?;
    let request = read(version, body.parse()?)?;
    let (scheduler, team) = (api.app.scheduler.clone(), caller.team);
    let sandbox = match key {
        Some(name) => {
            let key = Key::new(name, version, &body.0);
            // Whoever repeats the request learns the id, too.
            let create = async move { Ok(scheduler.create(team, request).await?.keep()) };
            while_waited_for(client, api.idempotency.once(key, create)).await?
        }
        None => {
            let create = async { Ok(scheduler.create(team, request).await?) };
            while_waited_for(client, create).await?.keep()
        }
    };
    Span::current().record("sandbox.id", sandbox.id.as_str());
    let body = sandbox_body(&api.app, &sandbox);
    Ok((StatusCode::CREATED, Json(body)))
}

/// What the body asks the scheduler for.
fn read(version: Version, body: CreateBody) -> Result<CreateSandbox, ApiError> {
    let secure = secure(version, body.secure.as_ref())?;
    refuse_what_is_not_built(version, &body, secure)?;
    let template =
        body.template_id.parse().map_err(|error| ApiError::validation("templateID", error))?;
    let timeout = timeout(version, body.timeout)?;
    let lifecycle = lifecycle(&body);
    let metadata = body.metadata.unwrap_or_default();
    let session = session(&metadata)?;
    Ok(CreateSandbox {
        template,
        timeout,
        metadata,
        env: environment(body.env_vars.unwrap_or_default())?,
        secure,
        internet: body.allow_internet_access,
        network: network(body.network)?,
        session,
        lifecycle,
    })
}

/// What happens when the time is over; contradictions were refused before.
fn lifecycle(body: &CreateBody) -> Lifecycle {
    let kind = match body.auto_pause_memory {
        Some(false) => PauseKind::Filesystem,
        Some(true) | None => PauseKind::Full,
    };
    Lifecycle {
        on_timeout: match body.auto_pause {
            Some(true) => OnTimeout::Pause(kind),
            Some(false) | None => OnTimeout::Kill,
        },
        auto_resume: body.auto_resume.as_ref().is_some_and(|resume| resume.enabled),
    }
}

fn secure(version: Version, value: Option<&Value>) -> Result<bool, ApiError> {
    match (version, value) {
        (Version::V2, _) => Ok(true),
        (Version::V1, None | Some(Value::Null)) => Ok(false),
        (Version::V1, Some(Value::Bool(secure))) => Ok(*secure),
        (Version::V1, Some(_)) => Err(ApiError::validation("secure", "it is true or false")),
    }
}

fn timeout(version: Version, seconds: Option<i32>) -> Result<Duration, ApiError> {
    let default = match version {
        Version::V1 => 15,
        Version::V2 => 300,
    };
    let seconds = seconds.unwrap_or(default);
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(
        || {
            let rule = format!("it is a number of seconds greater than 0, not {seconds}");
            ApiError::validation("timeout", rule)
        },
    )
}

fn session(metadata: &BTreeMap<String, String>) -> Result<Option<SessionId>, ApiError> {
    let bytes: usize = metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > METADATA_MAX_BYTES {
        let rule = format!("it has {bytes} bytes, and may have {METADATA_MAX_BYTES}");
        return Err(ApiError::validation("metadata", rule));
    }
    if metadata.get(WORKSPACE).is_some_and(|text| !text.is_empty()) {
        return Err(ApiError::not_built(
            "'metadata.workspace' (use 'metadata.session'), which describes a workspace in full,",
        ));
    }
    metadata
        .get(SESSION)
        .map(|text| text.parse())
        .transpose()
        .map_err(|error| ApiError::validation("metadata.session", error))
}

fn environment(variables: BTreeMap<String, Secret>) -> Result<BTreeMap<String, String>, ApiError> {
    let bytes = serde_json::to_vec(&variables).map_or(usize::MAX, |json| json.len());
    if bytes > ENV_MAX_BYTES {
        let rule = format!("it has {bytes} bytes as JSON, and may have {ENV_MAX_BYTES}");
        return Err(ApiError::validation("envVars", rule));
    }
    let reveal = |(name, value): (String, Secret)| {
        let value = value.reveal().to_owned();
        let member = || format!("envVars.{}", name.chars().take(64).collect::<String>());
        if name.is_empty() || name.contains(['=', '\0']) {
            let rule = "the name of a variable is not empty and contains neither '=' nor NUL";
            return Err(ApiError::validation(&member(), rule));
        }
        if value.contains('\0') {
            return Err(ApiError::validation(&member(), "a value contains no NUL"));
        }
        Ok((name, value))
    };
    variables.into_iter().map(reveal).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_json(version: Version, body: Value) -> Result<CreateSandbox, ApiError> {
        read(version, serde_json::from_value(body).expect("well-formed"))
    }

    #[test]
    fn the_two_paths_have_their_own_defaults() {
        let bare = || json!({"templateID": "base"});
        let v1 = read_json(Version::V1, bare()).expect("valid");
        assert_eq!((v1.timeout.as_secs(), v1.secure), (15, false));
        let v2 = read_json(Version::V2, bare()).expect("valid");
        assert_eq!((v2.timeout.as_secs(), v2.secure), (300, true));
        // Not a member of the second: ignored whatever it is.
        let body = json!({"templateID": "base", "secure": "x"});
        assert!(read_json(Version::V2, body.clone()).expect("valid").secure);
        let refused = read_json(Version::V1, body).expect_err("invalid");
        assert!(refused.message().starts_with("validation error at 'secure'"));
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        let long = "x".repeat(ENV_MAX_BYTES);
        for (member, body) in [
            ("timeout", json!({"templateID": "base", "timeout": 0})),
            ("timeout", json!({"templateID": "base", "timeout": -1})),
            ("templateID", json!({"templateID": "a b"})),
            ("metadata.session", json!({"templateID": "base", "metadata": {"session": "../x"}})),
            ("metadata.session", json!({"templateID": "base", "metadata": {"session": ""}})),
            ("metadata", json!({"templateID": "base", "metadata": {"k": "x".repeat(70_000)}})),
            (
                "network.maskRequestHost",
                json!({"templateID": "base", "network": {"maskRequestHost": "-https://abcd"}}),
            ),
            ("envVars.A=B", json!({"templateID": "base", "envVars": {"A=B": ""}})),
            ("envVars.A", json!({"templateID": "base", "envVars": {"A": "\0"}})),
            ("envVars", json!({"templateID": "base", "envVars": {"A": long}})),
        ] {
            let refused = read_json(Version::V2, body).expect_err(member);
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
            let start = format!("validation error at '{member}': ");
            assert!(refused.message().starts_with(&start), "{refused:?}");
        }
    }

    #[test]
    fn a_whole_workspace_in_metadata_is_refused_as_not_built() {
        let body = json!({"templateID": "base", "metadata": {"workspace": "{}"}});
        let refused = read_json(Version::V2, body).expect_err("not built");
        assert_eq!(refused.status(), StatusCode::NOT_IMPLEMENTED);
        assert!(refused.message().contains("metadata.workspace"));
    }
}
