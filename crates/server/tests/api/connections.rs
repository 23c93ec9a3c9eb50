//! Both ports: requests that do not say for whom they are, clients that close one side, clients that leave.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandyard_testkit::{Behaviour, EngineCall};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::harness::{Harness, KEY, read_remaining, read_until, reset};

const PORT: u16 = 8000;
/// Longer than anything here takes, and shorter than what only a forgotten connection's probe would find.
const LIMIT: Duration = Duration::from_secs(10);

async fn send(address: SocketAddr, request: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// Sends a request, closes the own side, and reads to the end.
async fn half_closed(address: SocketAddr, request: &str) -> anyhow::Result<String> {
    let mut stream = send(address, request).await?;
    stream.shutdown().await?;
    Ok(timeout(LIMIT, read_remaining(&mut stream)).await?)
}

/// The body of an answer that was not sent in chunks.
fn body(answer: &str) -> anyhow::Result<Value> {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    Ok(serde_json::from_str(body)?)
}

#[tokio::test]
async fn a_request_for_no_host_or_for_several_is_a_bad_request() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let sandbox = format!("49983-{id}.localhost");
    for (address, path) in [(server.api, "/health"), (server.proxy, "/health")] {
        for (target, hosts, expected) in [
            (path.to_owned(), vec![sandbox.as_str(), "localhost"], "more than one header 'Host'"),
            (path.to_owned(), vec![&sandbox, &sandbox], "more than one header 'Host'"),
            (path.to_owned(), vec![], "'Host' is missing"),
            (format!("http://{sandbox}{path}"), vec![], "'Host' is missing"),
            (path.to_owned(), vec!["a b"], "of the form"),
            (path.to_owned(), vec!["user@localhost"], "of the form"),
        ] {
            let hosts: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
            let request = format!("GET {target} HTTP/1.1\r\n{hosts}X-API-Key: {KEY}\r\n\r\n");
            let mut stream = send(address, &request).await?;
            let answer = read_until(&mut stream, "}").await?;
            assert!(answer.starts_with("HTTP/1.1 400"), "{request}: {answer}");
            let body = body(&answer)?;
            assert_eq!(body["code"], json!(400));
            let message = body["message"].as_str().expect("a message");
            assert!(message.contains(expected), "{request}: {message}");
        }
    }
    assert!(server.daemon(&id)?.seen().is_empty());
    // HTTP/1.0 knows no such header.
    let answer = half_closed(server.api, "GET /health HTTP/1.0\r\n\r\n").await?;
    assert!(answer.contains("200 OK"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn the_target_of_a_request_counts_before_its_host() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, service) = server.with_service(PORT).await?;
    let other = server.create(json!({})).await?;
    let (named, ignored) =
        (format!("{PORT}-{id}.localhost:1"), format!("{PORT}-{other}.localhost"));
    let request = format!("GET http://{named}/seen?a=1 HTTP/1.1\r\nHost: {ignored}\r\n\r\n");
    let answer = half_closed(server.proxy, &request).await?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = service.seen();
    assert_eq!((seen[0].uri.as_str(), seen[0].headers["host"].as_str()), ("/seen?a=1", &*named));
    // A target without a sandbox is not helped by the header.
    let request = format!("GET http://localhost/seen HTTP/1.1\r\nHost: {named}\r\n\r\n");
    assert!(half_closed(server.proxy, &request).await?.starts_with("HTTP/1.1 400"));
    // A target that is no path goes on as it is.
    let request = format!("OPTIONS * HTTP/1.1\r\nHost: {named}\r\n\r\n");
    half_closed(server.proxy, &request).await?;
    assert_eq!(service.seen().last().map(|seen| seen.uri.as_str()), Some("*"));
    // The API does not mind for which host it is.
    let request = "GET http://api.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert!(half_closed(server.api, request).await?.starts_with("HTTP/1.1 200"));
    Ok(())
}

#[tokio::test]
async fn host_and_authority_of_http_2_must_agree() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, service) = server.with_service(PORT).await?;
    let host = format!("{PORT}-{id}.localhost");
    let mut tasks = JoinSet::new();
    for (address, path) in [(server.api, "/health"), (server.proxy, "/seen")] {
        let stream = TcpStream::connect(address).await?;
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tasks.spawn(connection);
        for (header, expected) in [
            (host.to_uppercase(), StatusCode::OK),
            (format!("{host}:80"), StatusCode::OK),
            ("localhost".to_owned(), StatusCode::BAD_REQUEST),
            (format!("{host}:81"), StatusCode::BAD_REQUEST),
        ] {
            let request = Request::get(format!("http://{host}{path}"))
                .header("host", &header)
                .body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            assert_eq!(response.status(), expected, "{header}");
            let body = response.into_body().collect().await?.to_bytes();
            if expected == StatusCode::BAD_REQUEST {
                let body: Value = serde_json::from_slice(&body)?;
                assert_eq!(body["code"], json!(400));
                assert!(body["message"].as_str().is_some_and(|m| m.contains("different hosts")));
            }
        }
    }
    for seen in service.seen() {
        assert_eq!(seen.headers["host"], host, "what decided is what the service sees");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_of_the_api_that_closes_its_side_gets_its_answer() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let head = format!("HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n");
    let list = half_closed(server.api, &format!("GET /v2/sandboxes {head}\r\n")).await?;
    assert!(list.starts_with("HTTP/1.1 200") && list.contains(id.as_str()), "{list}");
    let request = format!(
        "POST /sandboxes/{id}/timeout {head}Content-Type: application/json\r\n\
         Content-Length: 14\r\n\r\n{{\"timeout\":60}}"
    );
    let set = half_closed(server.api, &request).await?;
    assert!(set.starts_with("HTTP/1.1 204"), "{set}");
    // One that takes a while.
    server.engine.script(EngineCall::Delete, Behaviour::Hang);
    let mut stream = send(server.api, &format!("DELETE /sandboxes/{id} {head}\r\n")).await?;
    stream.shutdown().await?;
    timeout(LIMIT, server.engine.called(EngineCall::Delete, 1)).await?;
    server.engine.heal(EngineCall::Delete);
    let killed = timeout(LIMIT, read_remaining(&mut stream)).await?;
    assert!(killed.starts_with("HTTP/1.1 204"), "{killed}");
    Ok(())
}

