//! TLS on the proxy's port (control-plane 5.2, 5.4 setup B, 5.8).

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::harness::{Harness, KEY, read_until};

const PORT: u16 = 8000;
const API: &str = "api.sbx.localhost";

/// A connection to the proxy by a client that trusts the server's authority and asks for `host`.
async fn connect(server: &Harness, host: &str, alpn: &str) -> anyhow::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&server.ca)?)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(server.proxy).await?;
    let name = ServerName::try_from(host.to_owned())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    anyhow::ensure!(stream.get_ref().1.alpn_protocol() == Some(alpn.as_bytes()), "{host}: ALPN");
    Ok(stream)
}

/// One request in one of the two versions; status and body of the answer.
async fn ask(
    server: &Harness,
    alpn: &str,
    host: &str,
    path: &str,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TokioIo::new(connect(server, host, alpn).await?);
    let mut driver = JoinSet::new();
    let request =
        |uri: String| Request::get(uri).header("x-api-key", KEY).body(Empty::<Bytes>::new());
    let response = if alpn == "h2" {
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        driver.spawn(connection);
        client
            .send_request(request(format!("https://{host}:{}{path}", server.proxy.port()))?)
            .await?
    } else {
        let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await?;
        driver.spawn(connection);
        let mut request = request(path.to_owned())?;
        let host = format!("{host}:{}", server.proxy.port());
        request.headers_mut().insert("host", host.parse()?);
        client.send_request(request).await?
    };
    let expected = if alpn == "h2" { Version::HTTP_2 } else { Version::HTTP_11 };
    anyhow::ensure!(response.version() == expected, "{:?}", response.version());
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

#[tokio::test]
async fn one_port_serves_api_and_sandboxes_in_both_versions_with_and_without_tls()
-> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, _service) = server.with_service(PORT).await?;
    for alpn in ["http/1.1", "h2"] {
        let (status, body) = ask(&server, alpn, API, "/v2/sandboxes").await?;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(serde_json::from_slice::<Value>(&body)?[0]["sandboxID"], json!(id));
        for port in [PORT, 49983] {
            let host = format!("{port}-{id}.sbx.localhost");
            let (status, body) = ask(&server, alpn, &host, "/seen").await?;
            assert_eq!(status, StatusCode::OK);
            let seen: Value = serde_json::from_slice(&body)?;
            // What the service sees is what the client asked for (control-plane 5.5).
            let expected = format!("{host}:{}", server.proxy.port());
            assert_eq!(seen["headers"]["host"], json!(expected));
        }
    }
    let named = "API.sbx.localhost:3002";
    let answer = server.proxied(named, "/v2/sandboxes", &[("x-api-key", KEY)]).await?;
    assert_eq!(
        (answer.status, answer.json()?[0]["sandboxID"].clone()),
        (StatusCode::OK, json!(id))
    );
    // A key is asked for here as there.
    server.proxied(named, "/v2/sandboxes", &[]).await?.error(401)?;
    // Only under the server's own domain.
    let other = server.proxied("api.other.localhost", "/health", &[]).await?;
    assert!(other.error(400)?.starts_with("Invalid"));
    Ok(())
}

#[tokio::test]
async fn both_ports_of_the_api_are_one() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let create = async |address| {
        let request = Request::post(format!("http://{address}/v2/sandboxes"))
            .header("host", API)
            .header("x-api-key", KEY)
            .header("idempotency-key", "k-1")
            .header("content-type", "application/json")
            .body(json!({"templateID": "base"}).to_string().into())?;
        let answer = server.send(request).await?;
        anyhow::ensure!(answer.status == StatusCode::CREATED, "{}", answer.text());
        anyhow::Ok(answer.json()?["sandboxID"].clone())
    };
    // A repetition is known on either (control-plane 3.3).
    assert_eq!(create(server.api).await?, create(server.proxy).await?);
    Ok(())
}

#[tokio::test]
async fn the_certificate_is_good_for_the_domain_and_this_machine_only() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    for host in [API, "8000-iabc.sbx.localhost", "sbx.localhost", "localhost", "127.0.0.1", "::1"] {
        connect(&server, host, "http/1.1").await.context(host)?;
    }
    for host in ["example.com", "a.b.sbx.localhost"] {
        assert!(connect(&server, host, "http/1.1").await.is_err(), "{host}");
    }
    Ok(())
}

#[tokio::test]
async fn refusals_are_the_same_within_tls() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    for alpn in ["http/1.1", "h2"] {
        for (host, expected) in [
            (
                "8000-iunknown.sbx.localhost".to_owned(),
                json!({"code": 502, "sandboxId": "iunknown", "message": "The sandbox was not found"}),
            ),
            (
                format!("{PORT}-{id}.sbx.localhost"),
                json!({
                    "code": 502, "sandboxId": id, "port": PORT,
                    "message": "The sandbox is running but port is not open",
                }),
            ),
        ] {
            let (status, body) = ask(&server, alpn, &host, "/").await?;
            assert_eq!(status, StatusCode::BAD_GATEWAY);
            assert_eq!(serde_json::from_slice::<Value>(&body)?, expected);
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_upgrade_passes_within_tls_with_half_closes() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, _service) = server.with_service(PORT).await?;
    let host = format!("{PORT}-{id}.sbx.localhost");
    let mut stream = connect(&server, &host, "http/1.1").await?;
    let request = format!(
        "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.write_all(b"ping").await?;
    let mut seen = String::new();
    while !seen.ends_with("ping") {
        let byte = stream.read_u8().await?;
        seen.push(byte.into());
    }
    assert!(seen.starts_with("HTTP/1.1 101"), "{seen}");
    stream.shutdown().await?;
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await?;
    assert_eq!(rest, "bye");
    Ok(())
}

#[tokio::test]
async fn a_client_that_closes_its_side_without_a_word_gets_its_answer() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, _service) = server.with_service(PORT).await?;
    let host = format!("{PORT}-{id}.sbx.localhost");
    let mut stream = connect(&server, &host, "http/1.1").await?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // Of the connection itself, not of TLS in it.
    stream.get_mut().0.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn garbage_and_clients_that_stall_cost_nothing() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    // Begins like TLS, and is none: a word in TLS, then the end.
    let mut garbage = TcpStream::connect(server.proxy).await?;
    garbage.write_all(&[0x16, 0xff, 0xff, 0xff, 0xff, 0xff]).await?;
    let mut rest = Vec::new();
    garbage.read_to_end(&mut rest).await?;
    assert!(rest.first().is_none_or(|byte| *byte == 0x15), "no alert: {rest:?}");
    // Neither TLS nor HTTP.
    let mut nonsense = TcpStream::connect(server.proxy).await?;
    nonsense.write_all(b"\x00\x01nonsense\r\n\r\n").await?;
    read_until(&mut nonsense, "400 Bad Request").await?;
    // One that has said nothing, one in the midst of its handshake, and one that has left.
    let silent = TcpStream::connect(server.proxy).await?;
    let mut stalled = TcpStream::connect(server.proxy).await?;
    stalled.write_all(&[0x16, 0x03]).await?;
    drop(TcpStream::connect(server.proxy).await?);
    // Others are served meanwhile, and nothing keeps the server from ending.
    assert_eq!(ask(&server, "h2", API, "/health").await?.0, StatusCode::OK);
    server.stopped().await;
    drop((silent, stalled));
    Ok(())
}
