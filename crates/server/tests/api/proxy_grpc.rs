//! The proxy: gRPC, the one protocol whose services speak HTTP/2 only.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use bytes::Bytes;
use futures::SinkExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::Harness;

const PORT: u16 = 50051;

type Sent = StreamBody<futures::channel::mpsc::Receiver<Result<Frame<Bytes>, Infallible>>>;

/// A service that speaks HTTP/2 without TLS and nothing else: sends back what comes, as it comes, and trailers.
struct Echo {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

async fn echo(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = hyper::Error>>, Infallible> {
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let te = request.headers().get("te").cloned();
    let trailers = async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Some(Ok(trailers))
    };
    let mut response = Response::new(request.into_body().with_trailers(trailers));
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    if let Ok(value) = HeaderValue::from_str(&authority) {
        headers.insert("x-authority", value);
    }
    if let Some(te) = te {
        headers.insert("x-te", te);
    }
    Ok(response)
}

impl Echo {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let count = connections.clone();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                served.spawn(async move {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    // Ends in an error when the test does.
                    let _ = server.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
                });
            }
        });
        Ok(Self { address, connections, _tasks: tasks })
    }
}

/// A client's connection, as gRPC keeps it.
async fn client(server: &Harness) -> anyhow::Result<(SendRequest<Sent>, JoinSet<()>)> {
    let stream = TokioIo::new(TcpStream::connect(server.proxy).await?);
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Ends in an error when the server does.
        let _ = connection.await;
    });
    Ok((client, driver))
}

#[tokio::test]
async fn grpc_reaches_a_service_that_speaks_nothing_else() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let service = Echo::start().await?;
    server.daemon(&id)?.open_port(PORT, service.address);
    let host = format!("{PORT}-{id}.sbx.localhost:3002");
    let (mut client, _driver) = client(&server).await?;
    for _ in 0..2 {
        let (mut sender, body) = futures::channel::mpsc::channel(1);
        let request = Request::post(format!("http://{host}/pkg.Service/Method"))
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .body(StreamBody::new(body))?;
        let response = client.send_request(request).await?;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-authority"], host);
        assert_eq!(response.headers()["x-te"], "trailers");
        let mut body = response.into_body();
        // Both ways at once: each piece is back before the next one is sent.
        for piece in ["first", "second"] {
            sender.send(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).await?;
            let frame = body.frame().await.context("ended")??;
            assert_eq!(frame.into_data().ok().context("trailers")?, piece);
        }
        drop(sender);
        let trailers = body.frame().await.context("ended")??.into_trailers();
        assert_eq!(trailers.ok().context("data")?["grpc-status"], "0");
    }
    assert_eq!(service.connections.load(Ordering::Relaxed), 1, "the connection was kept");
    Ok(())
}

#[tokio::test]
async fn grpc_to_a_closed_port_or_an_ended_service_is_refused_as_ever() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let daemon = server.daemon(&id)?;
    let (mut client, _driver) = client(&server).await?;
    let mut status = async || {
        let (_, body) = futures::channel::mpsc::channel(1);
        let request = Request::post(format!("http://{PORT}-{id}.sbx.localhost/a.B/C"))
            .header("content-type", "application/grpc")
            .body(StreamBody::new(body))?;
        anyhow::Ok(client.send_request(request).await?.status())
    };
    assert_eq!(status().await?, StatusCode::BAD_GATEWAY);
    let service = Echo::start().await?;
    daemon.open_port(PORT, service.address);
    assert_eq!(status().await?, StatusCode::OK);
    // Ended and started again: on a new connection.
    drop(service);
    let service = Echo::start().await?;
    daemon.open_port(PORT, service.address);
    while status().await? != StatusCode::OK {}
    assert_eq!(service.connections.load(Ordering::Relaxed), 1);
    Ok(())
}
