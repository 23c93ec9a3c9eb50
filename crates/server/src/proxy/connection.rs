//! One client connection, and what it goes on in after an upgrade.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::forward::Proxy;

/// Both ends of a connection that leaves HTTP.
pub(super) struct Upgraded {
    pub(super) downstream: OnUpgrade,
    pub(super) upstream: OnUpgrade,
}

/// An HTTP/1.1 connection is upgraded once, an HTTP/2 one never.
const UPGRADES: usize = 1;

/// Serves one connection until it ends, with all that it was upgraded to.
pub(super) async fn serve(stream: TcpStream, proxy: Arc<Proxy>, stop: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "a connection was gone before it began");
        return;
    }
    let (sender, mut upgrades) = mpsc::channel(UPGRADES);
    let service = service_fn(move |request| {
        let (proxy, sender) = (proxy.clone(), sender.clone());
        async move { Ok::<_, Infallible>(proxy.answer(request, sender).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut tunnels = JoinSet::new();
    {
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        // A client that leaves and a sandbox that dies look like this.
                        debug!(%error, "a connection broke");
                    }
                    break;
                }
                Some(upgraded) = upgrades.recv() => {
                    tunnels.spawn(upgraded.run());
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
    while let Some(upgraded) = upgrades.recv().await {
        tunnels.spawn(upgraded.run());
    }
    tunnels.join_all().await;
}

impl Upgraded {
    /// Copies both ways until both ends have closed, each half by itself.
    async fn run(self) {
        let (downstream, upstream) = match tokio::try_join!(self.downstream, self.upstream) {
            Ok(both) => both,
            Err(error) => {
                debug!(%error, "an upgrade did not happen");
                return;
            }
        };
        let mut downstream = TokioIo::new(downstream);
        let mut upstream = TokioIo::new(upstream);
        if let Err(error) = tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await {
            debug!(%error, "an upgraded connection broke");
        }
    }
}
