//! A daemon as the proxy sees it, and services behind it.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sandyard_contract::daemon::{CONTROL_TOKEN_HEADER, DAEMON_PORT, TUNNEL_PATH, TUNNEL_PROTOCOL};
use sandyard_http::MAX_HEADERS;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

type FakeBody = BoxBody<Bytes, io::Error>;

/// Addresses that are tried before it is given up.
const TRIES: usize = 64;

/// A request that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRequest {
    /// Its method.
    pub method: String,
    /// Its path and query, as sent.
    pub uri: String,
    /// Its headers; of those given repeatedly, the last.
    pub headers: BTreeMap<String, String>,
}

/// An HTTP/1.1 server that behaves like a daemon or a service of a user. When it is dropped, all its
/// connections are closed, as if its process had been killed.
///
/// | route | what it does |
/// |---|---|
/// | `/health` | 204 |
/// | `/echo` | sends the body back while it arrives |
/// | `/seen` | 200 with a [`SeenRequest`] as JSON |
/// | `/many-headers` | 200 with the headers of the request |
/// | `/endless` | one piece of a body, and never its end |
/// | `/silent` | never answers |
/// | `/hang-up` | closes the connection without an answer |
/// | `/socket` | 101; sends back what arrives, and after the client's half-close `bye` |
/// | `/sandyard/tunnel/<port>` | as the contract says, to ports given by [`Self::open_port`] |
/// | others | 404 |
pub struct FakeDaemon {
    address: SocketAddr,
    shared: Arc<FakeDaemonState>,
    /// Aborts everything when dropped.
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct FakeDaemonState {
    ports: Mutex<HashMap<u16, SocketAddr>>,
    seen: Mutex<Vec<SeenRequest>>,
    connections: watch::Sender<usize>,
    abandoned: watch::Sender<usize>,
    arrived: watch::Sender<usize>,
    control_token: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeDaemon {
    /// Starts on the daemon's port, on a loopback address that nobody else has.
    ///
    /// # Errors
    /// If no such address is free.
    pub async fn start() -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..TRIES {
            match TcpListener::bind((random_loopback()?, DAEMON_PORT)).await {
                Ok(listener) => return Self::serve(listener),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Starts on any free port of 127.0.0.1, as a service of a user.
    ///
    /// # Errors
    /// If none is free.
    pub async fn start_service() -> io::Result<Self> {
        Self::serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?)
    }

    fn serve(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(FakeDaemonState::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets tunnels to `port` lead to `address`.
    pub fn open_port(&self, port: u16, address: SocketAddr) {
        lock(&self.shared.ports).insert(port, address);
    }

    /// Demands this control token of tunnels.
    pub fn demand_token(&self, token: &str) {
        *lock(&self.shared.control_token) = Some(token.to_owned());
    }

    /// All requests so far, tunnels included.
    pub fn seen(&self) -> Vec<SeenRequest> {
        lock(&self.shared.seen).clone()
    }

    /// Waits until a request for this path and query has arrived.
    pub async fn saw(&self, uri: &str) {
        let mut arrived = self.shared.arrived.subscribe();
        let seen = || lock(&self.shared.seen).iter().any(|seen| seen.uri == uri);
        // The sender lives as long as the daemon.
        let _ = arrived.wait_for(|_| seen()).await;
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// Waits until `times` requests to `/endless` or `/silent` were abandoned by their clients.
    pub async fn abandoned(&self, times: usize) {
        let mut abandoned = self.shared.abandoned.subscribe();
        // The sender lives as long as the daemon.
        let _ = abandoned.wait_for(|count| *count >= times).await;
    }
}

fn random_loopback() -> io::Result<Ipv4Addr> {
    let mut bytes = [0; 3];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    let [a, b, c] = bytes;
    Ok(Ipv4Addr::new(127, 64 + a % 64, b, 1 + c % 254))
}

async fn accept(listener: TcpListener, shared: Arc<FakeDaemonState>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.send_modify(|count| *count += 1);
        connections.spawn(serve_connection(stream, shared.clone()));
    }
}

/// What a connection goes on as after an upgrade.
enum AfterUpgrade {
    Echo(OnUpgrade),
    Tunnel(OnUpgrade, TcpStream),
}

async fn serve_connection(stream: TcpStream, shared: Arc<FakeDaemonState>) {
    let (sender, mut upgrades) = mpsc::channel(1);
    let service = service_fn(move |request| {
        let (shared, sender) = (shared.clone(), sender.clone());
        async move { answer(request, shared, sender).await }
    });
    let mut after = JoinSet::new();
    {
        let connection = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        loop {
            tokio::select! {
                // A connection that breaks is what some tests are about.
                _ = connection.as_mut() => break,
                Some(next) = upgrades.recv() => { after.spawn(go_on(next)); }
            }
        }
    }
    while let Some(next) = upgrades.recv().await {
        after.spawn(go_on(next));
    }
    after.join_all().await;
}

async fn go_on(next: AfterUpgrade) {
    // Ends of connections that break are not interesting here.
    let _ = match next {
        AfterUpgrade::Echo(upgrade) => echo(upgrade).await,
        AfterUpgrade::Tunnel(upgrade, service) => tunnel(upgrade, service).await,
    };
}

async fn echo(upgrade: OnUpgrade) -> io::Result<()> {
    let mut stream = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            stream.write_all(b"bye").await?;
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn tunnel(upgrade: OnUpgrade, mut service: TcpStream) -> io::Result<()> {
    let mut stream = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
    tokio::io::copy_bidirectional(&mut stream, &mut service).await?;
    Ok(())
}

fn full(text: impl Into<Bytes>) -> FakeBody {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn plain(status: StatusCode) -> Response<FakeBody> {
    let mut response = Response::new(full(""));
    *response.status_mut() = status;
    response
}

fn switching(protocol: HeaderValue) -> Response<FakeBody> {
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
    response
}

async fn answer(
    mut request: Request<Incoming>,
    shared: Arc<FakeDaemonState>,
    upgrades: mpsc::Sender<AfterUpgrade>,
) -> io::Result<Response<FakeBody>> {
    let seen = see(&request);
    lock(&shared.seen).push(seen.clone());
    shared.arrived.send_modify(|count| *count += 1);
    let path = request.uri().path().to_owned();
    if let Some(port) = path.strip_prefix(TUNNEL_PATH) {
        return Ok(open_tunnel(&mut request, port, &shared, &upgrades).await);
    }
    match path.as_str() {
        "/health" => Ok(plain(StatusCode::NO_CONTENT)),
        "/echo" => Ok(Response::new(request.into_body().map_err(io::Error::other).boxed())),
        "/seen" => {
            let body = json!({"method": seen.method, "uri": seen.uri, "headers": seen.headers});
            Ok(Response::new(full(body.to_string())))
        }
        "/many-headers" => {
            let mut response = plain(StatusCode::OK);
            for (name, value) in request.headers() {
                response.headers_mut().insert(name.clone(), value.clone());
            }
            response.headers_mut().remove(hyper::header::HOST);
            Ok(response)
        }
        "/endless" => {
            let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"tick")))]);
            let rest = Never(Abandoned(shared));
            let body = StreamBody::new(stream::StreamExt::chain(first, rest));
            Ok(Response::new(BoxBody::new(body)))
        }
        "/silent" => {
            let _guard = Abandoned(shared);
            std::future::pending().await
        }
        "/hang-up" => Err(io::Error::other("told to hang up")),
        "/socket" => {
            let protocol = request.headers().get(UPGRADE).cloned();
            let Some(protocol) = protocol else {
                return Ok(plain(StatusCode::UPGRADE_REQUIRED));
            };
            let next = AfterUpgrade::Echo(hyper::upgrade::on(&mut request));
            upgrades.send(next).await.map_err(io::Error::other)?;
            Ok(switching(protocol))
        }
        _ => Ok(plain(StatusCode::NOT_FOUND)),
    }
}

fn see(request: &Request<Incoming>) -> SeenRequest {
    let headers = request.headers().iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.to_string(), value)
    });
    SeenRequest {
        method: request.method().to_string(),
        uri: request.uri().to_string(),
        headers: headers.collect(),
    }
}

