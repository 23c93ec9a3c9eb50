//! The proxy: addressing, and what it answers by itself.

use base64::Engine as _;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use sandyard_contract::daemon::TUNNEL_PATH;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::{ApiAnswer, Harness, OTHER_KEY};

const PORT: u16 = 8000;

fn routing(id: &str, port: &str) -> [(&'static str, String); 2] {
    [("e2b-sandbox-id", id.to_owned()), ("e2b-sandbox-port", port.to_owned())]
}

async fn routed(server: &Harness, id: &str, port: &str, path: &str) -> anyhow::Result<ApiAnswer> {
    let headers = routing(id, port);
    let headers: Vec<(&'static str, &str)> =
        headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
    server.proxied("localhost", path, &headers).await
}

#[tokio::test]
async fn the_daemon_is_reached_by_headers_and_by_host() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let answer = routed(&server, id.as_str(), "49983", "/health").await?;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let hosts =
        [format!("49983-{id}.sbx.localhost:3002"), format!("49983-{id}-6532622b.localhost")];
    for host in &hosts {
        let answer = server.proxied(host, "/seen?a=%2Fb", &[]).await?;
        assert_eq!(answer.status, StatusCode::OK);
        let seen = answer.json()?;
        assert_eq!(seen["headers"]["host"], json!(host));
        assert_eq!(seen["uri"], json!("/seen?a=%2Fb"));
    }
    // One connection served them all.
    assert_eq!(server.daemon(&id)?.connections(), 1);
    Ok(())
}

#[tokio::test]
async fn a_service_is_reached_through_the_tunnel() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, service) = server.with_service(PORT).await?;
    let host = format!("{PORT}-{id}.sbx.localhost:3002");
    for _ in 0..3 {
        let headers = [("x-mine", "1"), ("connection", "x-mine"), ("x-other", "2")];
        let answer = server.proxied(&host, "/seen", &headers).await?;
        assert_eq!(answer.status, StatusCode::OK);
        let seen = answer.json()?;
        let headers = seen["headers"].as_object().expect("headers");
        assert_eq!(headers["host"], json!(host));
        assert_eq!(headers["x-other"], json!("2"));
        // For one connection only; and what the executor demands is not for services.
        assert_eq!(headers.get("x-mine"), None);
        assert!(!headers.keys().any(|name| name.contains("sandyard")));
        // control-plane 5.5: without a mask no header tells of the proxy.
        assert!(!headers.keys().any(|n| n.contains("forwarded") || n == "via"), "{headers:?}");
    }
    assert_eq!(service.connections(), 1, "the tunnel was kept");
    Ok(())
}

#[tokio::test]
async fn requests_for_no_sandbox_say_what_is_missing() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let id_only = [("e2b-sandbox-id", id.as_str())];
    let bad_port = [("e2b-sandbox-id", id.as_str()), ("e2b-sandbox-port", "x")];
    for (host, headers, expected) in [
        ("localhost", vec![], "Invalid host"),
        ("localhost:1", id_only.to_vec(), "missing header"),
        ("127.0.0.1", bad_port.to_vec(), "Invalid port"),
        ("nothing", vec![], "Invalid host"),
        ("x-iabc.localhost", vec![], "Invalid port"),
        ("80-iABC.localhost", vec![], "Invalid sandbox ID"),
    ] {
        let answer = server.proxied(host, "/health", &headers).await?;
        let message = answer.error(400)?;
        assert!(message.starts_with(expected), "{host}: {message}");
    }
    Ok(())
}

#[tokio::test]
async fn the_servers_own_paths_are_nobody_elses() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    for path in ["/init", "//init", "/files/%2e%2e/init", "/sandyard/tunnel/8000"] {
        // Before the sandbox is looked for.
        for id in [id.as_str(), "iunknown"] {
            let answer = routed(&server, id, "49983", path).await?;
            let message = answer.error(404)?;
            assert!(message.contains("reserved for the E2B control plane"));
            assert!(answer.json()?["path"].is_string());
        }
    }
    assert!(server.daemon(&id)?.seen().is_empty());
    // The port of `init` is not there, whoever asks and however it is written.
    for port in ["49982", "049982"] {
        let answer = routed(&server, id.as_str(), port, "/").await?;
        answer.error(502)?;
    }
    assert!(server.daemon(&id)?.seen().is_empty());
    // On other ports the paths are the services'.
    let (id, service) = server.with_service(PORT).await?;
    for path in ["/init", "/upgrade"] {
        routed(&server, id.as_str(), &PORT.to_string(), path).await?;
        service.saw(path).await;
    }
    Ok(())
}

