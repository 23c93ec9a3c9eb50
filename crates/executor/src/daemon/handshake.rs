//! `POST /init` (executor 7), the claim: the server gives the sandbox its identity, token and environment, once.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ed25519_dalek::Signature;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Bytes};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use sandyard_contract::ENVD_VERSION;
use sandyard_contract::daemon::{
    INIT_BODY_HASH_HEADER, INIT_BODY_LIMIT, INIT_SIGNATURE_HEADER, InitBody, init_signing_input,
};
use sandyard_http::Inbound;
use sha2::{Digest as _, Sha256};

use super::args::ContainerIdentity;
use super::body::DaemonBody;
use super::server::Peer;
use super::settings::Settings;
use super::tasks::lock;
use super::{Daemon, plain, pool};

/// Where programs in the sandbox find who they are in, as files.
const IDENTITY_FILES: &str = "/run/e2b";

const VERSION_HEADER: HeaderName = HeaderName::from_static("x-envd-version");

/// Answers a call to `/init`.
pub(super) async fn answer(
    daemon: &Arc<Daemon>,
    peer: &Peer,
    request: Request<Inbound>,
) -> Response<DaemonBody> {
    let mut response = match init(daemon, peer, request).await {
        Ok(()) => match interpreter_ready(daemon).await {
            Ok(()) => plain::status(StatusCode::NO_CONTENT),
            Err(message) => plain::text(StatusCode::SERVICE_UNAVAILABLE, message),
        },
        Err((status, message)) => plain::text(status, message),
    };
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(ENVD_VERSION));
    response
}

/// A sandbox with a code interpreter is ready when that is (code-interpreter 9).
async fn interpreter_ready(daemon: &Daemon) -> Result<(), String> {
    match &daemon.interpreter {
        Some(interpreter) => interpreter.ready().await,
        None => Ok(()),
    }
}

async fn init(
    daemon: &Arc<Daemon>,
    peer: &Peer,
    request: Request<Inbound>,
) -> Result<(), (StatusCode, String)> {
    let (head, body) = request.into_parts();
    let body = read_signed(&daemon.identity, &head.headers, body).await?;
    // Only who has signed comes this far, so that nobody else keeps the server waiting.
    if daemon.claiming.swap(true, Ordering::Acquire) {
        let message = "another call to /init is being carried out".to_owned();
        return Err((StatusCode::SERVICE_UNAVAILABLE, message));
    }
    // Once it is claimed, whoever asks again is answered without a change.
    let _claiming = ClaimInProgress(&daemon.claiming);
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let body: InitBody = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("failed to read the settings: {error}")))?;
    check(&body).map_err(bad)?;
    let files = {
        let mut settings = lock(&daemon.settings);
        match settings.claimed_at {
            None => apply(&mut settings, body),
            // The answer to the first one was lost.
            known if known == body.timestamp => return Ok(()),
            Some(_) => {
                let message = "the sandbox has been claimed by another call".to_owned();
                return Err((StatusCode::CONFLICT, message));
            }
        }
    };
    peer.claim(daemon);
    daemon.claimed.send_replace(true);
    pool::run(move || write_identity(&files)).await.map_err(|error| {
        let message = format!("failed to write to {IDENTITY_FILES}: {error}");
        (StatusCode::BAD_REQUEST, message)
    })
}

/// Marks that a claim is carried out; dropped with it, also if its client leaves.
struct ClaimInProgress<'a>(&'a AtomicBool);