#[tokio::test]
async fn a_create_counts_a_closed_side_as_leaving() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let request = format!(
        "POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: 21\r\n\r\n{{\"templateID\":\"base\"}}"
    );
    for number in [1, 2] {
        server.engine.script(EngineCall::Claim, Behaviour::Hang);
        let stream = send(server.api, &request).await?;
        timeout(LIMIT, server.engine.called(EngineCall::Claim, number)).await?;
        if number == 1 {
            drop(stream)
        } else {
            reset(stream)?
        }
        // What is answered after it came after it.
        server.get("/health").await?;
        server.engine.heal(EngineCall::Claim);
        timeout(LIMIT, server.engine.called(EngineCall::Delete, number)).await?;
    }
    // Whoever closes its side and does listen learns why there is no sandbox; of a bad body, what is wrong.
    server.engine.script(EngineCall::Claim, Behaviour::Hang);
    let answer = half_closed(server.api, &request).await?;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("keep it open until the answer"), "{answer}");
    assert_eq!(body(&answer)?["code"], json!(400));
    let answer = half_closed(server.api, &request.replace("templateID", "templateNo")).await?;
    assert!(answer.contains("missing field `templateID`"), "{answer}");
    Ok(())
}

/// A port of a sandbox on which the test itself is the service.
async fn listen(server: &Harness) -> anyhow::Result<(String, TcpListener)> {
    let id = server.create(json!({})).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    server.daemon(&id)?.open_port(PORT, listener.local_addr()?);
    Ok((format!("{PORT}-{id}.localhost"), listener))
}

