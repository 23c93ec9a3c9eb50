//! The proxy: paused sandboxes that traffic wakes, and requests that name their sandbox by its token only (control-plane
//! 5.3, 5.7).

use http::{Method, StatusCode};
use sandyard_testkit::{Behaviour, EngineCall};
use sandyard_types::SandboxId;
use serde_json::{Value, json};

use crate::harness::{Harness, MAX_SANDBOXES};

const DAEMON: &str = "/health";

async fn paused(server: &Harness, members: Value) -> anyhow::Result<SandboxId> {
    let mut all = json!({"autoPause": true, "autoResume": {"enabled": true}});
    let (object, more) = (all.as_object_mut().expect("object"), members);
    object.extend(more.as_object().expect("object").clone());
    let id = server.create(all).await?;
    let path = format!("/sandboxes/{id}/pause");
    let answer = server.call(Method::POST, &path, None).await?;
    anyhow::ensure!(answer.status == StatusCode::NO_CONTENT, "{}", answer.text());
    Ok(id)
}

async fn state(server: &Harness, id: &SandboxId) -> anyhow::Result<Value> {
    Ok(server.get(&format!("/sandboxes/{id}")).await?.json()?["state"].take())
}

fn host(id: &SandboxId, port: u16) -> String {
    format!("{port}-{id}.sbx.localhost:3002")
}

#[tokio::test]
async fn the_daemons_port_wakes_by_its_token_only() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = paused(&server, json!({})).await?;
    let right = format!("envd{id}");
    for headers in [vec![], vec![("x-access-token", "wrong")]] {
        let denied = server.proxied(&host(&id, 49983), DAEMON, &headers).await?;
        assert_eq!(denied.status, StatusCode::FORBIDDEN, "{}", denied.text());
        assert_eq!(denied.json()?["sandboxId"], json!(id));
        assert_eq!(state(&server, &id).await?, json!("paused"));
    }
    let headers = [("x-access-token", right.as_str())];
    let woken = server.proxied(&host(&id, 49983), DAEMON, &headers).await?;
    assert_eq!(woken.status, StatusCode::NO_CONTENT, "{}", woken.text());
    assert_eq!(state(&server, &id).await?, json!("running"));
    Ok(())
}

#[tokio::test]
async fn a_private_port_wakes_by_the_traffic_token_only() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = paused(&server, json!({"network": {"allowPublicTraffic": false}})).await?;
    let service = sandyard_testkit::FakeDaemon::start_service().await?;
    server.daemon(&id)?.open_port(8000, service.address());
    let denied = server.proxied(&host(&id, 8000), "/seen", &[]).await?;
    assert_eq!(denied.status, StatusCode::FORBIDDEN);
    assert_eq!(state(&server, &id).await?, json!("paused"));
    let token = format!("traffic{id}");
    let headers = [("e2b-traffic-access-token", token.as_str())];
    let woken = server.proxied(&host(&id, 8000), "/seen", &headers).await?;
    assert_eq!(woken.status, StatusCode::OK, "{}", woken.text());
    Ok(())
}

#[tokio::test]
async fn many_requests_join_one_resume() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = paused(&server, json!({})).await?;
    let service = sandyard_testkit::FakeDaemon::start_service().await?;
    server.daemon(&id)?.open_port(8000, service.address());
    let host = host(&id, 8000);
    let asked = (0..10).map(|_| server.proxied(&host, "/seen", &[]));
    for answer in futures::future::try_join_all(asked).await? {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
    let thawed = server.engine.calls().iter().filter(|(call, _)| *call == EngineCall::Thaw).count();
    assert_eq!(thawed, 1);
    Ok(())
}

#[tokio::test]
async fn what_may_not_be_woken_is_not_found() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let asleep = server.create(json!({})).await?;
    let files = server.create(json!({"autoResume": {"enabled": true}})).await?;
    for (id, body) in [(&asleep, json!({})), (&files, json!({"memory": false}))] {
        server.post(&format!("/sandboxes/{id}/pause"), body).await?;
        let token = format!("envd{id}");
        for (port, path) in [(49983, DAEMON), (8000, "/")] {
            let headers = [("x-access-token", token.as_str())];
            let answer = server.proxied(&host(id, port), path, &headers).await?;
            assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
            assert_eq!(answer.json()?["message"], json!("The sandbox was not found"));
        }
        assert_eq!(state(&server, id).await?, json!("paused"));
    }
    Ok(())
}

#[tokio::test]
async fn a_full_team_and_a_failing_engine_have_answers_of_their_own() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let id = paused(&server, json!({})).await?;
    server.engine.script(EngineCall::Thaw, Behaviour::Fail);
    let failed = server.proxied(&host(&id, 8000), "/", &[]).await?;
    assert_eq!(failed.status, StatusCode::CONFLICT, "{}", failed.text());
    server.engine.heal(EngineCall::Thaw);
    for _ in 0..MAX_SANDBOXES {
        server.create(json!({})).await?;
    }
    let full = server.proxied(&host(&id, 8000), "/", &[]).await?;
    assert_eq!(full.status, StatusCode::TOO_MANY_REQUESTS, "{}", full.text());
    assert_eq!(full.json()?["code"], json!(429));
    assert_eq!(state(&server, &id).await?, json!("paused"));
    Ok(())
}

/// As some releases of the Python SDK send them: neither host nor headers name the sandbox (control-plane 5.3).
#[tokio::test]
async fn a_request_without_a_name_is_for_whose_token_it_shows() -> anyhow::Result<()> {
    let server = Harness::start().await?;
    let ids = [server.create(json!({})).await?, server.create(json!({})).await?];
    for id in &ids {
        let token = format!("envd{id}");
        let headers = [("x-access-token", token.as_str())];
        let answer = server.proxied("127.0.0.1:1", "/seen", &headers).await?;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.json()?["headers"]["x-access-token"], json!(token));
        assert!(!server.daemon(id)?.seen().is_empty());
    }
    let wrong = server.proxied("127.0.0.1:1", "/seen", &[("x-access-token", "envdx")]).await?;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    Ok(())
}
