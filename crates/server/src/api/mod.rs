//! The REST API (control-plane 0-4): handlers parse, call the scheduler and answer.

mod auth;
mod body;
mod convert;
mod cors;
mod create;
mod error;
mod host;
mod idempotency;
mod lifecycle;
mod list;
mod metadata_filter;
mod network;
mod not_built;
mod page_token;
mod path;
mod refusals;
mod sandbox;
mod snapshots;
mod trace;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware::from_fn;
use axum::routing::{delete, get, post};
use futures::future::BoxFuture;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use sandyard_core::Scheduler;
use sandyard_http::{Discard, Inbound, Quota};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use idempotency::Idempotency;

use crate::domain::Domain;
use crate::http_server::{self, Client, ClientTransport};
use crate::tokens::Tokens;

/// What the API works with.
#[derive(Clone)]
pub struct App {
    /// Decides what runs.
    pub scheduler: Scheduler,
    /// Makes the tokens of sandboxes.
    pub tokens: Arc<dyn Tokens>,
    /// What sandbox hosts end in.
    pub domain: Domain,
}

/// What all handlers share.
struct Api {
    app: App,
    idempotency: Arc<Idempotency>,
}

/// State of the router.
type SharedApi = Arc<Api>;

/// The API, for more than one listener. All clones are one.
#[derive(Clone)]
pub struct Service {
    router: Router,
}

impl Service {
    /// The API of this server.
    pub fn new(app: App) -> Self {
        Self { router: router(app) }
    }

    /// Answers a request that came from `client`.
    pub(crate) async fn answer(
        &self,
        mut request: Request<Incoming>,
        client: &Client,
    ) -> Response<Body> {
        // For those who must know whether anybody still waits for the answer.
        request.extensions_mut().insert(client.clone());
        let unread = Arc::new(UnreadRest::default());
        let request = match request.version() {
            Version::HTTP_2 => request.map(Inbound::of_stream),
            _ => request.map(|body| Inbound::new(body, unread.clone())),
        };
        let Ok(mut answer) = self.router.clone().call(request.map(Body::new)).await;
        if let Some(reading) = unread.take()
            && timeout(UNREAD_LIMIT, reading).await.is_err()
        {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

/// For how long what is left of a request is read before an answer that did not need it: a refusal for want of a key. A
/// client that has sent all can use its connection again; one that has not is told that it is closed, or its next
/// request would fail.
const UNREAD_LIMIT: Duration = Duration::from_secs(1);

/// Reading what is left of a body, kept until the request is answered.
#[derive(Default)]
struct UnreadRest(Mutex<Option<BoxFuture<'static, ()>>>);

impl UnreadRest {
    fn take(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Discard for UnreadRest {
    fn run(&self, reading: BoxFuture<'static, ()>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
    }
}

/// Serves the API until `stop` is cancelled, then waits for what is under way.
pub async fn serve(listener: TcpListener, quota: Quota, service: Service, stop: CancellationToken) {
    let serve = |client| serve_client(client, service.clone(), stop.clone());
    http_server::accept(listener, quota, stop.clone(), serve).await;
}

async fn serve_client(client: Client, service: Service, stop: CancellationToken) {
    let caller = client.clone();
    let answer = service_fn(move |request| {
        let (service, caller) = (service.clone(), caller.clone());
        async move { Ok::<_, Infallible>(service.answer(request, &caller).await) }
    });
    http_server::serve(&client, ClientTransport::plain(&client), answer, stop).await;
}

/// The whole API.
fn router(app: App) -> Router {
    let api: SharedApi = Arc::new(Api { app, idempotency: Arc::default() });
    let built = Router::new()
        .route("/health", get(health))
        .route("/sandboxes", get(list::running).post(create::v1))
        .route("/v2/sandboxes", get(list::page).post(create::v2))
        .route("/sandboxes/{sandboxID}", get(sandbox::detail).delete(sandbox::kill))
        .route("/sandboxes/{sandboxID}/timeout", post(sandbox::set_timeout))
        .route("/sandboxes/{sandboxID}/refreshes", post(sandbox::refresh))
        .route("/sandboxes/{sandboxID}/pause", post(lifecycle::pause))
        .route("/sandboxes/{sandboxID}/connect", post(lifecycle::connect_v1))
        .route("/v2/sandboxes/{sandboxID}/connect", post(lifecycle::connect_v2))
        .route("/sandboxes/{sandboxID}/resume", post(lifecycle::resume))
        .route("/sandboxes/{sandboxID}/fork", post(lifecycle::fork))
        .route("/sandboxes/{sandboxID}/snapshots", post(snapshots::take))
        .route("/snapshots", get(snapshots::list))
        .route("/templates/{templateID}", delete(snapshots::delete));
    not_built::add_to(built)
        .fallback(not_built::unknown)
        .method_not_allowed_fallback(not_built::unknown)
        .layer(from_fn(trace::trace))
        .layer(from_fn(cors::cors))
        .layer(from_fn(host::check))
        .with_state(api)
}

/// `GET /health`: open to everybody, and the text is fixed (control-plane 3.12).
async fn health() -> &'static str {
    "Health check successful"
}
