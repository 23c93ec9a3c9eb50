//! What is decided by where a client is, and before anybody knows who it is.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::host::{BUCKET, GatewayHost};

/// Where every client of these tests is.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 20, 0, 7));

#[tokio::test]
async fn a_key_is_good_from_its_own_address_only() -> anyhow::Result<()> {
    let host = GatewayHost::embedded().await?;
    let client = host.session("sessions/a/");
    let target = format!("/{BUCKET}/sessions/a/x");
    host.bind_to(&client, HERE);
    client.put(&target, b"own").await?.expect(200);
    // The same key in other hands.
    host.bind_to(&client, ELSEWHERE);
    client.get(&target).await?.expect_error(403, "AccessDenied");
    client.put(&target, b"x").await?.expect_error(403, "AccessDenied");
    host.bind_to(&client, HERE);
    assert_eq!(client.get(&target).await?.expect(200).body, "own");
    Ok(())
}

#[tokio::test]
async fn who_proves_nothing_is_sent_away() -> anyhow::Result<()> {
    let host = GatewayHost::embedded().await?;
    let mut stream = TcpStream::connect(host.endpoint.trim_start_matches("http://")).await?;
    stream.write_all(b"GET /workspaces/x HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut answer = String::new();
    // It ends, though the client did not ask for that.
    stream.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // One that is known stays.
    let client = host.session("sessions/a/");
    let reply = client.put(&format!("/{BUCKET}/sessions/a/x"), b"x").await?.expect(200);
    assert_eq!(reply.header("connection"), "");
    Ok(())
}

#[tokio::test]
async fn a_head_has_a_bound_and_a_body_has_none() -> anyhow::Result<()> {
    let host = GatewayHost::embedded().await?;
    let mut stream = TcpStream::connect(host.endpoint.trim_start_matches("http://")).await?;
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(64 << 10));
    // It may be closed while this is sent.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer));
    // A reset is an end too.
    let _ = closed.await?;
    let client = host.session("sessions/a/");
    let large = vec![7; 5 << 20];
    let target = format!("/{BUCKET}/sessions/a/large");
    for _ in 0..2 {
        client.put(&target, &large).await?.expect(200);
        assert_eq!(client.get(&target).await?.expect(200).body.len(), large.len());
    }
    Ok(())
}
