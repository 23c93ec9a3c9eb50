//! One client connection, its requests and its background tasks.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sandyard_http::Discard;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Port;
use super::answers::ProxyBody;
use super::forward::Proxy;
use super::http2::Http2Services;
use crate::http_server::{self, Client, ClientTransport, requested_host};

/// Takes the background tasks of a connection, which outlive the request that starts them: upgraded
/// connections, and connections to services that the next request can use.
pub(super) type BackgroundTasks = mpsc::Sender<BoxFuture<'static, ()>>;

/// Reads what is left of a request in a background task, as long as the connection exists.
pub(super) struct BackgroundDiscard(pub(super) mpsc::WeakSender<BoxFuture<'static, ()>>);

impl Discard for BackgroundDiscard {
    fn run(&self, reading: BoxFuture<'static, ()>) {
        // Without the connection there is nothing to be read. On HTTP/1.1 the requests come one by one, so that
        // there is room.
        if let Some(background) = self.0.upgrade()
            && background.try_send(reading).is_err()
        {
            debug!("what is left of a request is not read");
        }
    }
}

/// Background tasks that may wait for their start. The connection starts each at once.
const WAITING: usize = 1;

/// The proxy's listener, which all its connections share.
pub(super) struct ProxyListener {
    pub(super) port: Port,
    pub(super) proxy: Proxy,
}

impl ProxyListener {
    /// Whether a request is for the API. A host that cannot be read in one way is the proxy's to refuse.
    fn is_for_api<B>(&self, request: &Request<B>) -> bool {
        match requested_host(request) {
            Ok(Some(host)) => host.host().eq_ignore_ascii_case(&self.port.api_host),
            Ok(None) | Err(_) => false,
        }
    }
}

/// What the requests of one connection share.
pub(super) struct ConnectionContext {
    pub(super) background: BackgroundTasks,
    pub(super) services: Http2Services,
    /// Whether the present answer is an execution's, which ends at its client's FIN (code-interpreter 5).
    pub(super) follows_execution: watch::Sender<bool>,
    /// Where the client connects from.
    pub(super) source: Option<IpAddr>,
}

/// Serves one connection until it ends, with all that it was upgraded to.
pub(super) async fn serve(client: Client, listener: Arc<ProxyListener>, stop: CancellationToken) {
    let begun = tokio::select! {
        // Nothing is under way yet.
        () = stop.cancelled() => return,
        begun = ClientTransport::either(&client, &listener.port.tls) => begun,
    };
    let transport = match begun {
        Ok(Some(transport)) => transport,
        Ok(None) => return,
        Err(error) => {
            debug!(%error, "a connection was given up before its first request");
            return;
        }
    };
    let (background, mut started) = mpsc::channel(WAITING);
    let context = Arc::new(ConnectionContext {
        background,
        services: Http2Services::default(),
        follows_execution: watch::Sender::new(false),
        source: client.source(),
    });
    let follows_execution = context.follows_execution.subscribe();
    let service = {
        let client = client.clone();
        service_fn(move |request| {
            let (client, listener, context) = (client.clone(), listener.clone(), context.clone());
            async move { Ok::<_, Infallible>(answer(request, &client, &listener, &context).await) }
        })
    };
    let mut tasks = JoinSet::new();
    {
        let mut http = pin!(http_server::serve(&client, transport, service, stop));
        let mut unheard = pin!(client.unheard(follows_execution));
        loop {
            tokio::select! {
                // What has arrived is taken up before its client's end.
                biased;
                () = http.as_mut() => break,
                () = unheard.as_mut() => {
                    debug!("the client of an execution has gone");
                    break;
                }
                Some(task) = started.recv() => {
                    tasks.spawn(task);
                }
            }
        }
    }
    while let Some(task) = started.recv().await {
        tasks.spawn(task);
    }
    tokio::select! {
        _ = tasks.join_all() => {}
        // One whose own half has ended is only written to, and that perhaps never.
        () = client.gone() => debug!("the client of an upgraded connection has gone"),
    }
}

async fn answer(
    request: Request<Incoming>,
    client: &Client,
    listener: &ProxyListener,
    context: &ConnectionContext,
) -> Response<Either<ProxyBody, Body>> {
    if listener.is_for_api(&request) {
        return listener.port.api.answer(request, client).await.map(Either::Right);
    }
    listener.proxy.answer(request, context).await.map(Either::Left)
}

/// Copies both ways until both ends of a connection that left HTTP have closed, each half by itself.
pub(super) fn upgraded(downstream: OnUpgrade, upstream: OnUpgrade) -> BoxFuture<'static, ()> {
    async move {
        let (downstream, upstream) = match tokio::try_join!(downstream, upstream) {
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
    .boxed()
}
