//! Connections to sandboxes: straight to the daemon, or through its tunnel to any other port.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::future::BoxFuture;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::uri::{InvalidUriParts, Scheme};
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use sandyard_contract::daemon::{CONTROL_TOKEN_HEADER, DAEMON_PORT, TUNNEL_PATH, TUNNEL_PROTOCOL};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower::Service;

use super::target::ProxyTarget;
use super::{Route, Routes};

/// The address of a container answers at once or never.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// The daemon dials a port of its own container, which answers at once or never.
const TUNNEL_LIMIT: Duration = Duration::from_secs(30);

/// Waits before the second to fifth try of a port that nothing listens on: services start late.
const BACK_OFF: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(400),
];

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxConnectError {
    /// The sandbox is unknown, or its daemon cannot be reached: the container has just ended.
    #[error("the sandbox is gone: {0}")]
    Gone(String),
    /// The daemon runs, and nothing listens on the port.
    #[error("nothing listens on port {0}")]
    PortClosed(u16),
    /// The daemon refused the tunnel itself.
    #[error("{0}")]
    Refused(String),
}

fn gone(error: impl std::fmt::Display) -> SandboxConnectError {
    SandboxConnectError::Gone(error.to_string())
}

/// The URI under which the pool of connections knows a target: `http://<id>:<port>/...`. Ids are never
/// used twice, so no connection to a dead sandbox can serve another.
pub(super) fn pool_uri(target: &ProxyTarget, uri: &Uri) -> Result<Uri, InvalidUriParts> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    // An id and a port are letters, digits and a colon.
    parts.authority = format!("{}:{}", target.id, target.port).parse().ok();
    parts.path_and_query =
        uri.path_and_query().cloned().or_else(|| Some(http::uri::PathAndQuery::from_static("/")));
    Uri::from_parts(parts)
}

/// The reverse of [`pool_uri`].
fn target_from(uri: &Uri) -> Option<ProxyTarget> {
    Some(ProxyTarget { id: uri.host()?.parse().ok()?, port: uri.port_u16()? })
}

/// Makes connections for the pool.
#[derive(Clone)]
pub(super) struct SandboxConnector {
    pub(super) routes: Arc<dyn Routes>,
}

impl Service<Uri> for SandboxConnector {
    type Response = TokioIo<SandboxConnection>;
    type Error = SandboxConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let routes = self.routes.clone();
        Box::pin(async move {
            let target = target_from(&uri).ok_or_else(|| gone("no such address"))?;
            connect(routes.as_ref(), &target).await.map(TokioIo::new)
        })
    }
}

pub(super) async fn connect(
    routes: &dyn Routes,
    target: &ProxyTarget,
) -> Result<SandboxConnection, SandboxConnectError> {
    let mut waits = BACK_OFF.iter();
    loop {
        let route = routes.route(&target.id).ok_or_else(|| gone("no such sandbox"))?;
        if target.port == DAEMON_PORT {
            let stream = dial(&route).await.map_err(gone)?;
            return Ok(SandboxConnection::new(stream, Bytes::new()));
        }
        let made = tokio::time::timeout(TUNNEL_LIMIT, tunnel(&route, target.port)).await;
        let late =
            || SandboxConnectError::Refused(format!("no answer to a tunnel in {TUNNEL_LIMIT:?}"));
        match made.unwrap_or_else(|_| Err(late())) {
            Err(SandboxConnectError::PortClosed(port)) => match waits.next() {
                Some(wait) => tokio::time::sleep(*wait).await,
                None => return Err(SandboxConnectError::PortClosed(port)),
            },
            made => return made,
        }
    }
}

/// Whether the sandbox's daemon takes connections.
pub(super) async fn daemon_answers(routes: &dyn Routes, target: &ProxyTarget) -> bool {
    match routes.route(&target.id) {
        Some(route) => dial(&route).await.is_ok(),
        None => false,
    }
}

async fn dial(route: &Route) -> io::Result<TcpStream> {
    let address = SocketAddr::new(route.address, DAEMON_PORT);
    let stream = tokio::time::timeout(DIAL_LIMIT, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    // A container can vanish without a word; a stream that waits for it must notice.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

async fn tunnel(route: &Route, port: u16) -> Result<SandboxConnection, SandboxConnectError> {
    let stream = dial(route).await.map_err(gone)?;
    let (mut sender, mut connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
    let request = Request::get(format!("{TUNNEL_PATH}{port}"))
        .header(HOST, "sandbox")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, TUNNEL_PROTOCOL)
        .header(CONTROL_TOKEN_HEADER, route.control_token.reveal())
        .body(Empty::<Bytes>::new())
        .map_err(|error| SandboxConnectError::Refused(error.to_string()))?;

    // The connection and its one request are driven here together. Then the connection is taken apart.
    let mut over = false;
    let response = {
        let mut response = pin!(sender.send_request(request));
        poll_fn(|cx| {
            // Its failure is told to the request.
            if !over && connection.poll_without_shutdown(cx).is_ready() {
                over = true;
            }
            response.as_mut().poll(cx)
        })
        .await
        .map_err(gone)?
    };
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {}
        StatusCode::SERVICE_UNAVAILABLE => return Err(SandboxConnectError::PortClosed(port)),
        status => {
            let reason = format!("it answered the tunnel to port {port} with {status}");
            return Err(SandboxConnectError::Refused(reason));
        }
    }
    if !over {
        poll_fn(|cx| connection.poll_without_shutdown(cx)).await.map_err(gone)?;
    }
    let parts = connection.into_parts();
    Ok(SandboxConnection::new(parts.io.into_inner(), parts.read_buf))
}

/// A connection to a port of a sandbox.
pub(super) struct SandboxConnection {
    /// What the service said before the tunnel's own answer was read.
    early: Bytes,
    stream: TcpStream,
}

impl SandboxConnection {
    fn new(stream: TcpStream, early: Bytes) -> Self {
        Self { early, stream }
    }
}

impl Connection for SandboxConnection {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for SandboxConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let length = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early[..length]);
            self.early.advance(length);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SandboxConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_tells_sandboxes_and_ports_apart() {
        let target = ProxyTarget { id: "iabc".parse().expect("valid"), port: 8000 };
        let asked: Uri = "/a%2Fb?x=1".parse().expect("uri");
        let uri = pool_uri(&target, &asked).expect("uri");
        assert_eq!(uri.to_string(), "http://iabc:8000/a%2Fb?x=1");
        assert_eq!(target_from(&uri), Some(target));
    }
}
