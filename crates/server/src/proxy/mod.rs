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
use std::time::Duration;

use async_trait::async_trait;
use sandyard_contract::control::Secret;
use sandyard_types::SandboxId;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

pub use routes::SchedulerRoutes;

use forward::Proxy;

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

/// How long to wait before the next `accept` when the system is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves HTTP/1.1, upgrades and cleartext HTTP/2 until `stop` is cancelled, then waits for what is under
/// way. A stream may never end by itself: the caller limits that wait by dropping the future, which
/// closes every connection.
pub async fn serve(listener: TcpListener, routes: Arc<dyn Routes>, stop: CancellationToken) {
    let proxy = Arc::new(Proxy::new(routes));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let stop = stop.clone();
                    connections.spawn(connection::serve(stream, proxy.clone(), stop));
                }
                Err(error) => {
                    warn!(%error, "the proxy cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a connection of the proxy panicked");
    }
}
