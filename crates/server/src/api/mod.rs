//! The REST API (control-plane 0-4): handlers parse, call the scheduler and answer.

mod auth;
mod body;
mod convert;
mod cors;
mod create;
mod error;
mod idempotency;
mod list;
mod metadata_filter;
mod not_built;
mod page_token;
mod path;
mod refusals;
mod sandbox;
mod trace;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::{get, post};
use sandyard_contract::control::Secret;
use sandyard_core::Scheduler;
use sandyard_types::SandboxId;

pub use auth::hash_api_key;

use idempotency::Idempotency;

/// Makes the tokens of sandboxes. The same sandbox has the same tokens for its whole life, over restarts
/// of the server (control-plane 4.1).
pub trait Tokens: Send + Sync + 'static {
    /// What the in-sandbox API demands of clients (executor 3.2). Safe in URLs and headers.
    fn envd_access_token(&self, id: &SandboxId) -> Secret;
    /// What the daemon's control routes demand of the server
    /// ([`sandyard_contract::daemon::CONTROL_TOKEN_HEADER`]).
    fn control_token(&self, id: &SandboxId) -> Secret;
}

/// What the API works with.
#[derive(Clone)]
pub struct App {
    /// Decides what runs.
    pub scheduler: Scheduler,
    /// Makes the tokens of sandboxes.
    pub tokens: Arc<dyn Tokens>,
    /// What sandbox hosts end in, with a port where one is needed: `sbx.localhost:3002`.
    pub domain: String,
}

/// What all handlers share.
struct Api {
    app: App,
    idempotency: Arc<Idempotency>,
}

/// State of the router.
type Shared = Arc<Api>;

/// The whole API, ready to be served.
pub fn router(app: App) -> Router {
    let api: Shared = Arc::new(Api { app, idempotency: Arc::default() });
    let built = Router::new()
        .route("/health", get(health))
        .route("/sandboxes", get(list::running).post(create::v1))
        .route("/v2/sandboxes", get(list::page).post(create::v2))
        .route("/sandboxes/{sandboxID}", get(sandbox::detail).delete(sandbox::kill))
        .route("/sandboxes/{sandboxID}/timeout", post(sandbox::set_timeout))
        .route("/sandboxes/{sandboxID}/refreshes", post(sandbox::refresh))
        .route("/sandboxes/{sandboxID}/connect", post(sandbox::connect_v1))
        .route("/v2/sandboxes/{sandboxID}/connect", post(sandbox::connect_v2));
    not_built::add_to(built)
        .fallback(not_built::unknown)
        .method_not_allowed_fallback(not_built::unknown)
        .layer(from_fn(trace::trace))
        .layer(from_fn(cors::cors))
        .with_state(api)
}

/// `GET /health`: open to everybody, and the text is fixed (control-plane 3.12).
async fn health() -> &'static str {
    "Health check successful"
}
