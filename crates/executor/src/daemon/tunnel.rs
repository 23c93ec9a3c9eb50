//! Tunnels to ports inside the sandbox, for the server's proxy (executor 9.3 (b)): nothing has to be
//! scanned or forwarded, and a closed port is known at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sandyard_contract::daemon::{CONTROL_TOKEN_HEADER, TUNNEL_PROTOCOL};
use sandyard_http::Inbound;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::body::DaemonBody;
use super::server::Peer;
use super::tasks::lock;
use super::{Daemon, auth, plain};

/// A loopback address answers at once, unless its listener's queue is full.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

const BUFFER_BYTES: usize = 64 << 10;

/// Answers a request for a tunnel to `port`.
pub(super) async fn answer(
    daemon: &Arc<Daemon>,
    peer: &Peer,
    port: &str,
    mut request: Request<Inbound>,
) -> Response<DaemonBody> {
    let headers = request.headers();
    let given = headers.get(CONTROL_TOKEN_HEADER).map_or(&b""[..], HeaderValue::as_bytes);
    let allowed = lock(&daemon.settings)
        .control_token
        .as_ref()
        .is_some_and(|token| auth::equals(token, given));
    if !allowed {
        return plain::text(StatusCode::UNAUTHORIZED, "wrong or missing control token\n");
    }
    peer.prove(daemon);
    if request.method() != Method::GET {
        return plain::status(StatusCode::METHOD_NOT_ALLOWED);
    }
    if headers.get(UPGRADE).is_none_or(|name| name.as_bytes() != TUNNEL_PROTOCOL.as_bytes()) {
        let message = format!("a tunnel needs 'Upgrade: {TUNNEL_PROTOCOL}'\n");
        return plain::text(StatusCode::UPGRADE_REQUIRED, message);
    }
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port != 0) else {
        return plain::text(StatusCode::BAD_REQUEST, format!("'{port}' is no port\n"));
    };
    let mut inner = match dial(port).await {
        Ok(inner) => inner,
        Err(error) => {
            let message = format!("port {port} is not open: {error}\n");
            return plain::text(StatusCode::SERVICE_UNAVAILABLE, message);
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    daemon.connections.spawn(async move {
        // Either side may break off at any moment; that ends both, and there is nobody to tell.
        if let Ok(outer) = upgrade.await {
            let mut outer = TokioIo::new(outer);
            drop(
                tokio::io::copy_bidirectional_with_sizes(
                    &mut outer,
                    &mut inner,
                    BUFFER_BYTES,
                    BUFFER_BYTES,
                )
                .await,
            );
        }
    });
    let mut response = plain::status(StatusCode::SWITCHING_PROTOCOLS);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(TUNNEL_PROTOCOL));
    response
}

async fn dial(port: u16) -> io::Result<TcpStream> {
    let dial = |address: IpAddr| async move {
        let stream = timeout(DIAL_LIMIT, TcpStream::connect((address, port))).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    match dial(Ipv4Addr::LOCALHOST.into()).await {
        Ok(stream) => Ok(stream),
        Err(first) => {
            let second: io::Result<TcpStream> = dial(Ipv6Addr::LOCALHOST.into()).await;
            second.map_err(|_: io::Error| first)
        }
    }
}