impl Drop for ClaimInProgress<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The body, of which nothing is read before the signature over its length and hash was checked.
async fn read_signed(
    identity: &ContainerIdentity,
    headers: &HeaderMap,
    body: Inbound,
) -> Result<Bytes, (StatusCode, String)> {
    let unsigned = || {
        let message = "access token validation failed: the call is not signed by the server";
        (StatusCode::UNAUTHORIZED, message.to_owned())
    };
    let length = body.size_hint().exact().ok_or_else(|| {
        (StatusCode::LENGTH_REQUIRED, "the call needs a Content-Length".to_owned())
    })?;
    if length > INIT_BODY_LIMIT {
        let message = format!("the settings have {length} bytes; the limit is {INIT_BODY_LIMIT}");
        return Err((StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let hash = text(INIT_BODY_HASH_HEADER).ok_or_else(unsigned)?;
    let mut signature = [0; Signature::BYTE_SIZE];
    let given = text(INIT_SIGNATURE_HEADER).ok_or_else(unsigned)?;
    hex::decode_to_slice(given, &mut signature).map_err(|_| unsigned())?;
    let signed = init_signing_input(&identity.instance, length, hash);
    let verified = identity.control_key.verify_strict(&signed, &Signature::from_bytes(&signature));
    verified.map_err(|_| unsigned())?;
    // The signature bounds it already; this bounds what a fault of ours could read.
    let limit = usize::try_from(INIT_BODY_LIMIT).unwrap_or(usize::MAX);
    let body = Limited::new(body, limit).collect().await.map_err(|error| {
        (StatusCode::BAD_REQUEST, format!("failed to read the settings: {error}"))
    })?;
    let body = body.to_bytes();
    if hex::encode(Sha256::digest(&body)) == hash { Ok(body) } else { Err(unsigned()) }
}

fn check(body: &InitBody) -> Result<(), String> {
    if body.timestamp.is_none() {
        // It names the call: without one a second call could not be told from the first.
        return Err("timestamp is missing".to_owned());
    }
    let tokens =
        [("accessToken", Some(&body.access_token)), ("controlToken", body.control_token.as_ref())];
    for (name, token) in tokens {
        let invalid = |text: &str| text.is_empty() || text.contains('\\');
        if token.is_some_and(|token| invalid(token.reveal())) {
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

/// Applies the claim; returns the identity's files.
fn apply(settings: &mut Settings, body: InitBody) -> Vec<(&'static str, String)> {
    settings.claimed_at = body.timestamp;
    settings.access_token = Some(body.access_token);
    settings.control_token = body.control_token;
    settings.secured = body.secured;
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
    write_files(Path::new(IDENTITY_FILES), files)
}

/// Writes files anew. In a container that is started again, user code may have put anything in their place.
fn write_files(directory: &Path, files: &[(&'static str, String)]) -> io::Result<()> {
    if !fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir()) {
        remove(directory)?;
        fs::create_dir_all(directory)?;
    }
    for (name, value) in files {
        let path = directory.join(format!(".{name}"));
        remove(&path)?;
        File::create_new(&path)?.write_all(value.as_bytes())?;
    }
    Ok(())
}

/// Removes whatever is at a path. Follows no link.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn body(json: &str) -> InitBody {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn absent_and_empty_members_change_nothing() {
        let mut settings = Settings::default();
        let bare =
            body(r#"{"accessToken":"t","timestamp":"2026-01-01T00:00:00Z","defaultUser":""}"#);
        assert_eq!(check(&bare), Ok(()));
        assert!(apply(&mut settings, bare).is_empty());
        assert_eq!(settings.default_user, "root");
        assert_eq!(settings.default_workdir, None);
        assert_eq!(settings.user_variables, BTreeMap::new());
    }

    #[test]
    fn the_systems_variables_win_over_the_users() {
        let mut settings = Settings::default();
        let whole = body(
            r#"{"accessToken":"t","envVars":{"A":"1","E2B_SANDBOX":"no"},"defaultUser":"user",
            "defaultWorkdir":"/w","sandboxID":"i1","templateID":"base","controlToken":"c",
            "timestamp":"2026-01-01T00:00:00Z"}"#,
        );
        assert_eq!(apply(&mut settings, whole).len(), 3);
        let variables = settings.variables();
        assert_eq!(variables["E2B_SANDBOX"], "true");
        assert_eq!(variables["A"], "1");
        assert!(settings.control_token.is_some());
        assert_eq!(settings.default_workdir.as_deref(), Some("/w"));
    }

    #[test]
    fn identity_is_written_whatever_is_in_its_place() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("e2b");
        let value = |text: &str| [("E2B_SANDBOX_ID", text.to_owned())];
        let file = directory.join(".E2B_SANDBOX_ID");
        let written = || fs::read_to_string(&file).unwrap();
        write_files(&directory, &value("first")).unwrap();
        assert_eq!(written(), "first");
        write_files(&directory, &value("2nd")).unwrap();
        assert_eq!(written(), "2nd");
        let victim = root.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(&victim, &file).unwrap();
        write_files(&directory, &value("3rd")).unwrap();
        assert_eq!(written(), "3rd");
        fs::remove_file(&file).unwrap();
        fs::create_dir_all(file.join("below")).unwrap();
        write_files(&directory, &value("4th")).unwrap();
        assert_eq!(written(), "4th");
        for make in [
            |path: &Path| fs::write(path, "").unwrap(),
            |path: &Path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
        ] {
            fs::remove_dir_all(&directory).unwrap();
            make(&directory);
            write_files(&directory, &value("5th")).unwrap();
            assert_eq!(written(), "5th");
        }
        assert_eq!(fs::read_to_string(victim).unwrap(), "kept");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let stamp = r#""accessToken":"t","timestamp":"2026-01-01T00:00:00Z""#;
        assert!(check(&body(r#"{"accessToken":"t"}"#)).is_err());
        assert!(serde_json::from_str::<InitBody>("{}").is_err());
        for token in ["", r"a\\b"] {
            let token =
                body(&format!(r#"{{"accessToken":"{token}","timestamp":"2026-01-01T00:00:00Z"}}"#));
            assert!(check(&token).is_err());
        }
        for member in
            [r#""envVars":{"":"x"}"#, r#""envVars":{"A=B":"x"}"#, r#""envVars":{"A":"\u0000"}"#]
        {
            assert!(check(&body(&format!("{{{stamp},{member}}}"))).is_err(), "{member}");
        }
    }
}