/// control-plane 5.5, executor 6.5: metadata of an upload comes in some 400 headers, and services have many too.
#[tokio::test]
async fn many_headers_pass() -> anyhow::Result<()> {
    const NAMES: usize = 400;
    let server = Harness::start().await?;
    let (id, service) = server.with_service(PORT).await?;
    for (port, upstream) in [(49983, &*server.daemon(&id)?), (PORT, &service)] {
        let mut request = Request::get(format!("http://{}/many-headers", server.proxy))
            .header("host", format!("{port}-{id}.localhost"));
        for number in 0..NAMES {
            request = request.header(format!("x-{number}"), "v");
        }
        let answer = server.send(request.body(Full::default())?).await?;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.headers.keys().filter(|n| n.as_str().starts_with("x-")).count(), NAMES);
        let seen = upstream.seen().pop().expect("it arrived");
        assert_eq!(seen.headers.keys().filter(|name| name.starts_with("x-")).count(), NAMES);
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_sandbox_and_a_closed_port_are_told_apart() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let daemon = server.daemon(&id)?;
    let unknown = server.proxied("8000-iunknown.localhost", "/", &[]).await?;
    assert_eq!(unknown.status, StatusCode::BAD_GATEWAY);
    let kind = "application/json; charset=utf-8";
    assert_eq!(unknown.headers["content-type"], kind);
    let expected = json!({
        "code": 502, "sandboxId": "iunknown", "message": "The sandbox was not found",
    });
    assert_eq!(unknown.json()?, expected);

    let host = format!("{PORT}-{id}.localhost");
    let closed = server.proxied(&host, "/", &[]).await?;
    assert_eq!(closed.status, StatusCode::BAD_GATEWAY);
    let expected = json!({
        "code": 502, "sandboxId": id, "port": PORT,
        "message": "The sandbox is running but port is not open",
    });
    assert_eq!(closed.json()?, expected);
    assert_eq!(daemon.seen().len(), 5, "five tries");

    let browser = [("user-agent", "Mozilla/5.0"), ("accept", "text/html")];
    let page = server.proxied(&host, "/", &browser).await?;
    assert_eq!(page.status, StatusCode::BAD_GATEWAY);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let text = page.text();
    assert!(text.starts_with("<html") && text.ends_with("</html>"));
    assert!(text.contains("no service running on port"));
    Ok(())
}

#[tokio::test]
async fn a_service_that_starts_late_is_waited_for() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, service) = server.with_service(1).await?;
    let daemon = server.daemon(&id)?;
    let host = format!("{PORT}-{id}.localhost");
    let open = async {
        daemon.saw(&format!("{TUNNEL_PATH}{PORT}")).await;
        daemon.open_port(PORT, service.address());
    };
    let (answer, ()) = tokio::join!(server.proxied(&host, "/health", &[]), open);
    assert_eq!(answer?.status, StatusCode::NO_CONTENT);
    Ok(())
}

#[tokio::test]
async fn a_service_that_hangs_up_is_no_dead_sandbox() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, _service) = server.with_service(PORT).await?;
    let host = format!("{PORT}-{id}.localhost");
    let message = server.proxied(&host, "/hang-up", &[]).await?.error(502)?;
    assert!(message.contains("closed the connection"), "{message}");
    // Of the daemon a 502 would mean that the sandbox is gone (executor 9.4).
    let message = routed(&server, id.as_str(), "49983", "/hang-up").await?.error(500)?;
    assert!(message.contains("closed the connection"), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_killed_sandbox_is_not_found() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = server.create(json!({})).await?;
    let other = server.create(json!({})).await?;
    let health = async |id: &str| routed(&server, id, "49983", "/health").await;
    assert_eq!(health(id.as_str()).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(server.kill(&id).await?.status, StatusCode::NO_CONTENT);
    let message = health(id.as_str()).await?.error(502)?;
    assert_eq!(message, "The sandbox was not found");
    assert_eq!(health(other.as_str()).await?.status, StatusCode::NO_CONTENT);
    Ok(())
}

#[tokio::test]
async fn a_tunnel_that_the_executor_refuses_is_the_servers_failure() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let (id, _service) = server.with_service(PORT).await?;
    server.engine.daemon(&server.instance(&id)?).expect("daemon").demand_token("another");
    let host = format!("{PORT}-{id}.localhost");
    let message = server.proxied(&host, "/", &[]).await?.error(500)?;
    assert!(message.contains("401"), "{message}");
    Ok(())
}

/// A signed URL as the SDKs make it (executor 3.3).
fn signed(path: &str, operation: &str, token: &str) -> String {
    let hash = Sha256::digest(format!("{path}:{operation}::{token}"));
    let hash = base64::engine::general_purpose::STANDARD_NO_PAD.encode(hash);
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("path", path)
        .append_pair("signature", &format!("v1_{hash}"))
        .finish();
    format!("/files?{query}")
}

#[tokio::test]
async fn a_signed_url_finds_its_sandbox_by_the_signature() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    // Of whichever team.
    let body = Some(json!({"templateID": "base"}));
    let created = server.call_as(OTHER_KEY, Method::POST, "/v2/sandboxes", body).await?;
    let id = created.json()?["sandboxID"].as_str().expect("id").parse()?;
    server.create(json!({})).await?;
    let token = format!("envd{id}");
    let url = signed("a b.txt", "read", &token);
    server.proxied("localhost", &url, &[]).await?;
    let seen = server.daemon(&id)?.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].uri, url);

    let upload = signed("a b.txt", "write", &token);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{}{upload}", server.proxy))
        .body(Full::from("content"))?;
    server.send(request).await?;
    assert_eq!(server.daemon(&id)?.seen().len(), 2);

    // A name in a local network that looks like a sandbox's host and is none.
    for host in ["build-machine.lan", "80-Machine.lan"] {
        server.proxied(host, &url, &[]).await?;
        assert_eq!(server.daemon(&id)?.seen().pop().expect("it came").headers["host"], host);
        server.proxied(host, "/files?path=a&signature=v1_x", &[]).await?.error(400)?;
    }

    for wrong in [upload, signed("a b.txt", "read", "envdiunknown")] {
        let answer = server.proxied("localhost", &wrong, &[]).await?;
        assert_eq!(answer.error(401)?, "invalid signature");
    }
    let body: Value = server.proxied("localhost", "/files?path=a", &[]).await?.json()?;
    assert_eq!(body["code"], json!(400));
    Ok(())
}
