//! Routes: parse, call, answer (code-interpreter 3).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    ORIGIN, VARY,
};
use hyper::{Method, Request, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::body::InterpreterBody;
use crate::DaemonClaim;
use crate::context::{ContextError, Contexts, ExecuteRequest};

/// The longest body of a request, in bytes.
const BODY_LIMIT: usize = 64 << 20;
const ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");
/// For how long code waits for the daemon to tell whose the sandbox is.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);
/// Chunks on their way to a client: one, and the last one, for which there is always a place.
const CHUNKS: usize = 2;

/// Body of `POST /execute`.
#[derive(Debug, Deserialize)]
struct ExecuteBody {
    code: String,
    #[serde(default)]
    context_id: Option<String>,
    #[serde(default)]
    language: Option<String>,
    #[serde(default)]
    env_vars: Option<BTreeMap<String, String>>,
}

/// Body of `POST /contexts`.
#[derive(Debug, Default, Deserialize)]
struct CreateContextBody {
    #[serde(default)]
    language: Option<String>,
    #[serde(default)]
    cwd: Option<String>,
}

/// Answers a request; every failure is an answer too.
pub(super) async fn answer(
    contexts: &Arc<Contexts>,
    claim: &watch::Receiver<Option<DaemonClaim>>,
    request: Request<Incoming>,
) -> Response<InterpreterBody> {
    let cross = request.headers().contains_key(ORIGIN);
    if cross
        && request.method() == Method::OPTIONS
        && let Some(method) = request.headers().get(ACCESS_CONTROL_REQUEST_METHOD)
    {
        return preflight(method, request.headers());
    }
    let mut response = match route(contexts, claim, request).await {
        Ok(response) | Err(response) => response,
    };
    if cross {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    response
}

async fn route(
    contexts: &Arc<Contexts>,
    claim: &watch::Receiver<Option<DaemonClaim>>,
    request: Request<Incoming>,
) -> Result<Response<InterpreterBody>, Response<InterpreterBody>> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match (request.method().as_str(), parts.as_slice()) {
        ("GET", ["health"]) => Ok(as_json(StatusCode::OK, &"OK")),
        ("POST", ["execute"]) => execute(contexts, claim, request).await,
        ("GET", ["contexts"]) => Ok(as_json(StatusCode::OK, &contexts.list())),
        ("POST", ["contexts"]) => {
            let body: CreateContextBody = read(request).await?;
            let made = contexts.create(body.language.as_deref(), body.cwd.as_deref()).await;
            Ok(as_json(StatusCode::OK, &made.map_err(|error| failed(&error))?))
        }
        ("POST", ["contexts", id, "restart"]) => {
            contexts.restart(id).await.map_err(|error| failed(&error))?;
            Ok(as_json(StatusCode::OK, &()))
        }
        ("DELETE", ["contexts", id]) => {
            contexts.remove(id).await.map_err(|error| failed(&error))?;
            Ok(as_json(StatusCode::OK, &()))
        }
        (_, ["health" | "execute" | "contexts"] | ["contexts", _] | ["contexts", _, "restart"]) => {
            let detail = json!({ "detail": "Method Not Allowed" });
            Err(as_json(StatusCode::METHOD_NOT_ALLOWED, &detail))
        }
        _ => Err(as_json(StatusCode::NOT_FOUND, &json!({ "detail": "Not Found" }))),
    }
}

async fn execute(
    contexts: &Arc<Contexts>,
    claim: &watch::Receiver<Option<DaemonClaim>>,
    request: Request<Incoming>,
) -> Result<Response<InterpreterBody>, Response<InterpreterBody>> {
    let shown = request.headers().get_all(ACCESS_TOKEN);
    // The daemon tells it first thing; until then nobody is known to be the owner.
    let mut claim = claim.clone();
    let accepted = {
        let claimed = timeout(CLAIM_LIMIT, claim.wait_for(Option::is_some)).await;
        claimed.ok().and_then(Result::ok).map(|claim| {
            let tokens = shown.iter().map(HeaderValue::as_bytes);
            claim.as_ref().is_some_and(|claim| claim.accepts(tokens))
        })
    };
    match accepted {
        Some(true) => {}
        Some(false) => {
            let message =
                "this sandbox is secured: the header X-Access-Token has to hold its access token";
            return Err(unread(text(StatusCode::UNAUTHORIZED, message)));
        }
        None => {
            let message = "the sandbox belongs to nobody yet";
            return Err(unread(text(StatusCode::SERVICE_UNAVAILABLE, message)));
        }
    }
    let body: ExecuteBody = read(request).await?;
    if body.context_id.is_some() && body.language.is_some() {
        let message = "Only one of context_id or language can be provided";
        return Err(text(StatusCode::BAD_REQUEST, message));
    }
    let env = body.env_vars.unwrap_or_default();
    if let Some(name) = impossible_variable(&env) {
        let message = format!("no program can be given the variable '{name}'");
        return Err(text(StatusCode::BAD_REQUEST, message));
    }
    let context = contexts.choose(body.context_id.as_deref(), body.language.as_deref()).await;
    let context = context.map_err(|error| failed(&error))?;
    let (sender, lines) = mpsc::channel(CHUNKS);
    let request = ExecuteRequest { code: body.code, env, lines: sender };
    if context.requests.send(request).await.is_err() {
        return Err(failed(&ContextError::Removed(context.id.clone())));
    }
    Ok(Response::new(InterpreterBody::Lines(lines)))
}

fn impossible_variable(env: &BTreeMap<String, String>) -> Option<&str> {
    let impossible = |(name, value): &(&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    env.iter().find(impossible).map(|(name, _)| name.as_str())
}

/// Reads a body; a member that is wrong is named as the original's library names it.
async fn read<T: DeserializeOwned>(
    request: Request<Incoming>,
) -> Result<T, Response<InterpreterBody>> {
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let message = format!("the body has more than {BODY_LIMIT} bytes");
            return text(StatusCode::PAYLOAD_TOO_LARGE, message);
        }
        text(StatusCode::BAD_REQUEST, format!("failed to read the body: {error}"))
    })?;
    let body = body.to_bytes();
    let mut json = serde_json::Deserializer::from_slice(&body);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let mut place = vec![json!("body")];
        place.extend(error.path().iter().map(|segment| json!(segment.to_string())));
        let message = error.inner().to_string();
        let detail = json!({ "detail": [{ "loc": place, "msg": message, "type": "value_error" }] });
        as_json(StatusCode::UNPROCESSABLE_ENTITY, &detail)
    })
}

