//! The listener and its connections (executor 2.1).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{Shutdown, shutdown};
use sandyard_http::{Admission, MAX_HEADERS, Socket, StrangerLimits};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::{Daemon, log, router};

/// How long a connection without a request stays, longer than any proxy in front keeps it.
const IDLE: Duration = Duration::from_secs(640);

/// The same for a stranger's: a proof comes at once or not at all.
const STRANGER_IDLE: Duration = Duration::from_secs(10);

/// The same before the claim, when the server alone has anything to say.
const UNCLAIMED_IDLE: Duration = Duration::from_secs(2);

/// The longest head of a stranger's request, in bytes, which is also the memory that it can take.
const STRANGER_HEAD: usize = 32 << 10;

/// Connections on which nobody has shown a token. Whoever shows one comes from the server's address, through whose
/// proxy all clients come, or from a program inside; the server has one address at a time.
pub(super) const STRANGERS: StrangerLimits = StrangerLimits { from_one: 8, all: 64 };
pub(super) const TRUSTED_ADDRESSES: usize = 16;

/// How long to wait before accepting again when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The other end of one connection.
pub(super) struct Peer {
    admission: Admission,
    proven: AtomicBool,
    claimed: AtomicBool,
}

impl Peer {
    /// It has shown a token of this sandbox.
    pub(super) fn prove(&self, daemon: &Daemon) {
        if !self.admission.is_trusted() && !self.proven.swap(true, Ordering::Relaxed) {
            daemon.strangers.trust(&self.admission);
        }
    }

    /// It has made the claim.
    pub(super) fn claim(&self, daemon: &Daemon) {
        self.claimed.store(true, Ordering::Relaxed);
        self.prove(daemon);
    }
}

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

/// Serves connections for ever. What goes wrong with taking one is waited out: a daemon that ends ends its
/// sandbox.
pub(super) async fn accept(listener: &TcpListener, daemon: &Arc<Daemon>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, source)) => {
                let daemon = Arc::clone(daemon);
                let owner = Arc::clone(&daemon);
                owner.connections.spawn(connection(stream, source, daemon));
            }
            // The client left before we came to it.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
            Err(error) => {
                log!("failed to accept a connection, waiting: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection. A request that has arrived is carried out also if its client leaves, for nothing
/// tells the client how far it got. Only a stream of events ends with its client, and that at its FIN,
/// without anything to send (executor 2.7).
async fn connection(stream: TcpStream, source: SocketAddr, daemon: Arc<Daemon>) {
    if let Err(error) = stream.set_nodelay(true) {
        // The client may have left already; then serving it says so too.
        log!("failed to turn off delays of a connection: {error}");
    }
    let admission = daemon.strangers.admit(source.ip());
    let peer = Peer { admission, proven: AtomicBool::new(false), claimed: AtomicBool::new(false) };
    tokio::select! {
        biased;
        () = serve(Socket::new(stream), &peer, &daemon) => {}
        () = peer.admission.revoked() => {}
        () = overtaken_by_the_claim(&peer, &daemon) => {}
    }
    daemon.strangers.forget(&peer.admission);
}

/// Returns if the connection began before the claim and did not make it: nothing from before it lives on.
async fn overtaken_by_the_claim(peer: &Peer, daemon: &Daemon) {
    let mut claimed = daemon.claimed.subscribe();
    let early = !*claimed.borrow_and_update();
    // An error is the sender gone, which the daemon holds.
    if !early
        || claimed.wait_for(|claimed| *claimed).await.is_err()
        || peer.claimed.load(Ordering::Relaxed)
    {
        std::future::pending::<()>().await;
    }
}

async fn serve(socket: Socket, peer: &Peer, daemon: &Arc<Daemon>) {
    let follows_events = watch::Sender::new(false);
    let service = service_fn(|request| {
        follows_events.send_replace(false);
        let follows_events = &follows_events;
        async move {
            let response = router::answer(daemon, peer, request).await;
            follows_events.send_replace(response.body().follows_events());
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .max_headers(MAX_HEADERS)
        // Else a client's end drops the request that came before it.
        .half_close(true);
    if peer.admission.is_trusted() {
        http.header_read_timeout(IDLE);
    } else {
        let claimed = *daemon.claimed.borrow();
        http.header_read_timeout(if claimed { STRANGER_IDLE } else { UNCLAIMED_IDLE });
        http.max_buf_size(STRANGER_HEAD);
    }
    let served = http.serve_connection(TokioIo::new(socket.stream()), service).with_upgrades();
    tokio::select! {
        biased;
        // Errors are the client's: it left, or it speaks no HTTP, and was answered as far as possible.
        _ = served => {}
        () = socket.unheard(follows_events.subscribe()) => {}
    }
}
