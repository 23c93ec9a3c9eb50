//! What every request passes on its way (executor 2.1): is there a sandbox to speak of, CORS, then the access
//! token, then the user, then its route.

use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONNECTION, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use sandyard_contract::connect::{Code, ConnectError};
use sandyard_contract::daemon::{INIT_PATH, TUNNEL_PATH};
use sandyard_http::{Discard, Inbound};

use super::accounts::User;
use super::body::DaemonBody;
use super::connect::{self, Procedure};
use super::server::Peer;
use super::tasks::lock;
use super::{Daemon, auth, cors, files, handshake, metrics, plain, pool, tunnel};

impl Discard for Daemon {
    fn run(&self, reading: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.connections.spawn(reading);
    }
}

/// Answers a request; every failure is an answer too.
pub(super) async fn answer(
    daemon: &Arc<Daemon>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Response<DaemonBody> {
    let owner: Arc<dyn Discard> = Arc::clone(daemon) as _;
    let request = request.map(|body| Inbound::new(body, owner));
    let unread = request.body().unread();
    let mut response = dispatch(daemon, peer, request).await;
    if unread.get() {
        // Whoever keeps connections for later has to hear that this one ends, or loses its next request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn dispatch(
    daemon: &Arc<Daemon>,
    peer: &Peer,
    request: Request<Inbound>,
) -> Response<DaemonBody> {
    if !*daemon.claimed.borrow() && !serves_the_unclaimed(&request) {
        let message =
            "this container is nobody's sandbox yet: it serves nothing before its claim\n";
        return plain::text(StatusCode::SERVICE_UNAVAILABLE, message);
    }
    if let Some(name) = auth::repeated_credential(request.headers()) {
        let message = format!("there is more than one header '{name}'");
        return plain::error(StatusCode::BAD_REQUEST, message);
    }
    // Ours, with its own token, for the server alone: none of what clients need.
    if let Some(port) = request.uri().path().strip_prefix(TUNNEL_PATH) {
        let port = port.to_owned();
        return tunnel::answer(daemon, peer, &port, request).await;
    }
    let origin = match cors::Origin::read(&request) {
        cors::Reading::Preflight(response) => return response,
        cors::Reading::Request(origin) => origin,
    };
    let mut response = authorized(daemon, peer, request).await;
    origin.mark(response.headers_mut());
    response
}

/// What a container answers that waits for its claim.
fn serves_the_unclaimed(request: &Request<Inbound>) -> bool {
    matches!(
        (request.method().as_str(), request.uri().path()),
        ("POST", INIT_PATH) | ("GET", "/health")
    )
}

async fn authorized(
    daemon: &Arc<Daemon>,
    peer: &Peer,
    request: Request<Inbound>,
) -> Response<DaemonBody> {
    let (method, path) = (request.method(), request.uri().path());
    let checked = {
        let settings = lock(&daemon.settings);
        auth::check_token(settings.access_token.as_ref(), request.headers())
    };
    match checked {
        Ok(()) => peer.prove(daemon),
        Err(_) if auth::is_open(method, path) => {}
        Err(message) => return plain::error(StatusCode::UNAUTHORIZED, message),
    }
    let named_user = match auth::basic_user(request.headers()) {
        None => None,
        Some(name) => match pool::run(move || (User::find(&name), name)).await {
            (Ok(Some(user)), _) => Some(user),
            (Ok(None), name) => {
                let error = connect::unauthenticated(&name);
                return connect::refuse_by_content_type(request.headers(), error);
            }
            (Err(error), name) => {
                let message = format!("failed to look up the user '{name}': {error}");
                let error = ConnectError::new(Code::Internal, message);
                return connect::refuse_by_content_type(request.headers(), error);
            }
        },
    };
    route(daemon, peer, named_user, request).await
}

async fn route(
    daemon: &Arc<Daemon>,
    peer: &Peer,
    named_user: Option<User>,
    request: Request<Inbound>,
) -> Response<DaemonBody> {
    let path = request.uri().path();
    if let Some(procedure) = Procedure::from_path(path) {
        return connect::answer(procedure, daemon, named_user, request).await;
    }
    match (path, request.method()) {
        ("/health", &Method::GET) => uncached(health(daemon).await),
        ("/metrics", &Method::GET) => uncached(metrics::answer(daemon).await),
        ("/envs", &Method::GET) => {
            let variables = lock(&daemon.settings).variables();
            uncached(plain::json(StatusCode::OK, &variables))
        }
        (INIT_PATH, &Method::POST) => uncached(handshake::answer(daemon, peer, request).await),
        ("/files", &Method::GET) => files::download(daemon, &request).await,
        ("/files", &Method::POST) => files::upload(daemon, request).await,
        ("/files/compose", &Method::POST) => files::compose(daemon, request).await,
        ("/health" | "/metrics" | "/envs" | "/files" | "/files/compose" | INIT_PATH, _) => {
            plain::status(StatusCode::METHOD_NOT_ALLOWED)
        }
        _ => plain::text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// A sandbox is healthy when it answers. A container that waits for its claim is of use when its code interpreter is
/// ready too, and answers then.
async fn health(daemon: &Daemon) -> Response<DaemonBody> {
    let claimed = *daemon.claimed.borrow();
    match &daemon.interpreter {
        Some(interpreter) if !claimed => match interpreter.ready().await {
            Ok(()) => plain::status(StatusCode::NO_CONTENT),
            Err(message) => plain::text(StatusCode::SERVICE_UNAVAILABLE, message),
        },
        _ => plain::status(StatusCode::NO_CONTENT),
    }
}

fn uncached(mut response: Response<DaemonBody>) -> Response<DaemonBody> {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
