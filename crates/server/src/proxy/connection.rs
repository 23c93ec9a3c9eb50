//! One client connection, and what it goes on in after an upgrade.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::forward::Proxy;
use crate::http_server::{self, Client};

/// Both ends of a connection that leaves HTTP.
pub(super) struct Upgraded {
    pub(super) downstream: OnUpgrade,
    pub(super) upstream: OnUpgrade,
}

/// An HTTP/1.1 connection is upgraded once, an HTTP/2 one never.
const UPGRADES: usize = 1;

/// Serves one connection until it ends, with all that it was upgraded to.
pub(super) async fn serve(client: Client, proxy: Arc<Proxy>, stop: CancellationToken) {
    let (sender, mut upgrades) = mpsc::channel(UPGRADES);
    let service = service_fn(move |request| {
        let (proxy, sender) = (proxy.clone(), sender.clone());
        async move { Ok::<_, Infallible>(proxy.answer(request, sender).await) }
    });
    let mut tunnels = JoinSet::new();
    {
        let mut http = pin!(http_server::serve(&client, service, stop));
        loop {
            tokio::select! {
                () = http.as_mut() => break,
                Some(upgraded) = upgrades.recv() => {
                    tunnels.spawn(upgraded.run());
                }
            }
        }
    }
    while let Some(upgraded) = upgrades.recv().await {
        tunnels.spawn(upgraded.run());
    }
    tokio::select! {
        _ = tunnels.join_all() => {}
        // One whose own half has ended is only written to, and that perhaps never.
        () = client.gone() => debug!("the client of an upgraded connection has gone"),
    }
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
