//! The listener and its connections (executor 2.1).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{Shutdown, shutdown};
use sandyard_http::{MAX_HEADERS, Socket};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::{Daemon, log, router};

/// How long a connection without a request stays, longer than any proxy in front keeps it.
const IDLE: Duration = Duration::from_secs(640);

/// How long to wait before accepting again when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the address and listens.
pub(super) fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    bind().with_context(|| format!("failed to listen on {address}"))
}

/// Takes no connection any more, and resets those that wait to be taken. The port stays taken until the
/// listener is dropped: nobody else in the sandbox answers in the daemon's place meanwhile.
pub(super) fn refuse(listener: &TcpListener) -> io::Result<()> {
    // With it, others may share the port of a socket that no longer listens.
    set_socket_reuseaddr(listener, false)?;
    Ok(shutdown(listener, Shutdown::Read)?)
}

/// Serves connections; returns only if the listener is broken.
pub(super) async fn accept(listener: &TcpListener, daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let daemon = Arc::clone(daemon);
                let owner = Arc::clone(&daemon);
                owner.connections.spawn(connection(stream, daemon));
            }
            Err(error) => match error.raw_os_error() {
                // The client left before we came to it.
                Some(libc::ECONNABORTED) => {}
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    log!("failed to accept a connection, waiting: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                _ => return Err(error).context("failed to accept connections"),
            },
        }
    }
}

/// Serves one connection. A request that has arrived is carried out also if its client leaves, for nothing
/// tells the client how far it got. Only a stream of events ends with its client, and that at its FIN,
/// without anything to send (executor 2.7).
async fn connection(stream: TcpStream, daemon: Arc<Daemon>) {
    if let Err(error) = stream.set_nodelay(true) {
        // The client may have left already; then serving it says so too.
        log!("failed to turn off delays of a connection: {error}");
    }
    let socket = Socket::new(stream);
    let follows_events = watch::Sender::new(false);
    let service = service_fn(|request| {
        follows_events.send_replace(false);
        let daemon = &daemon;
        let follows_events = &follows_events;
        async move {
            let response = router::answer(daemon, request).await;
            follows_events.send_replace(response.body().follows_events());
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_headers(MAX_HEADERS)
        // Else a client's end drops the request that came before it.
        .half_close(true)
        .serve_connection(TokioIo::new(socket.stream()), service)
        .with_upgrades();
    let unheard = async {
        socket.closed_its_side().await;
        // An error is the sender gone, which this function holds.
        drop(follows_events.subscribe().wait_for(|follows| *follows).await);
    };
    tokio::select! {
        biased;
        // Errors are the client's: it left, or it speaks no HTTP, and was answered as far as possible.
        _ = served => {}
        () = unheard => {}
    }
}
