//! The sandbox proxy (control-plane 5.3-5.8): from a host name or routing headers to a port of a sandbox.
//!
//! Port 49983 is the daemon itself. Every other port is reached through the daemon's tunnel, so that a
//! service on the sandbox's loopback address works and a closed port is known to be closed
//! (executor 9.3 (b)). Bodies pass in both directions as they come, without limit in size or time.

mod answers;
mod connect;
mod connection;
mod forward;
mod headers;
mod reserved;
mod routes;
mod signed;
mod target;
mod unframed;

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use sandyard_contract::control::Secret;
use sandyard_types::SandboxId;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use routes::SchedulerRoutes;

use forward::Proxy;

use crate::http_server;

/// The way to a sandbox.
#[derive(Clone, Debug)]
pub struct Route {
    /// Address of its container.
    pub address: IpAddr,
    /// What the daemon's control routes demand.
    pub control_token: Secret,
}

/// Knows the way to every sandbox that takes requests.
#[async_trait]
pub trait Routes: Send + Sync + 'static {
    /// The way to a sandbox; `None` if it is unknown, ended or ending.
    fn route(&self, id: &SandboxId) -> Option<Route>;

    /// The access tokens of all sandboxes that have one: a signed URL without host or headers can only be
    /// told by its signature (control-plane 5.4).
    async fn secure_sandboxes(&self) -> Vec<(SandboxId, Secret)>;
}

/// Serves HTTP/1.1, upgrades and cleartext HTTP/2 until `stop` is cancelled, then waits for what is under
/// way. A stream may never end by itself: the caller limits that wait by dropping the future, which
/// closes every connection.
pub async fn serve(listener: TcpListener, routes: Arc<dyn Routes>, stop: CancellationToken) {
    let proxy = Arc::new(Proxy::new(routes));
    let serve = |client| connection::serve(client, proxy.clone(), stop.clone());
    http_server::accept(listener, stop.clone(), serve).await;
}