async fn open_tunnel(
    request: &mut Request<Incoming>,
    port: &str,
    shared: &FakeDaemonState,
    upgrades: &mpsc::Sender<AfterUpgrade>,
) -> Response<FakeBody> {
    let token = request.headers().get(CONTROL_TOKEN_HEADER);
    let token = token.and_then(|token| token.to_str().ok());
    if let Some(demanded) = lock(&shared.control_token).as_deref()
        && token != Some(demanded)
    {
        return plain(StatusCode::UNAUTHORIZED);
    }
    let service = port.parse().ok().and_then(|port: u16| {
        let ports = lock(&shared.ports);
        ports.get(&port).copied()
    });
    let dialled = match service {
        Some(address) => TcpStream::connect(address).await.ok(),
        None => None,
    };
    let Some(service) = dialled else {
        return plain(StatusCode::SERVICE_UNAVAILABLE);
    };
    let next = AfterUpgrade::Tunnel(hyper::upgrade::on(request), service);
    match upgrades.send(next).await {
        Ok(()) => switching(HeaderValue::from_static(TUNNEL_PROTOCOL)),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Counts when it is dropped: nobody waits for the answer any more.
struct Abandoned(Arc<FakeDaemonState>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.abandoned.send_modify(|count| *count += 1);
    }
}

/// A stream without items and without end.
struct Never(#[expect(dead_code, reason = "counts when the stream is dropped")] Abandoned);

impl stream::Stream for Never {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Pending
    }
}