/// The one place where errors become statuses.
fn failed(error: &ContextError) -> Response<InterpreterBody> {
    let status = match error {
        ContextError::NotFound(_) | ContextError::Lost(_) | ContextError::Removed(_) => {
            StatusCode::NOT_FOUND
        }
        ContextError::Spec(_)
        | ContextError::Kernel(_)
        | ContextError::Directory(_)
        | ContextError::TooMany(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let message = sandyard_types::error_chain(error);
    if status.is_server_error() {
        crate::log!("{message}");
    }
    text(status, message)
}

fn preflight(method: &HeaderValue, asked: &HeaderMap) -> Response<InterpreterBody> {
    let mut response = text(StatusCode::OK, "OK");
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    if let Some(names) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    response
}

/// An answer to a request whose body is not read: the connection ends with it.
fn unread(mut response: Response<InterpreterBody>) -> Response<InterpreterBody> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn text(status: StatusCode, text: impl Into<String>) -> Response<InterpreterBody> {
    typed(status, "text/plain; charset=utf-8", text.into().into_bytes())
}

fn as_json(status: StatusCode, value: &impl Serialize) -> Response<InterpreterBody> {
    match serde_json::to_vec(value) {
        Ok(body) => typed(status, "application/json", body),
        Err(error) => {
            let message = format!("failed to write the answer: {error}");
            text(StatusCode::INTERNAL_SERVER_ERROR, message)
        }
    }
}

fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: Vec<u8>,
) -> Response<InterpreterBody> {
    let mut response = Response::new(InterpreterBody::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
