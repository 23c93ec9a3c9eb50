//! The proxy: bodies, upgrades, and connections that end.

use std::net::Ipv4Addr;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandyard_testkit::FakeDaemon;
use sandyard_types::SandboxId;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{Harness, read_remaining, read_until, reset};

const PORT: u16 = 8000;

/// A request's head for a host of the sandbox.
fn head(method: &str, path: &str, host: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")
}

/// Hosts of the daemon and of a service of one sandbox: straight, and through the tunnel.
async fn both_hosts(server: &Harness) -> anyhow::Result<(Vec<String>, FakeDaemon)> {
    let (id, service) = server.with_service(PORT).await?;
    let hosts = [49983, PORT].map(|port| format!("{port}-{id}.localhost"));
    Ok((hosts.to_vec(), service))
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (hosts, _service) = both_hosts(&server).await?;
    for host in hosts {
        let request = head("POST", "/echo", &host, "Transfer-Encoding: chunked\r\n");
        let mut stream = server.raw(&request).await?;
        // Each piece is back before the next one is sent.
        for piece in ["first", "second", "third"] {
            let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
            stream.write_all(chunk.as_bytes()).await?;
            read_until(&mut stream, piece).await?;
        }
        stream.write_all(b"0\r\n\r\n").await?;
        read_until(&mut stream, "0\r\n\r\n").await?;
        // And the connection goes on.
        stream.write_all(head("GET", "/health", &host, "").as_bytes()).await?;
        read_until(&mut stream, "204 No Content").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_large_body_arrives_whole() -> anyhow::Result<()> {
    const CHUNKS: usize = 64;
    const CHUNK: usize = 256 * 1024;
    let server = Harness::start().await?;
    let (hosts, _service) = both_hosts(&server).await?;
    for host in hosts {
        let length = format!("Content-Length: {}\r\nConnection: close\r\n", CHUNKS * CHUNK);
        let stream = server.raw(&head("POST", "/echo", &host, &length)).await?;
        let (mut reader, mut writer) = stream.into_split();
        let send = async {
            for number in 0..CHUNKS {
                writer.write_all(&vec![u8::try_from(number)?; CHUNK]).await?;
            }
            anyhow::Ok(writer)
        };
        let receive = async {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).await?;
            anyhow::Ok(all)
        };
        // The writer stays open until all is read: closing early would be leaving.
        let (_writer, all) = tokio::try_join!(send, receive)?;
        let body = all.len().saturating_sub(CHUNKS * CHUNK);
        let head = String::from_utf8_lossy(&all[..body]);
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"));
        for (number, chunk) in all[body..].chunks(CHUNK).enumerate() {
            assert!(chunk == vec![u8::try_from(number)?; CHUNK], "chunk {number}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_upgrade_passes_with_half_closes() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (hosts, _service) = both_hosts(&server).await?;
    for host in hosts {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n";
        let mut stream = server.raw(&head("GET", "/socket", &host, upgrade)).await?;
        let answer = read_until(&mut stream, "\r\n\r\n").await?;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        assert!(answer.to_lowercase().contains("upgrade: websocket"), "{answer}");
        for piece in ["ping", "pong"] {
            stream.write_all(piece.as_bytes()).await?;
            read_until(&mut stream, piece).await?;
        }
        // Closing one half reaches the service, whose answer still comes back.
        stream.shutdown().await?;
        assert_eq!(read_remaining(&mut stream).await, "bye");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_sends_everything_first_gets_its_refusal() -> anyhow::Result<()> {
    const LENGTH: usize = 16 << 20;
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    for (host, expected) in [
        ("49983-iunknown.localhost".to_owned(), "The sandbox was not found"),
        (format!("{PORT}-{id}.localhost"), "port is not open"),
        ("localhost".to_owned(), "Invalid host"),
    ] {
        let length = format!("Content-Length: {LENGTH}\r\n");
        let mut stream = server.raw(&head("POST", "/x", &host, &length)).await?;
        // Neither this nor the reading meets a reset.
        stream.write_all(&vec![b'x'; LENGTH]).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert!(answer.contains(expected), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn an_upgrade_that_is_refused_is_a_plain_answer() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (hosts, _service) = both_hosts(&server).await?;
    for host in hosts {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        let mut stream = server.raw(&head("GET", "/health", &host, upgrade)).await?;
        let answer = read_until(&mut stream, "\r\n\r\n").await?;
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        assert!(!answer.to_lowercase().contains("upgrade"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_inside() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, service) = server.with_service(PORT).await?;
    let daemon = server.daemon(&id)?;
    for (port, upstream) in [(49983, daemon.as_ref()), (PORT, &service)] {
        let host = format!("{port}-{id}.localhost");
        // While the answer streams, and before there is one.
        let mut stream = server.raw(&head("GET", "/endless", &host, "")).await?;
        read_until(&mut stream, "tick").await?;
        reset(stream)?;
        upstream.abandoned(1).await;

        // One that has closed its own side, and may still be listening, until it is not.
        let mut stream = server.raw(&head("GET", "/silent", &host, "")).await?;
        upstream.saw("/silent").await;
        stream.shutdown().await?;
        reset(stream)?;
        upstream.abandoned(2).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_sandbox_that_dies_breaks_its_streams_off() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, _service) = server.with_service(PORT).await?;
    let mut streams = Vec::new();
    for port in [49983, PORT] {
        let host = format!("{port}-{id}.localhost");
        let mut stream = server.raw(&head("GET", "/endless", &host, "")).await?;
        let start = read_until(&mut stream, "tick").await?;
        assert!(start.to_lowercase().contains("transfer-encoding: chunked"), "{start}");
        streams.push((host, stream));
    }
    let mut silent = {
        let host = format!("49983-{id}.localhost");
        let stream = server.raw(&head("GET", "/silent", &host, "")).await?;
        server.daemon(&id)?.saw("/silent").await;
        stream
    };
    // Nobody has told the scheduler yet.
    server.engine.die_unseen(&server.instance(&id)?);
    for (host, mut stream) in streams {
        let rest = read_remaining(&mut stream).await;
        assert!(!rest.contains("0\r\n\r\n"), "a clean end: {rest:?}");
        let message = server.proxied(&host, "/health", &[]).await?.error(502)?;
        assert_eq!(message, "The sandbox was not found");
    }
    // A request without an answer yet gets one.
    let answer = read_until(&mut silent, "}").await?;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains("The sandbox was not found"), "{answer}");
    Ok(())
}

/// A service of the old kind: its answer ends with the connection.
async fn old_service(server: &Harness, id: &SandboxId) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    server.daemon(id)?.open_port(PORT, listener.local_addr()?);
    Ok(listener)
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_ends_well_only_while_the_sandbox_lives()
-> anyhow::Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.0 200 OK\r\n\r\npart";
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let host = format!("{PORT}-{id}.localhost");
    let service = old_service(&server, &id).await?;

    let mut client = server.raw(&head("GET", "/", &host, "")).await?;
    let (mut served, _) = service.accept().await?;
    read_until(&mut served, "\r\n\r\n").await?;
    served.write_all(ANSWER).await?;
    drop(served);
    read_until(&mut client, "0\r\n\r\n").await?;

    let mut client = server.raw(&head("GET", "/", &host, "")).await?;
    let (mut served, _) = service.accept().await?;
    read_until(&mut served, "\r\n\r\n").await?;
    served.write_all(ANSWER).await?;
    read_until(&mut client, "part").await?;
    server.engine.die_unseen(&server.instance(&id)?);
    let rest = read_remaining(&mut client).await;
    assert!(!rest.contains("0\r\n\r\n"), "a clean end: {rest:?}");
    Ok(())
}

#[tokio::test]
async fn http_2_without_tls_is_served() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, service) = server.with_service(PORT).await?;
    let stream = TcpStream::connect(server.proxy).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    for port in [49983, PORT] {
        let host = format!("{port}-{id}.localhost");
        let request = Request::get(format!("http://{host}/seen?x=1")).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await?.to_bytes();
        let seen: serde_json::Value = serde_json::from_slice(&body)?;
        assert_eq!(seen["headers"]["host"], json!(host));
        assert_eq!(seen["uri"], json!("/seen?x=1"));
    }
    // A stream that is reset is left inside too.
    let host = format!("{PORT}-{id}.localhost");
    let request = Request::get(format!("http://{host}/endless")).body(Empty::<Bytes>::new())?;
    let mut response = sender.send_request(request).await?;
    let first = response.frame().await.expect("a frame")?;
    assert_eq!(first.into_data().expect("data"), "tick");
    drop(response);
    service.abandoned(1).await;
    // And so is one whose whole connection goes.
    let request = Request::get(format!("http://{host}/silent")).body(Empty::<Bytes>::new())?;
    tasks.spawn(async move { sender.send_request(request).await.map(drop) });
    service.saw("/silent").await;
    tasks.shutdown().await;
    service.abandoned(2).await;
    Ok(())
}

#[tokio::test]
async fn a_stop_lets_what_runs_end_and_takes_nothing_new() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let host = format!("49983-{id}.localhost");
    let request = head("POST", "/echo", &host, "Transfer-Encoding: chunked\r\n");
    let mut stream = server.raw(&request).await?;
    stream.write_all(b"1\r\na\r\n").await?;
    read_until(&mut stream, "a\r\n").await?;
    server.stop.cancel();
    let proxy = server.proxy;
    stream.write_all(b"1\r\nb\r\n0\r\n\r\n").await?;
    let rest = read_remaining(&mut stream).await;
    assert!(rest.contains("b\r\n") && rest.ends_with("0\r\n\r\n"), "{rest:?}");
    server.stopped().await;
    assert!(TcpStream::connect(proxy).await.is_err());
    Ok(())
}
