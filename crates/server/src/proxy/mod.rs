//! The sandbox proxy (control-plane 5.3-5.8): from a host name or routing headers to a port of a sandbox.
//!
//! The port speaks plain HTTP and TLS, and serves the API too, under `api.<domain>`: so that one domain is all
//! that a client has to be told (5.4, setup B).
//!
//! Port 49983 is the daemon itself. Every other port is reached through the daemon's tunnel, so that a
//! service on the sandbox's loopback address works and a closed port is known to be closed
//! (executor 9.3 (b)). Bodies pass in both directions as they come, without limit in size or time.

mod access;
mod answers;
mod connect;
mod connection;
mod forward;
mod headers;
mod http2;
mod reserved;
mod routes;
mod signed;
mod target;
mod unframed;
mod wake;

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use sandyard_http::Quota;
use sandyard_types::{HostMask, SandboxId, Secret};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use routes::SchedulerRoutes;

use connection::ProxyListener;
use forward::Proxy;

use crate::{api, http_server};

/// The way to a sandbox.
#[derive(Clone, Debug)]
pub struct Route {
    /// Address of its container.
    pub address: IpAddr,
    /// What the daemon's control routes demand.
    pub control_token: Secret,
    /// The daemon's access token, where the sandbox's client asked for a sandbox without one: the daemon demands it
    /// all the same, and the proxy adds it for everybody but sandboxes.
    pub access_token: Option<Secret>,
    /// What other ports than the daemon's demand of clients, if they are not public.
    pub traffic_token: Option<Secret>,
    /// What other ports than the daemon's see as `Host`, if not what the client asked for.
    pub host_mask: Option<HostMask>,
}

/// A paused sandbox that traffic may wake, and what that traffic must show.
#[derive(Clone, Debug)]
pub struct Sleeping {
    /// What its daemon demands, if its client has to show it.
    pub access_token: Option<Secret>,
    /// What other ports than the daemon's demand of clients, if they are not public.
    pub traffic_token: Option<Secret>,
}

/// Why a sandbox was not woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotWoken {
    /// It may not be woken any more, or is gone.
    Gone,
    /// Its team has as many running as it may.
    TooMany(String),
    /// It was tried, and failed.
    Failed(String),
}

/// What the proxy's port serves.
pub struct Port {
    /// The ways to sandboxes.
    pub routes: Arc<dyn Routes>,
    /// The API.
    pub api: api::Service,
    /// The host whose requests are for the API.
    pub api_host: String,
    /// Shakes hands with clients that speak TLS.
    pub tls: TlsAcceptor,
}

/// Knows the way to every sandbox that takes requests.
#[async_trait]
pub trait Routes: Send + Sync + 'static {
    /// The way to a sandbox; `None` if it is unknown, paused, ended or ending.
    fn route(&self, id: &SandboxId) -> Option<Route>;

    /// What traffic must show to wake a paused sandbox; `None` for one that it does not wake (control-plane 5.7).
    fn sleeping(&self, id: &SandboxId) -> Option<Sleeping>;

    /// Wakes a sandbox. Returns when there is a way to it.
    async fn wake(&self, id: &SandboxId) -> Result<(), NotWoken>;

    /// Whether a sandbox, of any team, has this address.
    fn is_sandbox(&self, address: IpAddr) -> bool;

    /// The access tokens of all sandboxes that have one: a signed URL without host or headers can only be
    /// told by its signature (control-plane 5.4).
    fn secure_sandboxes(&self) -> Vec<(SandboxId, Secret)>;
}

/// Serves HTTP/1.1, upgrades and HTTP/2, with and without TLS, until `stop` is cancelled, then waits for what is under
/// way. A stream may never end by itself: the caller limits that wait by dropping the future, which
/// closes every connection.
pub async fn serve(listener: TcpListener, quota: Quota, port: Port, stop: CancellationToken) {
    let proxy = Proxy::new(port.routes.clone());
    let proxy_listener = Arc::new(ProxyListener { port, proxy });
    let serve = |client| connection::serve(client, proxy_listener.clone(), stop.clone());
    http_server::accept(listener, quota, stop.clone(), serve).await;
}