#[tokio::test]
async fn a_client_of_a_sandbox_that_closes_its_side_gets_its_answer() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, _service) = server.with_service(PORT).await?;
    for port in [49983, PORT] {
        let head = format!("HTTP/1.1\r\nHost: {port}-{id}.localhost\r\n");
        let request = format!("POST /echo {head}Content-Length: 5\r\n\r\nhello");
        let answer = half_closed(server.proxy, &request).await?;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello"), "{answer}");
        let both = format!("GET /health {head}\r\nGET /seen {head}\r\n");
        let answers = half_closed(server.proxy, &both).await?;
        assert!(answers.contains("204 No Content") && answers.contains("/seen"), "{answers}");
        // A body that ends too early is not taken for a whole one.
        let request = format!("POST /echo {head}Content-Length: 5\r\n\r\nhe");
        let answer = half_closed(server.proxy, &request).await?;
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    }
    // The answer comes long after, in pieces.
    let (host, listener) = listen(&server).await?;
    let mut client = send(server.proxy, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
    client.shutdown().await?;
    let (mut service, _) = listener.accept().await?;
    read_until(&mut service, "\r\n\r\n").await?;
    service.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
    for piece in ["one", "two"] {
        service.write_all(format!("3\r\n{piece}\r\n").as_bytes()).await?;
        timeout(LIMIT, read_until(&mut client, piece)).await??;
    }
    service.write_all(b"0\r\n\r\n").await?;
    assert!(timeout(LIMIT, read_remaining(&mut client)).await?.ends_with("0\r\n\r\n"));
    Ok(())
}

#[tokio::test]
async fn a_client_that_closed_and_left_is_noticed_when_something_is_sent() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (host, listener) = listen(&server).await?;
    let client = send(server.proxy, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
    let (mut service, _) = listener.accept().await?;
    read_until(&mut service, "\r\n\r\n").await?;
    drop(client);
    // One write is enough: nobody has to try a second time.
    service.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await?;
    assert_eq!(timeout(LIMIT, read_remaining(&mut service)).await?, "");
    Ok(())
}

#[tokio::test]
async fn each_half_of_an_upgraded_connection_ends_by_itself() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (host, listener) = listen(&server).await?;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    let switching =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

    // The service ends its half first, and still hears the client.
    let mut client = send(server.proxy, &request).await?;
    let (mut service, _) = listener.accept().await?;
    read_until(&mut service, "\r\n\r\n").await?;
    service.write_all(switching).await?;
    service.write_all(b"all").await?;
    service.shutdown().await?;
    let said = timeout(LIMIT, read_remaining(&mut client)).await?;
    assert!(said.starts_with("HTTP/1.1 101") && said.ends_with("all"), "{said}");
    client.write_all(b"later").await?;
    client.shutdown().await?;
    assert_eq!(timeout(LIMIT, read_remaining(&mut service)).await?, "later");

    // The client ends its half before the upgrade has happened.
    let mut client = send(server.proxy, &format!("{request}early")).await?;
    client.shutdown().await?;
    let (mut service, _) = listener.accept().await?;
    read_until(&mut service, "\r\n\r\n").await?;
    service.write_all(switching).await?;
    assert_eq!(timeout(LIMIT, read_remaining(&mut service)).await?, "early");
    service.write_all(b"bye").await?;
    drop(service);
    assert!(timeout(LIMIT, read_remaining(&mut client)).await?.ends_with("bye"));

    // And one that is gone for good is left on the other side too.
    let mut client = send(server.proxy, &request).await?;
    let (mut service, _) = listener.accept().await?;
    read_until(&mut service, "\r\n\r\n").await?;
    service.write_all(switching).await?;
    timeout(LIMIT, read_until(&mut client, "\r\n\r\n")).await??;
    client.shutdown().await?;
    let mut nothing = [0; 1];
    assert_eq!(timeout(LIMIT, service.read(&mut nothing)).await??, 0);
    reset(client)?;
    // Closed, not only its half: the service may write no more.
    let written = async {
        loop {
            if service.write_all(b"x").await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, written).await?;
    Ok(())
}

/// Refused before its body is looked at (control-plane 1.3); what comes after it on the connection is answered too.
#[tokio::test]
async fn a_connection_lives_on_after_a_refusal_or_says_that_it_does_not() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let head = |length: usize| {
        format!("POST /v2/sandboxes HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut stream = send(server.api, "").await?;
    stream.set_nodelay(true)?;
    for _ in 0..100 {
        stream.write_all(head(1).as_bytes()).await?;
        // Not in one packet with its head.
        tokio::task::yield_now().await;
        stream.write_all(b"{").await?;
        let answer = timeout(LIMIT, read_until(&mut stream, "}")).await??;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(!answer.to_lowercase().contains("connection: close"), "{answer}");
    }
    // A client that does not send what it has announced.
    stream.write_all(head(1000).as_bytes()).await?;
    let answer = timeout(LIMIT, read_remaining(&mut stream)).await?;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    Ok(())
}
