//! `POST /init` (executor 7): the server gives the sandbox its identity, token and environment.

use std::fs;
use std::io;
use std::sync::Arc;

use ed25519_dalek::Signature;
use http_body_util::{BodyExt as _, Limited};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use sandyard_contract::ENVD_VERSION;
use sandyard_contract::daemon::{INIT_SIGNATURE_HEADER, InitBody, init_signing_input};
use sandyard_http::Inbound;

use super::args::Identity;
use super::body::Body;
use super::settings::Settings;
use super::tasks::lock;
use super::{Daemon, plain, pool};

/// The longest body: the server takes 1 MiB from a client, and adds the image's and the template's variables.
const LIMIT: usize = 8 << 20;

/// Where programs in the sandbox find who they are in, as files.
const IDENTITY_FILES: &str = "/run/e2b";

const VERSION_HEADER: HeaderName = HeaderName::from_static("x-envd-version");

/// Answers a call to `/init`.
pub(super) async fn answer(daemon: &Arc<Daemon>, request: Request<Inbound>) -> Response<Body> {
    let mut response = match init(daemon, request).await {
        Ok(()) => plain::status(StatusCode::NO_CONTENT),
        Err((status, message)) => plain::text(status, message),
    };
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(ENVD_VERSION));
    response
}

async fn init(daemon: &Arc<Daemon>, request: Request<Inbound>) -> Result<(), (StatusCode, String)> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, LIMIT).collect().await.map_err(|error| {
        (StatusCode::PAYLOAD_TOO_LARGE, format!("failed to read up to {LIMIT} bytes: {error}"))
    })?;
    let body = body.to_bytes();
    if !is_signed(&daemon.identity, &head.headers, &body) {
        let message = "access token validation failed: the call is not signed by the server";
        return Err((StatusCode::UNAUTHORIZED, message.to_owned()));
    }
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let body: InitBody = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("failed to read the settings: {error}")))?;
    check(&body).map_err(bad)?;
    let files = {
        let mut settings = lock(&daemon.settings);
        if body.timestamp <= settings.newest {
            return Ok(());
        }
        apply(&mut settings, body)
    };
    pool::run(move || write_identity(&files)).await.map_err(|error| {
        let message = format!("failed to write to {IDENTITY_FILES}: {error}");
        (StatusCode::BAD_REQUEST, message)
    })
}

fn is_signed(identity: &Identity, headers: &HeaderMap, body: &[u8]) -> bool {
    let mut bytes = [0; Signature::BYTE_SIZE];
    let Some(given) = headers.get(INIT_SIGNATURE_HEADER) else {
        return false;
    };
    if hex::decode_to_slice(given.as_bytes(), &mut bytes).is_err() {
        return false;
    }
    let signed = init_signing_input(&identity.instance, body);
    identity.control_key.verify_strict(&signed, &Signature::from_bytes(&bytes)).is_ok()
}

fn check(body: &InitBody) -> Result<(), String> {
    if body.timestamp.is_none() {
        // Without one an old call could be played again.
        return Err("timestamp is missing".to_owned());
    }
    for (name, token) in
        [("accessToken", &body.access_token), ("controlToken", &body.control_token)]
    {
        let invalid = |text: &str| text.is_empty() || text.contains('\\');
        if token.as_ref().is_some_and(|token| invalid(token.reveal())) {
            return Err(format!("{name} must not be empty or hold a backslash"));
        }
    }
    let variables = body.env_vars.iter().flatten();
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("no program can be given the variable '{name}'"));
        }
    }
    Ok(())
}

/// Applies a call that is newer than all before; returns the identity's files.
fn apply(settings: &mut Settings, body: InitBody) -> Vec<(&'static str, String)> {
    settings.newest = body.timestamp;
    settings.access_token = body.access_token;
    if body.control_token.is_some() {
        settings.control_token = body.control_token;
    }
    if let Some(variables) = body.env_vars {
        settings.user_variables = variables;
    }
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    if let Some(user) = given(body.default_user) {
        settings.default_user = user;
    }
    if let Some(workdir) = given(body.default_workdir) {
        settings.default_workdir = Some(workdir);
    }
    let mut files = Vec::new();
    let sandbox = given(body.sandbox_id);
    let known = [
        ("E2B_SANDBOX", sandbox.as_ref().map(|_| "true".to_owned())),
        ("E2B_SANDBOX_ID", sandbox),
        ("E2B_TEMPLATE_ID", given(body.template_id)),
    ];
    for (name, value) in known {
        if let Some(value) = value {
            settings.system_variables.insert(name, value.clone());
            files.push((name, value));
        }
    }
    files
}

fn write_identity(files: &[(&'static str, String)]) -> io::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(IDENTITY_FILES)?;
    files.iter().try_for_each(|(name, value)| fs::write(format!("{IDENTITY_FILES}/.{name}"), value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn body(json: &str) -> InitBody {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn absent_members_change_nothing_but_the_token() {
        let mut settings = Settings::default();
        let first = body(
            r#"{"accessToken":"t","envVars":{"A":"1","E2B_SANDBOX":"no"},"defaultUser":"user",
            "defaultWorkdir":"/w","sandboxID":"i1","templateID":"base","controlToken":"c",
            "timestamp":"2026-01-01T00:00:00Z"}"#,
        );
        assert_eq!(check(&first), Ok(()));
        let files = apply(&mut settings, first);
        assert_eq!(files.len(), 3);
        let variables = settings.variables();
        assert_eq!(variables["E2B_SANDBOX"], "true");
        assert_eq!(variables["A"], "1");
        apply(&mut settings, body(r#"{"timestamp":"2026-01-01T00:00:01Z","defaultUser":""}"#));
        assert!(settings.access_token.is_none());
        assert!(settings.control_token.is_some());
        assert_eq!(settings.default_user, "user");
        assert_eq!(settings.default_workdir.as_deref(), Some("/w"));
        let emptied = body(r#"{"timestamp":"2026-01-01T00:00:02Z","envVars":{}}"#);
        apply(&mut settings, emptied);
        assert_eq!(settings.user_variables, BTreeMap::new());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let stamp = r#""timestamp":"2026-01-01T00:00:00Z""#;
        assert!(check(&body("{}")).is_err());
        for member in [
            r#""accessToken":"""#,
            r#""accessToken":"a\\b""#,
            r#""envVars":{"":"x"}"#,
            r#""envVars":{"A=B":"x"}"#,
            r#""envVars":{"A":"\u0000"}"#,
        ] {
            assert!(check(&body(&format!("{{{stamp},{member}}}"))).is_err(), "{member}");
        }
    }
}
