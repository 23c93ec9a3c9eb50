//! The listener and its connections.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sandyard_http::{Accepted, MAX_HEADERS, Quota, Socket, accept};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::body::InterpreterBody;
use super::routes;
use crate::context::Contexts;
use crate::tasks::InterpreterTasks;

/// How long a connection without a request stays (code-interpreter 1: keep-alive 640 s).
const IDLE: Duration = Duration::from_secs(640);
/// Connections at once; clients come through one proxy, and each execution has its own.
const CONNECTIONS: usize = 1024;

/// Binds the address and listens.
///
/// # Errors
/// If the system says no.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Serves connections for ever.
pub async fn serve(
    listener: &TcpListener,
    contexts: &Arc<Contexts>,
    claim: &watch::Receiver<Option<crate::DaemonClaim>>,
) -> Infallible {
    let (quota, connections) = (Quota::of_all(CONNECTIONS), InterpreterTasks::default());
    loop {
        let report = |error: &io::Error| crate::log!("failed to accept a connection: {error}");
        let Accepted { stream, slot, .. } = accept(listener, &quota, report).await;
        let (contexts, claim) = (Arc::clone(contexts), claim.clone());
        connections.spawn(async move {
            connection(stream, &contexts, &claim).await;
            drop(slot);
        });
    }
}

/// Serves one connection. A request is carried out also if its client closes its own side, but for an execution: it
/// means nothing without a listener, and ends at the client's FIN (code-interpreter 5, 11).
async fn connection(
    stream: TcpStream,
    contexts: &Arc<Contexts>,
    claim: &watch::Receiver<Option<crate::DaemonClaim>>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        // The client may have left already; then serving it says so too.
        crate::log!("failed to turn off delays of a connection: {error}");
    }
    let socket = Socket::new(stream);
    let executes = watch::Sender::new(false);
    let service = service_fn(|request| {
        executes.send_replace(false);
        let executes = &executes;
        async move {
            let response = routes::answer(contexts, claim, request).await;
            executes.send_replace(matches!(response.body(), InterpreterBody::Lines(_)));
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_headers(MAX_HEADERS)
        .half_close(true)
        .serve_connection(TokioIo::new(socket.stream()), service);
    tokio::select! {
        biased;
        // Errors are the client's: it left, or it speaks no HTTP, and was answered as far as possible.
        _ = served => {}
        () = socket.unheard(executes.subscribe()) => {}
    }
}
