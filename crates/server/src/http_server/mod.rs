//! What the two HTTP ports share: taking connections, clients that leave, and whom a request is for.

mod client;
mod host;
mod transport;

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use sandyard_http::{Accepted, MAX_HEADERS, Quota};
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

pub(crate) use client::Client;
pub(crate) use host::{BadHost, requested_host};
pub(crate) use transport::ClientTransport;

/// How long a client may take for a request's head, from the end of the one before on: more than the SDKs keep
/// idle connections (300 s) and than E2B's own idle limit (600 s; control-plane 5.1, 5.5).
const IDLE: Duration = Duration::from_secs(620);

/// Requests at once on one HTTP/2 connection. A client keeps all its running commands and watched directories
/// on one, and the JavaScript SDK allows itself this many (control-plane 5.1).
const MAX_STREAMS: u32 = 1000;

/// [`MAX_HEADERS`] for HTTP/2, which counts 32 bytes for each beside its name and value.
const MAX_HEADER_LIST: u32 = 64 << 10;

/// Takes connections until `stop` is cancelled, then waits for what is under way. A stream may never end
/// by itself: the caller limits that wait by dropping the future, which closes every connection.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    quota: Quota,
    stop: CancellationToken,
    serve: impl Fn(Client) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let report = |error: &_| warn!(%error, "cannot accept a connection");
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            accepted = sandyard_http::accept(&listener, &quota, report) => {
                let Accepted { stream, source, slot } = accepted;
                match Client::new(stream, source) {
                    Ok(client) => {
                        let served = serve(client);
                        connections.spawn(async move {
                            served.await;
                            drop(slot);
                        });
                    }
                    Err(error) => debug!(%error, "a connection was gone before it began"),
                }
            }
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
        error!(%error, "a connection panicked");
    }
}

/// Serves HTTP/1.1, upgrades and HTTP/2 on one connection until it ends or its client has gone:
/// what its requests wait for is then dropped.
pub(crate) async fn serve<S, B>(
    client: &Client,
    transport: ClientTransport,
    service: S,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send + 'static>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Who has closed only its own side still gets its answer. The price: the library does not look at the
    // connection any more while a request is under way, so we do.
    builder
        .http1()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_headers(MAX_HEADERS);
    builder.http2().max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEADER_LIST);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(transport), service);
    let mut connection = pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            // What has arrived is taken up before its client's end.
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    // A client that leaves and a sandbox that dies look like this.
                    debug!(%error, "a connection broke");
                }
                return;
            }
            () = client.gone() => {
                debug!("the client has gone");
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::Ipv4Addr;

    use bytes::Bytes;
    use http_body_util::Empty;
    use hyper::service::service_fn;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpStream;

    use super::*;

    /// control-plane 5.1 and 5.5: idle connections outlast the clients' 300 s and the original's 600 s.
    const _: () = assert!(IDLE.as_secs() > 600);

    /// Time jumps to the limit, because nothing else is there to be waited for.
    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_come_is_not_waited_for_for_ever() -> anyhow::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        for said in ["GET / HTTP/1.1\r\nHo", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let mut slow = TcpStream::connect(listener.local_addr()?).await?;
            slow.write_all(said.as_bytes()).await?;
            let client = Client::new(listener.accept().await?.0, None)?;
            let begun = tokio::time::Instant::now();
            let service =
                service_fn(async |_| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())));
            serve(&client, ClientTransport::plain(&client), service, CancellationToken::new())
                .await;
            assert!(begun.elapsed() >= IDLE, "{said}");
        }
        Ok(())
    }
}
