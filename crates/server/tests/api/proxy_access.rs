//! The proxy: sandboxes whose ports are not public, and masked hosts (control-plane 3.1, 5.5, 5.6).

use http::StatusCode;
use sandyard_testkit::FakeDaemon;
use sandyard_types::SandboxId;
use serde_json::{Value, json};

use crate::harness::{Harness, TEMPLATE_ID};

const PORT: u16 = 8000;
const HEADER: &str = "e2b-traffic-access-token";

async fn with_network(
    server: &Harness,
    network: Value,
) -> anyhow::Result<(SandboxId, FakeDaemon, String)> {
    let id = server.create(json!({"network": network})).await?;
    let service = FakeDaemon::start_service().await?;
    server.daemon(&id)?.open_port(PORT, service.address());
    let host = format!("{PORT}-{id}.sbx.localhost:3002");
    Ok((id, service, host))
}

#[tokio::test]
async fn a_private_sandbox_demands_its_token_on_all_ports_but_the_daemons() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let private = json!({"allowPublicTraffic": false});
    let (id, service, host) = with_network(&server, private).await?;
    let token = format!("traffic{id}");

    let missing = server.proxied(&host, "/seen", &[]).await?;
    assert_eq!(missing.status, StatusCode::FORBIDDEN);
    assert_eq!(missing.headers["content-type"], "application/json; charset=utf-8");
    let expected = json!({
        "code": 403, "sandboxId": id,
        "message": "Sandbox is secured with traffic access token. Token header \
            'e2b-traffic-access-token' is missing",
    });
    assert_eq!(missing.json()?, expected);
    let wrong = server.proxied(&host, "/seen", &[(HEADER, "traffic")]).await?;
    assert_eq!(wrong.status, StatusCode::FORBIDDEN);
    let expected = json!({
        "code": 403, "sandboxId": id,
        "message": "Sandbox is secured with traffic access token. Provided token in header \
            'e2b-traffic-access-token' is invalid",
    });
    assert_eq!(wrong.json()?, expected);
    assert!(service.seen().is_empty());

    for (headers, title) in [
        (vec![], "Missing Traffic Access Token"),
        (vec![(HEADER, "x")], "Invalid Traffic Access Token"),
    ] {
        let headers: Vec<_> = headers.into_iter().chain([("user-agent", "Mozilla/5.0")]).collect();
        let page = server.proxied(&host, "/", &headers).await?;
        assert_eq!(page.status, StatusCode::FORBIDDEN);
        assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
        let text = page.text();
        assert!(text.starts_with("<html") && text.ends_with("</html>"), "{text}");
        assert!(text.contains(title) && text.contains(id.as_str()), "{text}");
    }

    let right = server.proxied(&host, "/seen", &[(HEADER, &token)]).await?;
    assert_eq!(right.status, StatusCode::OK);
    // By headers too, and for a port that is closed.
    let routed = [("e2b-sandbox-id", id.as_str()), ("e2b-sandbox-port", "81")];
    server.proxied("localhost", "/", &routed).await?.error(403)?;
    let routed = [routed[0], routed[1], (HEADER, &token)];
    server.proxied("localhost", "/", &routed).await?.error(502)?;
    // The daemon looks at a token of its own.
    let daemon = server.proxied(&format!("49983-{id}.sbx.localhost"), "/health", &[]).await?;
    assert_eq!(daemon.status, StatusCode::NO_CONTENT);
    Ok(())
}

#[tokio::test]
async fn the_token_is_told_to_create_and_connect_and_the_rules_to_all() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let network =
        json!({"allowPublicTraffic": false, "allowOut": [], "maskRequestHost": "a:${PORT}"});
    let body = json!({"templateID": "base", "network": network});
    let created = server.post("/v2/sandboxes", body).await?.json()?;
    let id = created["sandboxID"].as_str().expect("id");
    let token = json!(format!("traffic{id}"));
    assert_eq!(created["trafficAccessToken"], token);
    for path in ["/v2/sandboxes", "/sandboxes"] {
        let connected =
            server.post(&format!("{path}/{id}/connect"), json!({"timeout": 60})).await?;
        assert_eq!(connected.json()?["trafficAccessToken"], token);
    }
    let detail = server.get(&format!("/sandboxes/{id}")).await?.json()?;
    assert_eq!(detail["network"], network);
    assert_eq!(detail.get("trafficAccessToken"), None);

    for members in
        [json!({}), json!({"network": {}}), json!({"network": {"allowPublicTraffic": null}})]
    {
        let id = server.create(members.clone()).await?;
        let body = json!({"timeout": 60});
        let connected = server.post(&format!("/sandboxes/{id}/connect"), body).await?.json()?;
        assert_eq!(connected.get("trafficAccessToken"), None, "{members}");
        let detail = server.get(&format!("/sandboxes/{id}")).await?.json()?;
        assert_eq!(detail.get("network").is_some(), members.get("network").is_some());
        server.kill(&id).await?;
    }

    // With `POST /sandboxes` only together with `secure`.
    let mut body = json!({"templateID": TEMPLATE_ID, "network": network});
    server.post("/sandboxes", body.clone()).await?.error(400)?;
    body["secure"] = json!(true);
    let created = server.post("/sandboxes", body).await?;
    assert_eq!(created.status, StatusCode::CREATED);
    assert!(created.json()?["trafficAccessToken"].is_string());
    Ok(())
}

#[tokio::test]
async fn a_service_sees_the_masked_host_and_the_daemon_does_not() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let mask = json!({"maskRequestHost": "localhost:${PORT}"});
    let (id, _service, host) = with_network(&server, mask).await?;
    let daemon = format!("49983-{id}.sbx.localhost:3002");
    for (host, seen, forwarded) in
        [(&host, json!("localhost:8000"), json!(host)), (&daemon, json!(daemon), json!("mine"))]
    {
        let mine = [("x-forwarded-host", "mine")];
        let answer = server.proxied(host, "/seen", &mine).await?.json()?;
        assert_eq!(answer["headers"]["host"], seen);
        assert_eq!(answer["headers"]["x-forwarded-host"], forwarded);
    }
    Ok(())
}
